"""Is an answer right? Asked of the verifier that a problem's entry names.

An entry is what a data source keeps for a verifier: {"verifier": name, …what that one needs}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

FINAL = "####"
"""Worked solutions close with this mark and the final answer."""

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """correct: full marks. answer: what the completion answers; equal answers to a problem are spelled alike.

    partial: marks in [0, 1] of a verifier that gives some for half an answer, else None.
    """

    correct: bool
    answer: str
    partial: float | None = None

    @property
    def score(self) -> float:
        """Marks in [0, 1]; their mean over problems is the task completion."""
        return float(self.correct) if self.partial is None else self.partial


def judge(completion: str, entry: Entry) -> Verdict:
    """The verdict of the entry's verifier on a completion."""
    return VERIFIERS[entry["verifier"]](completion, entry)


def final_answer(completion: str) -> str:
    """What follows the last `####`; the whole completion where there is none."""
    return completion.rsplit(FINAL, 1)[-1].strip()


def _reasoning_gym(completion: str, entry: Entry) -> Verdict:
    """Full marks by reasoning-gym's own scorer of the entry's task, on the final answer of the completion."""
    answer = final_answer(completion)
    return Verdict(_scorer(entry["metadata"]["source_dataset"])(answer, entry) >= 1.0, answer)


@cache
def _scorer(task: str) -> Any:
    import reasoning_gym  # takes seconds, and only verified data needs it

    return reasoning_gym.get_score_answer_fn(task)


VERIFIERS: dict[str, Callable[[str, Entry], Verdict]] = {"reasoning_gym": _reasoning_gym}
"""By the name that entries carry."""
