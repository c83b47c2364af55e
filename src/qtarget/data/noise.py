"""Demonstrations made wrong on purpose, with the truth kept."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qtarget.data.example import Demonstration
from qtarget.errors import QTargetError

_LAST_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?=[^\d]*$)")


@dataclass(frozen=True)
class WrongAnswer:
    """Replaces the final number of a share of the answers by the answer of another row that differs.

    rate in [0, 1]: exactly round(rate·rows) rows are changed, chosen by `seed`. A token is wrong from the first
    character that departs from the truth to the end of the replaced number.
    """

    rate: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.rate, bool) or not isinstance(self.rate, int | float) or not 0 <= self.rate <= 1:
            raise QTargetError(f"noise rate must lie in [0, 1], got {self.rate!r}")

    def __call__(self, rows: Sequence[Demonstration]) -> list[Demonstration]:
        rng = random.Random(self.seed)
        chosen = set(rng.sample(range(len(rows)), round(self.rate * len(rows))))
        answers = sorted({_final_number(row).group() for row in rows}) if chosen else []
        return [self._spoil(row, answers, rng) if index in chosen else row for index, row in enumerate(rows)]

    @staticmethod
    def _spoil(row: Demonstration, answers: Sequence[str], rng: random.Random) -> Demonstration:
        truth = _final_number(row)
        others = [answer for answer in answers if answer != truth.group()]
        if not others:
            raise QTargetError("wrong_answer noise needs rows with at least two different answers")
        wrong = rng.choice(others)
        content = row.completion[: truth.start()] + wrong + row.completion[truth.end() :]
        first = truth.start() + _common_prefix(wrong, truth.group())
        messages = [*row.prompt, {**row.messages[-1], "content": content}]
        # A wrong answer that continues the truth ("4" → "42") departs at its next character; one that stops short of
        # it ("42" → "4") departs only at the end of turn, so its last character carries the blame.
        span = (min(first, truth.start() + len(wrong) - 1), truth.start() + len(wrong))
        return replace(row, messages=messages, wrong=(span,))


def _final_number(row: Demonstration) -> re.Match[str]:
    found = _LAST_NUMBER.search(row.completion)
    if found is None:
        raise QTargetError(f"row {row.row}: wrong_answer noise found no number in the answer {row.completion[:60]!r}")
    return found


def _common_prefix(left: str, right: str) -> int:
    same = 0
    while same < min(len(left), len(right)) and left[same] == right[same]:
        same += 1
    return same
