"""Rows of CSV and JSON files as they stand in them. Nothing is guessed: what is text in the file stays that text.

CSV (RFC 4180, with any one-character delimiter) holds text alone: 00501, 1.10, NA and True are these letters, and an
empty cell is "". JSON holds text, numbers (see `written.Number`), true and false, and null, which is as if the key
weren't there. Files are UTF-8, with or without a byte order mark; .gz, .bz2 and .xz are read as what they hold.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from qtarget.data.sources.conversation import kind
from qtarget.data.sources.written import HOOKS, Twice, WrittenNumber, parsed
from qtarget.errors import QTargetError

FORMATS = {".jsonl": "json", ".json": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv"}
PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
LONGEST = 2**31 - 1
"""Characters of a cell; Python's csv stops at 131072 unless its limit is raised."""
DELIMITERS = {"\t": "tabs", ";": "semicolons", "|": "bars"}


NARROW = ("float16", "float32")
"""Types of columns whose numbers Python's own floats write with digits that aren't theirs."""


Place = Mapping[str, Any]
"""Where in a table a row ends, as plain data."""


class Cells(dict[str, Any]):
    """The cells of a row by column, and where it stands: ("rows.csv, line 3"). is_text: cells can't be but text."""

    def __init__(self, cells: Mapping[str, Any], location: str, *, is_text: bool) -> None:
        super().__init__(cells)
        self.location = location
        self.is_text = is_text

    def only(self, columns: Iterable[str]) -> Cells:
        """These columns, None for what isn't there."""
        return Cells({column: self.get(column) for column in columns}, self.location, is_text=self.is_text)


@dataclass(frozen=True)
class FilePart:
    """Rows `start` to before `stop` (None: the end) of files, one file after the other."""

    files: tuple[Path, ...]
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class FileRows:
    """The rows of files of one format ("csv" or "json"), part after part, read anew at every pass.

    delimiter: of CSV; None: a comma, in a .tsv a tab. columns: those that are given, None: all there are.
    """

    parts: tuple[FilePart, ...]
    form: str
    delimiter: str | None = None
    columns: tuple[str, ...] | None = None

    def __iter__(self) -> Iterator[Cells]:
        for part in self.parts:
            rows = (row for file in part.files for row in self._rows(file))
            yield from map(self._of_columns, islice(rows, part.start, part.stop))

    def behind(self, place: Place | None) -> Iterator[tuple[Cells, Place]]:
        """The rows of whole files behind a place (None: all), each with the place behind it."""
        files = [file for part in self.parts for file in part.files]
        start = place or {"file": 0, "rows": 0}
        for number in range(start["file"], len(files)):
            done = start["rows"] if number == start["file"] else 0
            for rows, row in enumerate(islice(self._rows(files[number]), done, None), done + 1):
                yield self._of_columns(row), {"file": number, "rows": rows}

    def _of_columns(self, row: Cells) -> Cells:
        return row if self.columns is None else row.only(self.columns)

    def _rows(self, file: Path) -> Iterator[Cells]:
        yield from _csv(file, self.delimiter) if self.form == "csv" else _json(file)

    @property
    def column_names(self) -> list[str]:
        """Every column that a row has, in the order in which they are met. Reads all rows of JSON."""
        if self.form == "csv":
            files = (file for part in self.parts for file in part.files)
            return list(dict.fromkeys(name for file in files for name in _header(file, self.delimiter)))
        return list(dict.fromkeys(name for row in self for name in row))

    def missing(self, columns: Sequence[str]) -> list[str]:
        """Those that no row has. Reads no further than it must."""
        if self.form == "csv":
            held = set(self.column_names)
            return [column for column in columns if column not in held]
        left = list(columns)
        for row in self:
            left = [column for column in left if column not in row]
            if not left:
                break
        return left

    def first(self, count: int) -> FileRows:
        """The first rows of whole files."""
        return replace(self, parts=(FilePart(tuple(file for part in self.parts for file in part.files), 0, count),))

    def select_columns(self, columns: Sequence[str]) -> FileRows:
        return replace(self, columns=tuple(columns))

    def at(self, indices: Sequence[int]) -> Iterator[Cells]:
        """The rows at these indices, in the order of `indices`."""
        wanted = set(indices)
        held = {index: row for index, row in enumerate(self) if index in wanted}
        return (held[index] for index in indices)


@dataclass(frozen=True)
class Typed:
    """A table of `datasets`, whose columns have types, such as Parquet's."""

    table: Any

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return self._written(self.table)

    def behind(self, place: Place | None) -> Iterator[tuple[Mapping[str, Any], Place]]:
        """The rows of a stream of `datasets` behind a place (None: all), each with the place behind it."""
        self.table.load_state_dict(deepcopy(place))  # which it writes to
        for row in self._written(self.table):
            yield row, self.table.state_dict()

    def _written(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """0.1 of a column of 32 bits is 0.1, and not 0.10000000149011612, which `datasets` makes of it."""
        import numpy as np

        kinds = {column: str(getattr(feature, "dtype", "")) for column, feature in self.table.features.items()}
        narrow = {column: getattr(np, kind) for column, kind in kinds.items() if kind in NARROW}
        for row in rows:
            held = [column for column in narrow if row[column] is not None]
            yield (
                {**row, **{column: WrittenNumber(str(narrow[column](row[column]))) for column in held}} if held else row
            )

    @property
    def column_names(self) -> list[str]:
        return list(self.table.column_names)

    def missing(self, columns: Sequence[str]) -> list[str]:
        return [column for column in columns if column not in self.table.column_names]

    def select_columns(self, columns: Sequence[str]) -> Typed:
        return Typed(self.table.select_columns(list(columns)))

    def at(self, indices: Sequence[int]) -> Iterator[Mapping[str, Any]]:
        return self._written(self.table[index] for index in indices)


Table = FileRows | Typed


def is_same(row: Mapping[str, Any], column: str, value: Any) -> bool:
    """Whether a column holds a value; in a file of text alone, whether it is written there as that value is."""
    cell = row[column]
    if cell == value or not (isinstance(row, Cells) and row.is_text and isinstance(cell, str)):
        return bool(cell == value)
    if value is None or isinstance(value, bool):
        return cell.strip().lower() == ("" if value is None else str(value).lower())
    return isinstance(value, int | float) and _number(cell) == value


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


# CSV


def _csv(file: Path, delimiter: str | None) -> Iterator[Cells]:
    with _opened(file) as lines:
        reader = _reader(file, lines, delimiter)
        header, twice = _read(file, reader), Twice()
        if header is None:
            raise QTargetError(f"{file} is empty: its first line must name the columns")
        several = {name: twice for name in header if header.count(name) > 1}
        while True:
            line = reader.line_num + 1
            cells = _read(file, reader)
            if cells is None:
                return
            if any(cells[len(header) :]):
                raise QTargetError(
                    f"{file}, line {line}: {len(cells)} cells, and the header names {len(header)} columns: put cells "
                    "that hold the delimiter between quotes"
                )
            if cells:
                where = f"{file.name}, line {line}"
                yield Cells({**dict(zip(header, cells, strict=False)), **several}, where, is_text=True)


def _read(file: Path, reader: Any) -> list[str] | None:
    """The next cells, [] for an empty line; None at the end."""
    try:
        return next(reader, None)
    except csv.Error as error:
        raise QTargetError(
            f"{file}, line {reader.line_num}: {error}. Put a cell that holds quotes, delimiters or line breaks between "
            'quotes, and write each quote in it twice: "she said ""yes"""'
        ) from error


def _header(file: Path, delimiter: str | None) -> list[str]:
    with _opened(file) as lines:
        return _read(file, _reader(file, lines, delimiter)) or []


def _reader(file: Path, lines: IO[str], delimiter: str | None) -> Any:
    csv.field_size_limit(LONGEST)
    return csv.reader(lines, delimiter=delimiter or ("\t" if _suffix(file) == ".tsv" else ","), strict=True)


def other_delimiter(columns: Sequence[str]) -> str:
    """What to do where a header was read as one column and looks like several; "" elsewhere."""
    for letter, name in DELIMITERS.items():
        if len(columns) == 1 and letter in columns[0]:
            return f". The header holds {name}: set data.source.delimiter={letter!r}"
    return ""


# JSON


def _json(file: Path) -> Iterator[Cells]:
    """Objects, one a line; or an array of objects; or one object of columns, as pandas writes tables."""
    with _opened(file) as lines:
        written = (line for line in lines if line.strip())
        first, is_only = next(written, ""), next(written, None) is None
    if first.lstrip().startswith("[") or not _is_whole(first) or (is_only and _is_indexed(parsed(first))):
        yield from _document(file)
        return
    with _opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _row(_parsed(file, number, line), file, f"line {number}")


def _is_whole(line: str) -> bool:
    """Whether a line is JSON of its own."""
    try:
        parsed(line)
    except QTargetError:
        return False
    return True


def _is_indexed(value: Any) -> bool:
    """Whether a value is a table as pandas 3 writes it by default, column → index → cell: all have the same indices."""
    return _holds(value, dict) and len({tuple(column) for column in value.values()}) == 1


def _document(file: Path) -> Iterator[Cells]:
    with _opened(file) as opened:
        text = opened.read()
    decoder, start = json.JSONDecoder(**HOOKS), _next(text, 0)
    values = []
    while start < len(text):
        location = f"line {text.count(chr(10), 0, start) + 1}"
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            raise QTargetError(f"{file}, {location}: not JSON ({error})") from error
        values.append((value, location))
        start = _next(text, end)
    if len(values) == 1:
        values = _unfolded(values[0][0])
    yield from (_row(value, file, location) for value, location in values)


def _next(text: str, start: int) -> int:
    """The index of the next character that isn't space."""
    while text[start : start + 1].isspace():
        start += 1
    return start


def _unfolded(value: Any) -> list[tuple[Any, str]]:
    """The rows of a document that is one value, and their locations."""
    if isinstance(value, list):
        rows = [{"text": item} if isinstance(item, str) else item for item in value]
    elif _holds(value, dict):  # pandas' default: column → index → value
        names = list(dict.fromkeys(index for column in value.values() for index in column))
        rows = [{name: column.get(index) for name, column in value.items()} for index in names]
    elif _holds(value, list) and len({len(column) for column in value.values()}) == 1:
        rows = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    else:
        rows = [value]
    return [(row, f"row {number}") for number, row in enumerate(rows, start=1)]


def _holds(value: Any, form: type) -> bool:
    """Whether a value is an object of nothing but lists, or nothing but objects."""
    return isinstance(value, dict) and bool(value) and all(isinstance(column, form) for column in value.values())


def _parsed(file: Path, number: int, line: str) -> Any:
    try:
        return parsed(line)
    except QTargetError as error:
        raise QTargetError(f"{file}, line {number}: {error}") from error


def _row(value: Any, file: Path, location: str) -> Cells:
    if not isinstance(value, dict):
        raise QTargetError(f"{file}, {location}: expected an object of columns, got {kind(value)}")
    return Cells(value, f"{file.name}, {location}", is_text=False)


@contextmanager
def _opened(file: Path) -> Iterator[IO[str]]:
    """The file as text, its line ends as they are; bytes that aren't UTF-8 as lone surrogates.

    Raises QTargetError, also while it is read: for UTF-16, and for a packed file that is damaged or cut.
    """
    opener: Any = PACKED.get(file.suffix, open)
    try:
        with opener(file, "rb") as raw:
            if raw.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                raise QTargetError(f"{file} is UTF-16: save it as UTF-8")
        with opener(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            yield text
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        damaged = file.suffix in PACKED and getattr(error, "errno", None) is None
        way = ": it is damaged, or not packed as its name says" if damaged else ""
        raise QTargetError(f"can't read {file}: {error}{way}") from error


def form(file: Path) -> str | None:
    """The format of a file by its name, "csv" or "json"; None for one of another kind."""
    return FORMATS.get(_suffix(file))


def _suffix(file: Path) -> str:
    return (file.with_suffix("") if file.suffix in PACKED else file).suffix.lower()
