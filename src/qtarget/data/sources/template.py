"""Text from the columns of a row: a column's name, or a text with names of columns in braces."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any

from qtarget.data.sources.conversation import kind, shown, text
from qtarget.errors import QTargetError


def columns_of(spec: str) -> list[str]:
    """The columns that a spec names. "{question}\\n{options}" is a template: names alone, `{{` for a brace."""
    return [name for _, name in _parts(spec) if name is not None]


def filled(spec: str, row: Mapping[str, Any], name: str) -> str:
    """The text of a spec for a row; raises QTargetError, with the field's name, where a column holds none."""
    written = "".join(literal + ("" if column is None else _shown(row, column)) for literal, column in _parts(spec))
    return text(written, f"{name} ({spec!r})")


def _parts(spec: str) -> list[tuple[str, str | None]]:
    """(literal text, column behind it or None) in order. A column is looked up and nothing else: no attributes."""
    if "{" not in spec:
        return [("", spec)]
    try:
        parsed = list(Formatter().parse(spec))
    except ValueError as error:
        raise QTargetError(f"the template {spec!r} can't be read: {error}; write {{{{ for a brace") from error
    for _, column, form, conversion in parsed:
        if column == "" or form or conversion:
            raise QTargetError(f"the template {spec!r} may hold names of columns in braces, and nothing beside them")
    return [(literal, column) for literal, column, _, _ in parsed]


def _shown(row: Mapping[str, Any], column: str) -> str:
    value = shown(row[column])
    if not isinstance(value, str):
        what = "NaN or an infinity" if isinstance(value, float) else kind(value)
        raise QTargetError(f"column {column!r} must hold text or numbers, got {what}")
    return value
