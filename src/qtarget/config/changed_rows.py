"""Which configurations read rows with keys that an earlier build dropped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from qtarget.config.changed_inputs import HUB, JSONL, Node, file_state, local_files
from qtarget.data.example import SPANS

MESSAGE = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")
ROW = ("tools", "system", "history", SPANS)
WEIGHTS = ("weight", "train")
NEW = re.compile(("(?:" + "|".join((*MESSAGE, *ROW, *WEIGHTS)) + ")").encode())
"""In the bytes of a file: it may hold such a key."""
LINES = (".jsonl", ".json", ".ndjson")
TABLES = (".csv", ".tsv")


def reads_new_keys(source: Node) -> bool:
    """Whether a source reads local rows that hold such a key. Ids of the hub: never."""
    if source.get("_target_") == JSONL:
        path = Path(str(source.get("path")))
        return path.is_file() and _has_new_keys(*file_state(path))
    if source.get("_target_") != HUB or not source.get("messages") or source.get("streaming"):
        return False
    files = local_files(source, lambda file: file.suffix in (*LINES, ".parquet"))
    return any(_has_new_keys(*file_state(file)) for file in files)


@lru_cache(maxsize=256)
def _has_new_keys(file: Path, _size: int, _mtime: int, _ctime: int) -> bool:
    """Of Parquet, whose columns are typed: whether its schema names one."""
    if file.suffix == ".parquet":
        return bool(NEW.search(str(_parquet_schema(file)).encode()))
    with file.open("rb") as lines:
        return any(_is_new(line) for line in lines if NEW.search(line))


def _is_new(line: bytes) -> bool:
    """Whether a line that names such a key holds it; True for one that is no row by itself, as in an array."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return True
    if not isinstance(row, dict):
        return True
    messages = _messages(row)
    return (
        any(row.get(key) for key in ROW)
        or row.get("weight") not in (None, 1)
        or any(message.get(key) for message in messages for key in MESSAGE)
        or any(message.get(key) not in (None, 1) for message in messages for key in WEIGHTS)
    )


def _messages(row: Node) -> list[Node]:
    given = [message for value in row.values() if isinstance(value, list) for message in value]
    return [message for message in given if isinstance(message, dict)]


FILES = "qtarget.data.sources.data_files.Files"
FUNCTIONS = re.compile(rb'"functions"\s*:')


def reads_functions(source: Node) -> bool:
    """Whether a source reads local rows of messages, by their schema, beside OpenAI's older key for tools.

    A stream doesn't: no earlier build had one.
    """
    by_schema = not any(source.get(key) for key in ("messages", "prompt", "completion", "streaming"))
    if source.get("_target_") not in (JSONL, HUB, FILES) or not by_schema:
        return False
    files = local_files(source, lambda file: file.suffix in LINES)
    return any(_has_functions(*file_state(file)) for file in files)


@lru_cache(maxsize=256)
def _has_functions(file: Path, _size: int, _mtime: int, _ctime: int) -> bool:
    with file.open("rb") as lines:
        return any(_offers_functions(line) for line in lines if FUNCTIONS.search(line))


def _offers_functions(line: bytes) -> bool:
    return _holds(line, lambda row: row.get("functions") and row.get("messages"))


def reads_spans_of_messages(source: Node) -> bool:
    """Whether a source reads local rows whose messages weigh spans, a key that was refused unless it was ignored."""
    if source.get("unknown") != "ignore" or source.get("_target_") not in (JSONL, HUB, FILES):
        return False
    files = local_files(source, lambda file: file.suffix in (*LINES, *TABLES, ".parquet"))
    return any(_has_spans_of_messages(*file_state(file)) for file in files)


@lru_cache(maxsize=256)
def _has_spans_of_messages(file: Path, _size: int, _mtime: int, _ctime: int) -> bool:
    with file.open("rb") as lines:
        return any(_weighs_spans(line) for line in lines if SPANS.encode() in line)


def _weighs_spans(line: bytes) -> bool:
    return _holds(line, lambda row: any(message.get(SPANS) for message in _messages(row)))


def reads_spans_beside_messages(source: Node) -> bool:
    """Whether a source reads local rows with weights of spans beside a column of conversations, which nobody read."""
    if not source.get("messages") or source.get("_target_") not in (HUB, FILES):
        return False
    files = local_files(source, lambda file: file.suffix in (*LINES, *TABLES, ".parquet"))
    return any(_has_spans_of_rows(*file_state(file)) for file in files)


@lru_cache(maxsize=256)
def _has_spans_of_rows(file: Path, _size: int, _mtime: int, _ctime: int) -> bool:
    if file.suffix == ".parquet":
        return SPANS in _parquet_schema(file).names
    with file.open("rb") as lines:
        if file.suffix in TABLES:
            return SPANS.encode() in lines.readline()
        return any(_holds(line, lambda row: row.get(SPANS)) for line in lines if SPANS.encode() in line)


def _holds(line: bytes, wanted: Callable[[dict[str, Any]], Any]) -> bool:
    """Whether a line is a row that has it; True for one that is no row by itself, as of Parquet and in an array."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return True
    return not isinstance(row, dict) or bool(wanted(row))


def _parquet_schema(file: Path) -> Any:
    """Without columns where the file can't be read: the run itself says what is wrong."""
    import pyarrow.parquet  # takes a while, and only this kind of file needs it

    try:
        return pyarrow.parquet.read_schema(file)
    except (OSError, ValueError):
        return pyarrow.schema([])
