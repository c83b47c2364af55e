"""What `prepare` asks of a source, and how a source says what it left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from qtarget import checks
from qtarget.data.example import Demonstration
from qtarget.data.sources.message import conversation
from qtarget.errors import QTargetError

Counts = Mapping[str, int]


class Source(Protocol):
    """Where demonstrations come from; rows with an `entry` can be asked of a model and judged.

    rows: the first `count` of a split, "train", "heldout" or "reserve" (clean rows that are added unspoilt); None: all.
    One with fewer rows raises QTargetError, or gives those it has. It may also say, as `described`, what it takes its
    rows to be. Files that it reads are named by its fields `path` and `files`: what they hold is part of a run's
    identity.
    """

    def rows(self, split: str, count: int | None) -> list[Demonstration]: ...


@runtime_checkable
class Counting(Protocol):
    """A source that leaves rows out: it gives, beside the others, how many it read and left out, by reason."""

    def read(self, split: str, count: int | None) -> tuple[list[Demonstration], Counts]: ...


@runtime_checkable
class Sharing(Protocol):
    """A source that holds out a share of its training rows.

    share: of its training rows; 0: none. heldout: a file or split that is evaluated on in place of one. heldout_rows:
    only the first so many rows of the share are held out, and the others are trained on; None: all of it.
    """

    @property
    def share(self) -> float: ...
    @property
    def heldout(self) -> str | None: ...

    def read_shared(
        self, split: str, count: int | None, heldout_rows: int | None
    ) -> tuple[list[Demonstration], Counts]: ...


def read(
    source: Source, split: str, count: int | None, heldout_rows: int | None = None
) -> tuple[list[Demonstration], Counts]:
    """Rows of a split, and what became of those the source read on the way: "read" and the reasons add up.

    heldout_rows: how many rows of a share are held out, see `Sharing`; None: all, and of a source that has no share
    those that it says.

    A source of others is not asked for 0 rows, and what it gives is checked as rows of a file are. Raises QTargetError
    for what isn't a list of demonstrations, and for more than were asked for.
    """
    of_others = not type(source).__module__.startswith("qtarget.")
    if of_others and count == 0:
        return [], {}
    if isinstance(source, Sharing):
        rows, counts = source.read_shared(split, count, heldout_rows)
    else:
        rows, counts = source.read(split, count) if isinstance(source, Counting) else (source.rows(split, count), {})
    return (_checked(rows, source, split, count), counts) if of_others else (rows, counts)


def _checked(rows: Any, source: Source, split: str, count: int | None) -> list[Demonstration]:
    call = f"{checks.class_name(source)}.rows({split!r}, {count})"
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise QTargetError(f"{call} must give a list of qtarget.data.example.Demonstration, got {type(rows).__name__}")
    if count is not None and len(rows) > count:
        raise QTargetError(f"{call} gave {len(rows)} rows: give the first {count} of them")
    return [_conversation(row, f"{call}, row {index} of its list") for index, row in enumerate(rows)]


def _conversation(row: Any, name: str) -> Demonstration:
    if not isinstance(row, Demonstration):
        raise QTargetError(f"{name}: a row is a qtarget.data.example.Demonstration, got {type(row).__name__}")
    try:
        return replace(row, messages=conversation(list(row.messages)))
    except QTargetError as error:
        raise QTargetError(f"{name}: {error}") from error
