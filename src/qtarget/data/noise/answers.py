"""Wrong content: an answer that is off, or that of another question."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import ClassVar

from qtarget.data.edit import Edit, edited
from qtarget.data.example import Demonstration
from qtarget.data.noise.base import Noise, draws, share, spoilable
from qtarget.errors import QTargetError
from qtarget.settings import Checked, Number, Whole, setting

_LAST_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?=[^\d]*$)")


@dataclass(frozen=True)
class WrongAnswer(Checked, Noise):
    """Makes the final number of a share of the answers wrong, by up to `spread`, as a careless annotator might.

    rate in [0, 1]: exactly round(rate·rows) rows are changed, chosen by `seed`; the error is uniform over ±1 … ±spread.
    A token is wrong from the first character that departs from the truth to the end of the wrong number.
    """

    NODE_KEY: ClassVar[str] = "data.noise"
    rate: float = setting(0.4, Number(0, 1), "share of the rows")
    spread: int = setting(10, Whole(1), "largest error of a wrong number")
    seed: int = setting(0, Whole(0), "of the draws")

    def __call__(self, rows: Sequence[Demonstration]) -> list[Demonstration]:
        rng = random.Random(self.seed)
        chosen = set(share(self.rate, spoilable(rows), len(rows), rng))
        return [self._spoil(row, rng) if index in chosen else row for index, row in enumerate(rows)]

    def _spoil(self, row: Demonstration, rng: random.Random) -> Demonstration:
        truth = _final_number(row)
        error = rng.randint(1, self.spread) * rng.choice((-1, 1))
        wrong = str(Decimal(truth.group()) + error)
        return edited(row, [Edit(*truth.span(), wrong, (_departure(wrong, truth.group()), len(wrong)))])


@dataclass(frozen=True)
class SwappedDemonstration(Checked, Noise):
    """Gives a share of the rows the completion of another of them.

    rate in [0, 1]: exactly round(rate·rows) rows, at least two or none, go round in a circle, so no row keeps its own.
    A token is wrong from the first character that departs from the row's own completion; where two completions happen
    to be equal nothing is wrong, and nothing is marked. What columns say of characters comes with the completion.
    """

    NODE_KEY: ClassVar[str] = "data.noise"
    rate: float = setting(0.4, Number(0, 1), "share of the rows")
    seed: int = setting(0, Whole(0), "of the draws")

    def __call__(self, rows: Sequence[Demonstration]) -> list[Demonstration]:
        chosen = share(self.rate, spoilable(rows), len(rows), draws("swapped_demonstration", self.seed))
        if len(chosen) == 1:
            raise QTargetError(
                f"swapped_demonstration noise chose 1 of {len(rows)} rows, which has no other to swap with: raise "
                "data.noise.rate or data.rows, or set data.noise.rate=0"
            )
        givers = dict(zip(chosen, [*chosen[1:], *chosen[:1]], strict=True))
        return [_swapped(row, rows[givers.get(index, index)]) for index, row in enumerate(rows)]


def _swapped(row: Demonstration, giver: Demonstration) -> Demonstration:
    if giver.completion == row.completion:
        return row
    start = _departure(giver.completion, row.completion)
    new = edited(row, [Edit(start, len(row.completion), giver.completion[start:])])
    return replace(new, spans=giver.spans, weights=giver.weights, cut_short=giver.cut_short)


def _final_number(row: Demonstration) -> re.Match[str]:
    number = _LAST_NUMBER.search(row.completion)
    if number is None:
        raise QTargetError(
            f"row {row.row}: wrong_answer noise found no number in the answer {row.completion[:60]!r}: "
            "every answer needs one, or set data.noise.rate=0"
        )
    return number


def _departure(wrong: str, truth: str) -> int:
    """Where `wrong` departs from `truth`.

    One that merely stops short of the truth ("42" → "4") departs at its end: its last character carries the blame.
    """
    same = 0
    while same < min(len(wrong) - 1, len(truth)) and wrong[same] == truth[same]:
        same += 1
    return same
