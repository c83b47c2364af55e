"""Values as overrides of a command line, which Hydra reads back as the same."""

from __future__ import annotations

import re
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from qtarget.errors import QTargetError

PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
OTHER_THAN_TEXT = ("null", "true", "false", "nan", "inf")
"""Words that Hydra reads as something else, in any case."""


def quoted(value: Any) -> str:
    """A value as Hydra's overrides take it, and read it back as the same: null, true, 1e-05, [a,'b c'], 'x=1'."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(quoted, value))}]"
    raise QTargetError(
        f"a {type(value).__name__} can't be a value of a sweep: {value!r}. Take text, numbers, booleans, null or lists "
        "of them; for the fields of a mapping name each by its dotted key"
    )


def _text(value: str) -> str:
    if "${" in value or "\0" in value:
        raise QTargetError(f"{value!r} can't be a value of a sweep: it would be read as a reference to another key")
    if PLAIN.fullmatch(value) and value.lower() not in OTHER_THAN_TEXT:
        return value
    return QuotedString(value, Quote.single).with_quotes()


def override(key: str, value: Any) -> str:
    """key=value, of a point of a sweep. Raises QTargetError with the key for what has no such text."""
    try:
        return f"{key}={quoted(value)}"
    except QTargetError as error:
        raise QTargetError(f"{key.lstrip('+')}: {error}") from error
