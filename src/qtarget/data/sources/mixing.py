"""Which of several parts each row of a mixture comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping

from qtarget.errors import QTargetError


def interleaved(weights: Mapping[str, float], count: int) -> list[str]:
    """The part of each of `count` rows: every beginning has its parts as the weights have them, to the nearest rows.

    So a longer mixture begins with the shorter one.
    """
    total, taken = sum(weights.values()), dict.fromkeys(weights, 0)
    order = []
    for row in range(1, count + 1):
        behind = {name: weight / total * row - taken[name] for name, weight in weights.items()}
        order.append(max(behind, key=behind.__getitem__))
        taken[order[-1]] += 1
    return order


def check_weights(name: str, weights: Mapping[str, object]) -> None:
    """Raise unless there are parts, each with a weight above 0."""
    if not weights:
        raise QTargetError(f"{name} names no part: write {name}={{NAME: WEIGHT, …}}")
    for part, weight in weights.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 < weight < math.inf:  # type: ignore[operator]
            raise QTargetError(f"{name}.{part}: a weight must be a number above 0, got {weight!r}")
