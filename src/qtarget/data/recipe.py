"""What a preparation depends on, by name: another recipe gives other examples, and the same one gives the same.

Sources are known by what their files hold, not by names and times; code by its text. What isn't known so has none: a
class of the user's may read whatever it likes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from qtarget.data.sources.data_files import Files
from qtarget.data.sources.loading import is_file_name, is_local, table_files
from qtarget.files import local_files

if TYPE_CHECKING:
    from qtarget.data.module import DataConfig

PACKAGE = Path(__file__).resolve().parents[1]
CODE = ("data", "forked.py", "isolated.py", "settings.py", "checks.py")
"""Of the package: what reads, spoils, renders, tokenises, cuts and stores rows."""
LIBRARIES = (
    "datasets",
    "jinja2",
    "numpy",
    "pyarrow",
    "reasoning-gym",
    "sympy",
    "tokenizers",
    "transformers",
)
"""Whose versions may change an example: pyarrow reads Parquet; numpy writes its narrow numbers and, with sympy, the
problems of reasoning-gym (which pins its other libraries). Of Python the minor version: random numbers and Unicode.
"""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
NO_CHANGE = ("keep", "workers", "max_length")
"""Fields of a DataConfig that change nothing, or that the limit of tokens stands for."""
FILES = ("path", "files", "heldout", "heldout_source")
"""Fields that may name files."""
OF_A_PLACE = ("name_or_path", "vocab_file", "merges_file", "tokenizer_file", "is_local", "local_files_only")
"""Arguments of a tokenizer that say where it came from."""


class UnknownContentError(Exception):
    """Something that rows are made by is of a kind whose content isn't known; says what."""


def recipe(config: DataConfig, tokenizer: PreTrainedTokenizerBase, limit: int) -> dict[str, str]:
    """Name → digest, or the value itself. limit: tokens that a row may have. Raises UnknownContentError."""
    data = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in NO_CHANGE}
    sources = {"source": data.pop("source"), "heldout_source": data.pop("heldout_source")}
    return {
        "sources": _digest(_content(sources)),
        "noise": json.dumps(_content(data.pop("noise")), sort_keys=True),
        "settings": json.dumps(_content(data), sort_keys=True),
        "limit": str(limit),
        "tokenizer": _digest(_tokenizer(tokenizer)),
        "code": code_digest(PACKAGE),
        "libraries": json.dumps({"python": PYTHON} | {name: _version(name) for name in LIBRARIES}),
    }


def recipe_digest(made_by: Mapping[str, str]) -> str:
    """16 hex digits."""
    return _digest(made_by)[:16]


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "none"


@cache
def code_digest(package: Path) -> str:
    """Of the source files of a copy of qtarget that make examples of rows."""
    digest = hashlib.sha256()
    for file in code_files(package):
        digest.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def code_files(package: Path) -> list[Path]:
    parts = [package / name for name in CODE]
    return sorted(file for part in parts for file in (part.rglob("*.py") if part.is_dir() else [part]))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _content(value: Any) -> Any:
    """As plain data, in which files are what they hold."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return [[_content(key), _content(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_content(item) for item in value]
    kind = type(value)
    if not is_dataclass(value) or not kind.__module__.startswith("qtarget."):
        raise UnknownContentError(f"{kind.__module__}.{kind.__qualname__}")
    held = {field.name: getattr(value, field.name) for field in fields(value)}
    named = {name: _with_files(item) if name in FILES else _content(item) for name, item in held.items()}
    tables = {"tables": _tables(value)} if isinstance(value, Files) and not is_local(value) else {}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **named, **tables}


def _with_files(value: Any) -> Any:
    """The same, where names of local files and folders are what these hold; others are of the hub."""
    if isinstance(value, Mapping):
        return [[key, _with_files(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_with_files(item) for item in value]
    if not isinstance(value, str):
        return _content(value)
    path = Path(value).expanduser()
    files = local_files(path)
    if not files:
        return value
    return [path.name, [[str(file.relative_to(path)), file_digest(file)] for file in files]]


def file_digest(path: Path) -> str:
    """Of all that a file holds."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tables(source: Files) -> list[list[Any]]:
    """What `datasets` has made of a data set of the hub, by split."""
    splits = [name for name in dict.fromkeys((source.train, source.heldout)) if name and not is_file_name(name)]
    return [[split, [file_digest(file) for file in table_files(source, split)]] for split in splits]


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnknownContentError("a tokenizer without a fast form")
    backend.no_padding()  # transformers sets both anew for every text
    backend.no_truncation()
    given = {key: str(value) for key, value in tokenizer.init_kwargs.items() if key not in OF_A_PLACE}
    return {
        "class": type(tokenizer).__name__,
        "tokens": backend.to_str(),
        "template": tokenizer.chat_template,
        "special": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        "given": given,
    }


def sources_of(source: Any) -> Iterator[Any]:
    """A source, and the parts of a mixture."""
    parts = getattr(source, "parts", None)
    if isinstance(parts, Mapping):
        for part in parts.values():
            yield from sources_of(part)
    else:
        yield source
