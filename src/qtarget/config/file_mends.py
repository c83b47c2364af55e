"""Which configurations read local CSV or JSON files whose text an earlier build took for numbers, dates or nothing.

Up to 0.1.0 `datasets` 5.2 read them: pandas typed the columns of CSV, and in JSON a number among texts made numbers of
the texts that look like one, and a block of ISO dates became times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from qtarget.data.sources.conversation import columns_of
from qtarget.data.sources.file_rows import FilePart, FileRows, form
from qtarget.data.sources.written import WrittenNumber, parsed
from qtarget.errors import QTargetError

Node = Mapping[str, Any]
Columns = tuple[str, ...] | None
HUB, JSONL = "qtarget.data.sources.hub.Hub", "qtarget.data.sources.jsonl.Jsonl"
TEXTS = ("messages", "prompt", "completion", "answer", "key")
PARQUET = ".parquet"
BLOCK = 10_000
"""Rows of which pandas chose the types together."""
LARGEST = 1 << 28
"""Bytes of a file that is looked through; a larger one counts as retyped."""
NOTHING = {
    "",
    "#n/a",
    "#n/a n/a",
    "#na",
    "-1.#ind",
    "-1.#qnan",
    "-nan",
    "1.#ind",
    "1.#qnan",
    "<na>",
    "n/a",
    "na",
    "nan",
}
NOTHING |= {"null", "none", "true", "false"}
"""What pandas 3 reads as nothing, or as true or false, in lower case."""
DATE = re.compile(r"\d{4}-\d\d-\d\d")


def is_retyped(source: Node) -> bool:
    """Whether a source of data reads such a file. Ids of the hub: never."""
    try:
        if source.get("_target_") == HUB:
            columns = _columns(source)
            if any(_is_narrow(*facts(file), columns) for file in _files(source, PARQUET)):
                return True
            return any(_is_retyped(*facts(file), columns, source.get("delimiter")) for file in _files(source))
        path = Path(str(source.get("path")))
        judged = source.get("_target_") == JSONL and source.get("verifier")
        return bool(judged) and path.is_file() and _is_reworded(*facts(path))
    except QTargetError:
        return True  # the run itself says what is wrong


def _files(source: Node, suffix: str | None = None) -> Iterator[Path]:
    """Local files that a source names, or that lie in its folder: CSV and JSON, or those of a suffix."""
    named = [source.get("path"), *(source.get("files") or {}).values()]
    for one in [one for many in named for one in (many if isinstance(many, list) else [many]) if one]:
        path = Path(str(one)).expanduser()
        yield from (
            file for file in (path.rglob("*") if path.is_dir() else [path]) if _is_of(file, suffix) and file.is_file()
        )


def _is_of(file: Path, suffix: str | None) -> bool:
    return file.suffix.lower() == suffix if suffix else form(file) is not None


@lru_cache(maxsize=256)
def _is_narrow(file: Path, _size: int, _mtime: int, _ctime: int, columns: Columns) -> bool:
    """Whether a column of Parquet that is shown as text holds numbers of 16 or 32 bits, once shown with 64's digits."""
    import pyarrow  # takes a while, and only this kind of file needs it
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
    except (OSError, pyarrow.ArrowException):
        return False  # the run itself says what is wrong
    narrow = {field.name for field in schema if field.type in (pyarrow.float32(), pyarrow.float16())}
    return bool(narrow & (narrow if columns is None else set(columns)))


def _columns(source: Node) -> Columns:
    """Those that are read; None: any."""
    options = source.get("options")
    if source.get("adapt"):
        return None
    named = [column for field in TEXTS if source.get(field) for column in columns_of(source[field])]
    named += [options] if isinstance(options, str) else options if isinstance(options, list) else []
    return tuple({*named, *(source.get("where") or {})})


def facts(file: Path) -> tuple[Path, int, int, int]:
    """A file as it is now."""
    facts = file.stat()
    return file, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


@lru_cache(maxsize=256)
def _is_retyped(file: Path, size: int, _mtime: int, _ctime: int, columns: Columns, delimiter: str | None) -> bool:
    if size > LARGEST:
        return True
    kind = form(file)
    assert kind
    rows = FileRows((FilePart((file,)),), kind, delimiter, columns)
    return _is_csv_retyped(rows) if kind == "csv" else _is_json_retyped(rows)


def _is_csv_retyped(rows: FileRows) -> bool:
    """A cell that stood for nothing, or a block of a column that is all numbers."""
    left = iter(rows)
    while block := list(islice(left, BLOCK)):
        for column in block[0]:
            cells = [str(row[column] or "").strip() for row in block]
            if any(cell.lower() in NOTHING for cell in cells) or all(map(_is_number, cells)):
                return True
    return False


def _is_json_retyped(rows: FileRows) -> bool:
    """A number that is written in another way than Python's, a date, or numbers beside texts that look like one."""
    texts: set[str] = set()
    others: set[str] = set()
    for place, value in (told for row in rows for told in _values(row)):
        if isinstance(value, WrittenNumber) and str(float(value)) != value.written:
            return True
        if isinstance(value, str) and DATE.match(value):
            return True
        if not isinstance(value, str):
            others.add(place)
        elif _is_number(value) or value.lower() in NOTHING:
            texts.add(place)
        if texts & others:
            return True
    return False


def _values(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(path of keys, value) of everything that isn't null."""
    if isinstance(node, Mapping):
        yield from (told for key, value in node.items() for told in _values(value, f"{place}.{key}"))
    elif isinstance(node, list):
        yield from (told for value in node for told in _values(value, f"{place}[]"))
    if node is not None and place:
        yield place, node


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=256)
def _is_reworded(file: Path, size: int, _mtime: int, _ctime: int) -> bool:
    """Whether an answer is a number that Python writes in another way than the file: 1.50, 1e3."""
    if size > LARGEST:
        return True
    with file.open("rb") as lines:
        answers = (parsed(line).get("answer") for line in lines if line.strip())
        return any(isinstance(answer, WrittenNumber) and str(float(answer)) != answer.written for answer in answers)
