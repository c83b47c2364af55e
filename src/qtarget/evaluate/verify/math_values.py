"""What a mathematical answer is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Words:
    """An answer in words: "even", "Monday"."""

    text: str


@dataclass(frozen=True)
class Scalar:
    """A number or an expression of sympy, None where it can't be read; and what is written around it.

    digits, place: significant digits and the power of ten of the last one, of a decimal (`0.333`: 3, −3); digits 0: no
    decimal. mark: "%", "°" or "_b" for a number in base b. unit: words behind it.
    """

    text: str
    expr: Any
    digits: int = 0
    place: int = 0
    mark: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Several:
    """Answers with commas between them: in brackets, or "" where there are none. Half-open intervals too.

    joined: "and" or "or", where that stands between them.
    """

    items: tuple[Value, ...]
    left: str = ""
    right: str = ""
    joined: str = field(default="", compare=False)


@dataclass(frozen=True)
class Union:
    """Intervals and sets, joined."""

    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Difference:
    """A set without another's members."""

    whole: Value
    removed: Value


@dataclass(frozen=True)
class Ratio:
    """Parts with colons between them, 1:2 or 3:30; half: "am" or "pm" of a time of day."""

    parts: tuple[Scalar, ...]
    half: str = ""


@dataclass(frozen=True)
class Relation:
    """Sides with signs between them, `signs[i]` behind `sides[i]`: = ≠ < > ≤ ≥ ≈."""

    sides: tuple[Value, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A matrix, by rows."""

    rows: tuple[tuple[Value, ...], ...]


Value = Words | Scalar | Several | Union | Difference | Ratio | Relation | Table
