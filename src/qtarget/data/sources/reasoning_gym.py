"""Demonstrations from reasoning-gym's generators, each with its own verifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from qtarget.data.example import Demonstration, Message, Span
from qtarget.data.sources import splits
from qtarget.errors import QTargetError


@dataclass(frozen=True)
class ReasoningGym:
    """One task of reasoning-gym (https://github.com/open-thought/reasoning-gym, Apache-2.0).

    task: its name; options: its own settings; answer: "answer" for the bare answer, or a key of the entry's metadata
    that holds a worked solution ("answer_cot" of gsm_symbolic). system: system message, None for the template's own.
    """

    task: str
    options: Mapping[str, Any] = field(default_factory=dict)
    answer: str = "answer"
    system: str | None = None
    seed: int = 0

    def rows(self, split: str, count: int | None) -> list[Demonstration]:
        """`count` problems of a split, no question twice. Raises QTargetError where the task has too few."""
        if count is None:
            raise QTargetError(
                f"{self.task} makes as many problems as are asked for: set data.rows and data.heldout_rows"
            )
        found = [self._demonstration(entry, row) for row, entry in enumerate(islice(self._unique(split, count), count))]
        if len(found) < count:
            raise QTargetError(
                f"{self.task} with {dict(self.options)} yields only {len(found)} different problems for the split "
                f"{split!r}, {count} were asked for: ask for fewer rows, or widen data.source.options"
            )
        return found

    def _unique(self, split: str, count: int) -> Iterator[Mapping[str, Any]]:
        return splits.distinct(self._entries(splits.draws(count)), split, lambda entry: str(entry["question"]))

    def _entries(self, draws: int) -> Iterator[Mapping[str, Any]]:
        import reasoning_gym  # takes seconds, and only this source needs it

        try:
            dataset = reasoning_gym.create_dataset(self.task, size=draws, seed=self.seed, **self.options)
        except (ValueError, TypeError, AssertionError) as error:
            raise QTargetError(
                f"reasoning-gym refuses task {self.task!r} with {dict(self.options)}: {error}"
            ) from error
        return (dataset[index] for index in range(draws))

    def _demonstration(self, entry: Mapping[str, Any], row: int) -> Demonstration:
        solution = entry["answer"] if self.answer == "answer" else entry["metadata"].get(self.answer)
        if solution is None:
            raise QTargetError(f"{self.task} has no worked solution {self.answer!r} in its metadata; use answer=answer")
        system: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        turns = [{"role": "user", "content": entry["question"]}, {"role": "assistant", "content": str(solution)}]
        spans = {"critical": _critical(str(solution), str(entry["answer"]))}
        return Demonstration(
            messages=[*system, *turns], row=row, spans=spans, entry={"verifier": "reasoning_gym", **entry}
        )


def _critical(solution: str, answer: str) -> tuple[Span, ...]:
    """The final answer in a solution: every other token there ends in another answer, so these are critical."""
    start = solution.rfind(answer)
    return () if start < 0 or not answer else ((start, start + len(answer)),)
