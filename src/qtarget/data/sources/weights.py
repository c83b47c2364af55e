"""Factors of the loss that rows write down: of a row, a message, a span of a message's characters."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from qtarget.data.example import WeightedSpan
from qtarget.errors import QTargetError


def weight(value: object, name: str) -> float:
    """A factor of the loss. Raises QTargetError unless it is a number of at least 0."""
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise QTargetError(f"{name} must be a number of at least 0, got {str(value)[:40]!r}")
    return float(value)


def row_weight(value: object, name: str) -> float:
    """The factor of a row's loss; in a file of text alone it is written out, and an empty cell is none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return 1.0
    try:
        return weight(float(value) if isinstance(value, str) else value, name)
    except ValueError:
        return weight(value, name)


def span_weights(value: object, name: str, length: int, of: str) -> list[WeightedSpan]:
    """Factors on characters of a message, in the order in which they stand there; null: none.

    name, of: the key, and which message it is over, of so many characters. Raises QTargetError for what is no list of
    [start, stop, weight], and for spans that share a character.
    """
    given = [] if value is None or value == "" else value
    if not isinstance(given, list) or not all(
        isinstance(one, list | tuple) and len(one) == 3 and is_span([_end(one[0]), _end(one[1])], length)
        for one in given
    ):
        raise QTargetError(
            f"{name} must hold [[start, stop, weight], …] over characters of {of}, which has {length} characters; got "
            f"{str(given)[:80]}"
        )
    spans = sorted((_end(start), _end(stop), weight(factor, "a span's weight")) for start, stop, factor in given)
    for (_, stop, _), (start, _, _) in pairwise(spans):
        if start < stop:
            raise QTargetError(f"{name} overlap at character {start}: give each character one weight")
    return spans


def _end(value: Any) -> Any:
    """An end of a span: a list of Parquet has one type, and beside weights its whole numbers are floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_span(span: Any, length: int) -> bool:
    """Whether it is [start, stop] of a text of so many characters, and not empty."""
    is_pair = isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)
    return is_pair and 0 <= span[0] < span[1] <= length
