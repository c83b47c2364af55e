"""The rows of a split while training reads them, in the order in which they stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qtarget.data.sources.file_rows import Place, Table
from qtarget.data.sources.row_reader import RowReader
from qtarget.errors import QTargetError

if TYPE_CHECKING:
    from qtarget.data.sources.data_files import Files


@dataclass(frozen=True)
class StreamedRow:
    """A row as it stands in its table, its index, and the place behind it."""

    row: Mapping[str, Any]
    index: int
    behind: Place


@dataclass(frozen=True)
class StreamedRows:
    """The rows of a split in their order, of which no more are held than are asked for."""

    table: Table
    reader: RowReader

    def behind(self, place: Place | None, index: int) -> Iterator[StreamedRow]:
        """Those behind a place (None: all), the first of which has this index. Raises QTargetError."""
        try:
            for row, behind in self.table.behind(place):
                yield StreamedRow(row, index, behind)
                index += 1
        except QTargetError:
            raise
        except Exception as error:  # hub, network, parsers and file systems each raise their own
            raise QTargetError(
                f"{self.reader.source.called}: can't read behind row {index} of {self.reader.split} "
                f"({type(error).__name__}: {error}): the same command goes on from the last state of the run"
            ) from error


def check_streamed(source: Files) -> None:
    """Raise QTargetError for settings that don't go with data.source.streaming."""
    if source.shuffle_buffer and not source.streaming:
        raise QTargetError(
            f"data.source.shuffle_buffer={source.shuffle_buffer} shuffles a stream; other rows are shuffled all "
            "together: leave it at 0, or set data.source.streaming=true"
        )
    if source.streaming and (source.pick or source.heldout_share or not source.train):
        raise QTargetError(
            "data.source.streaming=true reads the split data.source.train row by row, and data.source.pick and "
            ".heldout_share choose among all rows: leave these out, and hold out the first rows by "
            "data.heldout_rows=N, or others by data.source.heldout"
        )
