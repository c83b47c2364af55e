"""Range checks: Hydra checks no types, so whatever it makes checks its own fields, by these."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qtarget.errors import QTargetError


def number(name: str, value: object, low: float, high: float = float("inf")) -> None:
    """Raise unless `value` is a number in [low, high]."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and low <= value <= high)
    ):
        raise QTargetError(f"{name} must lie in {interval(low, high)}, got {value!r}")


def whole(name: str, value: object, low: int) -> None:
    """Raise unless `value` is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise QTargetError(f"{name} must be a whole number of at least {low}, got {value!r}")


def choice(name: str, value: object, legal: Sequence[object]) -> None:
    """Raise unless `value` is one of `legal`."""
    if value not in legal:
        raise QTargetError(f"{name} must be one of {', '.join(map(str, legal))}, got {value!r}")


def interval(low: float, high: float) -> str:
    return f"[{low:g}, {high:g}]" if high != float("inf") else f"[{low:g}, ∞)"
