"""Is an answer right? Asked of the scorer that belongs to the problem."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

FINAL = "####"
"""Worked solutions close with this mark and the final answer."""


def is_correct(completion: str, entry: Mapping[str, Any]) -> bool:
    """Full marks by reasoning-gym's own scorer of the entry's task, on the final answer of the completion."""
    score: float = _scorer(entry["metadata"]["source_dataset"])(final_answer(completion), entry)
    return score >= 1.0


def final_answer(completion: str) -> str:
    """What follows the last `####`; the whole completion where there is none."""
    return completion.rsplit(FINAL, 1)[-1].strip()


@cache
def _scorer(task: str) -> Any:
    import reasoning_gym  # takes seconds, and only verified data needs it

    return reasoning_gym.get_score_answer_fn(task)
