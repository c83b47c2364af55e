"""Which models' conversations are written or tokenised otherwise than by an earlier build."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtarget.model.folders import model_folder, names_a_folder

_MARKED = re.compile(rb'"type"\s*:\s*"(Metaspace|Prepend)"|"add_prefix_space"\s*:\s*true')
"""Of a tokenizer.json: what puts a mark before a text, so that a reply was read as if a text began with it."""
_SPECIAL = re.compile(rb'"content"\s*:\s*("(?:[^"\\]|\\.)*")[^{}]*"special"\s*:\s*true')
_OTHER = ("strftime_now", "<|return|>", "<|END_RESPONSE|>")
"""In templates: today's date, and ends of turn that were taken for the first special token behind a reply."""


def is_written_otherwise(config: Mapping[str, Any]) -> bool:
    """Of a resolved configuration, as far as the files beside it tell: a model of the hub is not looked up."""
    model = config["model"]
    folder, own = _folder(model.get("name")), model.get("chat_template")
    if any(mark in (own or _template(folder)) for mark in _OTHER):
        return True
    tokenizer = _bytes(folder, "tokenizer.json").partition(b'"vocab"')[0]
    return bool(_MARKED.search(tokenizer)) or _holds_a_token(config["data"], tokenizer)


def _folder(name: Any) -> Path | None:
    return model_folder(str(name)) if isinstance(name, str) and names_a_folder(name) else None


def _template(folder: Path | None) -> str:
    files = ("chat_template.jinja", "tokenizer_config.json")
    return "".join(_bytes(folder, file).decode(errors="replace") for file in files)


def _holds_a_token(data: Mapping[str, Any], tokenizer: bytes) -> bool:
    """Whether a local file of rows spells one of the tokenizer's special tokens."""
    tokens = {json.loads(token).encode() for token in _SPECIAL.findall(tokenizer)} - {b""}
    return bool(tokens) and any(token in content for content in _rows(data) for token in tokens)


def _rows(node: Mapping[str, Any]) -> list[bytes]:
    held = [content for value in node.values() if isinstance(value, Mapping) for content in _rows(value)]
    path = node.get("path")
    return [*held, Path(path).expanduser().read_bytes()] if isinstance(path, str) and _is_rows(path) else held


def _is_rows(path: str) -> bool:
    file = Path(path).expanduser()
    return file.suffix in (".jsonl", ".json", ".csv") and file.is_file()


def _bytes(folder: Path | None, name: str) -> bytes:
    return (folder / name).read_bytes() if folder is not None and (folder / name).is_file() else b""
