"""Which models' conversations are written or tokenised otherwise than by an earlier build."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtarget.data.control import is_control
from qtarget.model.folders import model_folder, names_a_folder

_MARKED = re.compile(rb'"type"\s*:\s*"(Metaspace|Prepend)"|"add_prefix_space"\s*:\s*true')
"""Of a tokenizer.json: what puts a mark before a text, so that a reply was read as if a text began with it."""
_ADDED = re.compile(rb'"content"\s*:\s*("(?:[^"\\]|\\.)*")[^{}]*"special"\s*:\s*(true|false)')
_OTHER = ("strftime_now", "<|return|>", "<|END_RESPONSE|>")
"""In templates: today's date, and ends of turn that were taken for the first special token behind a reply."""


def is_written_otherwise(config: Mapping[str, Any]) -> bool:
    """Of a resolved configuration, as far as the files beside it tell: a model of the hub is not looked up."""
    model = config["model"]
    folder, own = _folder(model.get("name")), model.get("chat_template")
    template = own or _template(folder)
    if any(mark in template for mark in _OTHER):
        return True
    tokenizer = _bytes(folder, "tokenizer.json").partition(b'"vocab"')[0]
    special, others = _added(tokenizer, b"true"), _added(tokenizer, b"false")
    if bool(_MARKED.search(tokenizer)) or any(is_control(token) and token in template for token in others):
        return True
    return any(token.encode() in content for content in _rows(config["data"]) for token in special)


def _folder(name: Any) -> Path | None:
    return model_folder(str(name)) if isinstance(name, str) and names_a_folder(name) else None


def _template(folder: Path | None) -> str:
    """Of chat_template.jinja and of tokenizer_config.json, which also lists tokens that a template doesn't write."""
    held = _bytes(folder, "tokenizer_config.json") or b"{}"
    own = _bytes(folder, "chat_template.jinja").decode(errors="replace")
    try:
        return f"{own}{json.loads(held).get('chat_template', '')}"
    except (ValueError, AttributeError):  # the job itself says what is wrong with it
        return own


def _added(tokenizer: bytes, special: bytes) -> set[str]:
    """Tokens that a tokenizer.json calls special (true), or doesn't (false)."""
    return {json.loads(token) for token, called in _ADDED.findall(tokenizer) if called == special} - {""}


def _rows(node: Mapping[str, Any]) -> list[bytes]:
    held = [content for value in node.values() if isinstance(value, Mapping) for content in _rows(value)]
    path = node.get("path")
    return [*held, Path(path).expanduser().read_bytes()] if isinstance(path, str) and _is_rows(path) else held


def _is_rows(path: str) -> bool:
    file = Path(path).expanduser()
    return file.suffix in (".jsonl", ".json", ".csv") and file.is_file()


def _bytes(folder: Path | None, name: str) -> bytes:
    return (folder / name).read_bytes() if folder is not None and (folder / name).is_file() else b""
