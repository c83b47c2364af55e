"""Range checks: Hydra checks no types, so whatever it makes checks its own fields, by these."""

from __future__ import annotations

from collections.abc import Mapping

from qtarget.errors import QTargetError

SOURCES = ("policy", "prior", "teacher")


def number(name: str, value: object, low: float, high: float = float("inf")) -> None:
    """Raise unless `value` is a number in [low, high]."""
    legal = f"[{low:g}, {high:g}]" if high != float("inf") else f"[{low:g}, ∞)"
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise QTargetError(f"{name} must lie in {legal}, got {value!r}")


def source(value: object) -> None:
    """Raise unless `value` names a distribution that holds a probability of the label."""
    if value not in SOURCES:
        raise QTargetError(f"source must be one of {', '.join(SOURCES)}, got {value!r}")


def label_needs(source: str) -> Mapping[str, str]:
    """What a part needs that reads only the label's probability under `source`."""
    return {} if source == "policy" else {source: "label"}
