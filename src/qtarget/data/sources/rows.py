"""`qtarget.read_rows`: the rows of a file as training reads them."""

from __future__ import annotations

from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

from qtarget.data.example import Demonstration
from qtarget.data.sources.conversation import listed
from qtarget.data.sources.hub import Hub
from qtarget.data.sources.jsonl import Jsonl
from qtarget.errors import QTargetError

MAPPED = ("messages", "prompt", "completion")


def read_rows(path: str | Path, **fields: Any) -> list[Demonstration]:
    r"""All rows of a file, a folder or a data set of the hub as demonstrations with `.messages`, `.completion`, `.row`.

    path: a file, a folder or an id as `data.source.path` names it. fields: those of `data.source`:
    prompt="{question}\n{options}", completion="answer", messages="turns", system=…, where=…, verifier=… (see
    qtarget.data.sources.data_files.Files). Without messages, prompt and completion the schema is that of the first row.

    `.row` is the row's number in a file, from 1 (the line of a .jsonl that is read by its schema).
    Raises QTargetError: no such file, an unknown field or column, a row without the text that is asked of it.
    """
    by_schema = Path(path).suffix == ".jsonl" and not fields.keys() & set(MAPPED)
    kind: Any = Jsonl if by_schema else Hub
    known = [field.name for field in fields_of(kind) if field.name != "path"]
    if unknown := sorted(fields.keys() - set(known)):
        raise QTargetError(f"read_rows has no field {listed(unknown)} for {path}; its fields: {', '.join(known)}")
    if by_schema:
        fields = {"heldout_share": 0.0, **fields}
    source: Hub | Jsonl = kind(path=str(path), **fields)
    return source.rows("train", None)
