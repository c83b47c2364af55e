"""What `prepare` asks of a source, and how a source says what it left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from qtarget.data.example import Demonstration

Counts = Mapping[str, int]


class Source(Protocol):
    """Where demonstrations come from; rows with an `entry` can be asked of a model and judged.

    It may also say, as `described`, what it takes its rows to be.
    """

    def rows(self, split: str, count: int | None) -> list[Demonstration]: ...


@runtime_checkable
class Counting(Protocol):
    """A source that leaves rows out: it gives, beside the others, how many it read and left out, by reason."""

    def read(self, split: str, count: int | None) -> tuple[list[Demonstration], Counts]: ...


def read(source: Source, split: str, count: int | None) -> tuple[list[Demonstration], Counts]:
    """Rows of a split, and what became of those the source read on the way: "read" and the reasons add up."""
    return source.read(split, count) if isinstance(source, Counting) else (source.rows(split, count), {})
