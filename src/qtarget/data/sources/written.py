"""JSON as it is written: numbers keep their digits, and a key that stands twice is not one of its two values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from qtarget.errors import QTargetError

NOT_JSON = "not JSON"
"""How the message of a text that is none begins."""
DIGITS = 4000
"""Longer whole numbers are kept as they are written: Python converts up to 4300 digits (sys.set_int_max_str_digits)."""


class WrittenNumber(float):
    """A number of a JSON text, which shows as it is written there: 1.50 and 1e5 stay 1.50 and 1e5."""

    written: str

    def __new__(cls, written: str) -> WrittenNumber:
        number = super().__new__(cls, written)
        number.written = str(written)
        return number

    def __str__(self) -> str:
        return self.written


class Twice:
    """What stands under a key that an object has twice, with different values: none of them is *the* value."""

    def __repr__(self) -> str:
        return "two different values under one key"


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text. Raises QTargetError where it is none.

    Bytes that aren't UTF-8 become lone surrogates: text that holds one is refused where it is read, and only there.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig", errors="surrogateescape")
    try:
        return json.loads(text, **HOOKS)
    except RecursionError as error:
        raise QTargetError("nested too deeply to be read") from error
    except ValueError as error:
        raise QTargetError(f"{NOT_JSON} ({error})") from error


def number_text(value: float | Decimal) -> str | None:
    """How a number is written; None for NaN and the infinities, which stand for no number."""
    return str(value) if isinstance(value, WrittenNumber) or math.isfinite(value) else None


def _whole(written: str) -> float:
    return int(written) if written != "-0" and len(written) < DIGITS else WrittenNumber(written)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    for key, value in pairs:
        if result[key] != value:
            result[key] = Twice()
    return result


HOOKS: Mapping[str, Any] = {"parse_float": WrittenNumber, "parse_int": _whole, "object_pairs_hook": _object}
"""What `json.loads` and `json.JSONDecoder` are given."""
