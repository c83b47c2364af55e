"""Which configurations read local rows with keys that an earlier build dropped: tools, weights, thoughts, names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

Node = Mapping[str, Any]
HUB, JSONL = "qtarget.data.sources.hub.Hub", "qtarget.data.sources.jsonl.Jsonl"
MESSAGE = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")
ROW = ("tools", "system", "history", "span_weights")
WEIGHTS = ("weight", "train")
NEW = re.compile(("(?:" + "|".join((*MESSAGE, *ROW, *WEIGHTS)) + ")").encode())
"""In the bytes of a file: it may hold such a key."""
LINES = (".jsonl", ".json", ".ndjson")


def has_new_keys(source: Node) -> bool:
    """Whether a source reads local rows that hold such a key. Ids of the hub: never."""
    if source.get("_target_") == JSONL:
        path = Path(str(source.get("path")))
        return path.is_file() and _has_new_keys(*_facts(path))
    if source.get("_target_") != HUB or not source.get("messages"):
        return False
    return any(_has_new_keys(*_facts(file)) for file in _files(source))


def _files(source: Node) -> Iterator[Path]:
    named = [source.get("path"), *(source.get("files") or {}).values()]
    for one in [one for many in named for one in (many if isinstance(many, list) else [many]) if one]:
        path = Path(str(one)).expanduser()
        held = path.rglob("*") if path.is_dir() else [path]
        yield from (file for file in held if file.suffix in (*LINES, ".parquet") and file.is_file())


def _facts(file: Path) -> tuple[Path, int, int, int]:
    """A file as it is now."""
    facts = file.stat()
    return file, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


@lru_cache(maxsize=256)
def _has_new_keys(file: Path, _size: int, _mtime: int, _ctime: int) -> bool:
    """Of Parquet, whose columns are typed: whether its schema names one."""
    if file.suffix == ".parquet":
        import pyarrow.parquet  # takes a while, and only this kind of file needs it

        try:
            names = str(pyarrow.parquet.read_schema(file))
        except (OSError, ValueError):
            return False  # the run itself says what is wrong
        return bool(NEW.search(names.encode()))
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
    messages = [message for value in row.values() if isinstance(value, list) for message in value]
    held = [message for message in messages if isinstance(message, dict)]
    return (
        any(row.get(key) for key in ROW)
        or row.get("weight") not in (None, 1)
        or any(message.get(key) for message in held for key in MESSAGE)
        or any(message.get(key) not in (None, 1) for message in held for key in WEIGHTS)
    )
