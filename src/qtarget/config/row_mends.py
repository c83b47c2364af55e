"""Which models and rows an earlier build read otherwise: other logits, other conversations, keys that were dropped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from qtarget.config.file_mends import HUB, JSONL, Node, facts
from qtarget.data.thought import is_control
from qtarget.errors import QTargetError
from qtarget.model.fingerprint import model_folder, names_a_folder

KEYS: Mapping[str, tuple[str, float | None, float | None]] = {
    "falcon_h1": ("lm_head_multiplier", 1.0, 1.0),
    "hyperclovax": ("logits_scaling", 1.0, 1.0),
    "inkling_text": ("logits_mup_width_multiplier", 24.0, 1.0),
    "mpt": ("logit_scale", None, None),
    "recurrent_gemma": ("logits_soft_cap", 30.0, None),
    "xlstm": ("output_logit_soft_cap", 30.0, None),
    "gemma3n": ("final_logit_softcapping", 30.0, None),
    "gemma4": ("final_logit_softcapping", None, None),
    "gemma4_unified": ("final_logit_softcapping", None, None),
}
"""model_type → the key that wasn't read, its value where config.json leaves it out, the value that does nothing."""

HUB_NAMES = re.compile(r"falcon-?h1|hyperclova|recurrent-?gemma|xlstm|inkling|gemma-?3n|gemma-?4", re.IGNORECASE)
"""Of the same families, where no config.json is at hand."""


def head_changed(config: Mapping[str, Any]) -> bool:
    """Whether a model with this configuration, as plain data, has other logits since."""
    known = KEYS.get(str(config.get("model_type")))
    if known is None:
        return False
    key, default, without = known
    held: Mapping[str, Any] = config.get("text_config") or config
    return bool(held.get(key, default) != without)


def named_head_changed(name: str) -> bool:
    """The same of a model by name: of a folder by its config.json, of a hub id by the family in its name."""
    if not names_a_folder(name):
        return HUB_NAMES.search(name) is not None
    try:
        text = (model_folder(name) / "config.json").read_text(encoding="utf-8")
        return head_changed(json.loads(text))
    except (OSError, ValueError, AttributeError, QTargetError):
        return False  # the job itself says what is missing


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
        return path.is_file() and _has_new_keys(*facts(path))
    if source.get("_target_") != HUB or not source.get("messages"):
        return False
    return any(_has_new_keys(*facts(file)) for file in _files(source))


def _files(source: Node) -> Iterator[Path]:
    named = [source.get("path"), *(source.get("files") or {}).values()]
    for one in [one for many in named for one in (many if isinstance(many, list) else [many]) if one]:
        path = Path(str(one)).expanduser()
        held = path.rglob("*") if path.is_dir() else [path]
        yield from (file for file in held if file.suffix in (*LINES, ".parquet") and file.is_file())


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
