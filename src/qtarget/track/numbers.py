"""Texts of a configuration as numbers on an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

DECADES = 1.4
"""From this spread on, in powers of ten, values stand on a logarithmic axis."""


def number(text: str) -> float | None:
    """The finite number that a text is, or None.

    >>> number("3e-05"), number("sft"), number("inf")
    (3e-05, None, None)
    """
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def numeric(values: Sequence[str]) -> bool:
    """Several numbers, and nothing else."""
    found = {number(value) for value in values}
    return len(found) > 1 and None not in found


def spread(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows the values better."""
    return min(values) > 0 and math.log10(max(values) / min(values)) >= DECADES
