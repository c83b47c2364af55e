"""Several sources in one, by weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, replace
from typing import ClassVar

from qtarget import checks
from qtarget.data.example import Demonstration
from qtarget.data.sources.source import Source, read
from qtarget.data.sources.splits import check_weights, interleaved
from qtarget.errors import QTargetError
from qtarget.settings import ByName, Checked, Nullable, Part, RelativeWeight, setting


@dataclass(frozen=True)
class Mix(Checked):
    """Rows of named parts in turn, every beginning in the proportions of `weights` (None: as many of each).

    Rows are numbered anew, and keep the data columns that all parts have.
    """

    NODE_KEY: ClassVar[str] = "data.source"
    parts: Mapping[str, Source] = setting(
        MISSING, Part("NAME: a source, +data/source@data.source.parts.NAME=OPTION"), "the sources"
    )
    weights: Mapping[str, float] | None = setting(
        None, Nullable(ByName(RelativeWeight(), "{NAME: WEIGHT}")), "rows of each, in proportion; null: as many of each"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts:
            raise QTargetError(
                "a mixture needs parts: add +data/source@data.source.parts.NAME=SOURCE for each, and their "
                "data.source.weights={NAME: WEIGHT, …}"
            )
        for name, part in self.parts.items():
            checks.implements(f"data.source.parts.{name}", part, Source)
        check_weights("data.source.weights", self._weights)
        if set(self._weights) != set(self.parts):
            raise QTargetError(
                f"data.source.weights are of {', '.join(self._weights)} and the parts are {', '.join(self.parts)}: "
                "give every part a weight"
            )

    @property
    def described(self) -> str:
        """The parts."""
        return " + ".join(getattr(part, "described", "") or name for name, part in self.parts.items())

    def rows(self, split: str, count: int | None) -> list[Demonstration]:
        return self.read(split, count)[0]

    def read(self, split: str, count: int | None) -> tuple[list[Demonstration], dict[str, int]]:
        """`count` rows of a split, and what became of the rows that the parts read for them."""
        if count is None:
            raise QTargetError("a mixture has as many rows as are asked for: set data.rows and data.heldout_rows")
        order = interleaved(self._weights, count)
        rows_of_parts = {name: read(part, split, order.count(name)) for name, part in self.parts.items()}
        rows = {
            name: iter(_with_columns(rows, self._columns(rows_of_parts))) for name, (rows, _) in rows_of_parts.items()
        }
        counts = {f"{name}_{reason}": n for name, (_, left) in rows_of_parts.items() for reason, n in left.items()}
        return [replace(next(rows[name]), row=row) for row, name in enumerate(order)], counts

    @property
    def _weights(self) -> Mapping[str, float]:
        return dict.fromkeys(self.parts, 1.0) if self.weights is None else self.weights

    @staticmethod
    def _columns(rows_of_parts: Mapping[str, tuple[list[Demonstration], Mapping[str, int]]]) -> set[str]:
        held = [set(row.spans) for rows, _ in rows_of_parts.values() for row in rows[:1]]
        return set.intersection(*held) if held else set()


def _with_columns(rows: list[Demonstration], columns: set[str]) -> list[Demonstration]:
    return [replace(row, spans={name: spans for name, spans in row.spans.items() if name in columns}) for row in rows]
