"""Demonstrations made wrong on purpose, with the truth kept."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Protocol

from qtarget import checks
from qtarget.data.example import Demonstration, Span
from qtarget.errors import QTargetError

_LAST_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?=[^\d]*$)")


class Noise(Protocol):
    """What is done to training rows, with the truth of it kept in `wrong`."""

    def __call__(self, rows: Sequence[Demonstration]) -> list[Demonstration]: ...


@dataclass(frozen=True)
class NoNoise:
    """Leaves the rows as they are."""

    def __call__(self, rows: Sequence[Demonstration]) -> list[Demonstration]:
        return list(rows)


@dataclass(frozen=True)
class WrongAnswer:
    """Makes the final number of a share of the answers wrong, by up to `spread`, as a careless annotator might.

    rate in [0, 1]: exactly round(rate·rows) rows are changed, chosen by `seed`; the error is uniform over ±1 … ±spread.
    A token is wrong from the first character that departs from the truth to the end of the wrong number.
    """

    rate: float = 0.4
    spread: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        checks.number("noise rate", self.rate, 0, 1)
        checks.whole("noise spread", self.spread, 1)

    def __call__(self, rows: Sequence[Demonstration]) -> list[Demonstration]:
        rng = random.Random(self.seed)
        chosen = set(rng.sample(range(len(rows)), round(self.rate * len(rows))))
        return [self._spoil(row, rng) if index in chosen else row for index, row in enumerate(rows)]

    def _spoil(self, row: Demonstration, rng: random.Random) -> Demonstration:
        truth = _final_number(row)
        error = rng.randint(1, self.spread) * rng.choice((-1, 1))
        wrong = str(Decimal(truth.group()) + error)
        content = row.completion[: truth.start()] + wrong + row.completion[truth.end() :]
        messages = [*row.prompt, {**row.messages[-1], "content": content}]
        # A wrong number that merely stops short of the truth ("42" → "4") departs at its end: its last character
        # carries the blame.
        first = min(_common_prefix(wrong, truth.group()), len(wrong) - 1)
        spans = {name: _moved(found, truth.span(), len(wrong)) for name, found in row.spans.items()}
        start = truth.start()
        return replace(row, messages=messages, wrong=((start + first, start + len(wrong)),), spans=spans)


def _moved(spans: Sequence[Span], replaced: Span, length: int) -> tuple[Span, ...]:
    """Spans of a text in which the characters `replaced` gave way to `length` others."""
    low, high = replaced

    def moved(place: int, inside: int) -> int:
        return place if place <= low else inside if place < high else place - high + low + length

    return tuple((moved(start, low), moved(stop, low + length)) for start, stop in spans)


def _final_number(row: Demonstration) -> re.Match[str]:
    found = _LAST_NUMBER.search(row.completion)
    if found is None:
        raise QTargetError(
            f"row {row.row}: wrong_answer noise found no number in the answer {row.completion[:60]!r}: "
            "every answer needs one, or set data.noise.rate=0"
        )
    return found


def _common_prefix(left: str, right: str) -> int:
    same = 0
    while same < min(len(left), len(right)) and left[same] == right[same]:
        same += 1
    return same
