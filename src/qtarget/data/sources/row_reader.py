"""A row of a table → the demonstration that it is, or why it is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qtarget.data.example import Demonstration
from qtarget.data.sources.adapt import Adapt, Row
from qtarget.data.sources.conversation import listed
from qtarget.data.sources.file_rows import Cells, is_same
from qtarget.data.sources.message import without_nulls
from qtarget.errors import QTargetError

if TYPE_CHECKING:
    from qtarget.data.sources.data_files import Files


@dataclass(frozen=True)
class RowReader:
    """Reads the rows of a split. read: what makes a demonstration of the columns of a row and its number, from 1."""

    source: Files
    split: str
    read: Callable[[Row, int], Demonstration]

    def __call__(self, row: Row, index: int) -> Demonstration | str:
        """A row's demonstration, or why it is left out. Raises QTargetError with the place of a row that is neither."""
        for column, values in (self.source.where or {}).items():
            if not any(is_same(row, column, value) for value in several(values)):
                return "where"
        try:
            given = adapted(self.source.adapt, row)
            return "adapt" if given is None else self.read({**untyped(row), **given}, index + 1)
        except QTargetError as error:
            if self.source.malformed == "drop":
                return "malformed"
            leave = "data.source.malformed=drop leaves such rows out"
            raise QTargetError(f"{self.place(row, index)}: {error}; {leave}") from error

    def place(self, row: Row, index: int) -> str:
        """Where a row stands, in words."""
        line = f" ({row.location})" if isinstance(row, Cells) else ""
        return f"{self.source.called}, row {index + 1} of {self.split}{line}"


def adapted(adapt: Adapt | None, row: Row) -> Row | None:
    """The columns that an adapter makes of a row; None where it leaves the row out."""
    if adapt is None:
        return {}
    try:
        return adapt(row)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise QTargetError(
            f"{type(adapt).__name__} can't read its {listed(adapt.reads)}: {type(error).__name__}: {str(error)[:200]}"
        ) from error


def untyped(row: Row) -> Row:
    """Without what the types of a table put into every object of a column."""
    return row if isinstance(row, Cells) else {column: without_nulls(value) for column, value in row.items()}


def several(value: Any) -> list[Any]:
    """A list of values, also of one."""
    return list(value) if isinstance(value, list | tuple) else [value]
