"""What a summary keeps of a metric with a better end: the best finite value, and the last one whatever it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

BETTER = {"min": min, "max": max}


def finite(value: float | None) -> bool:
    """Whether a measurement is a number; null is what a record holds of NaN and ±inf."""
    return value is not None and math.isfinite(value)


def shown(value: float | None) -> float | str:
    """A measurement as W&B's summaries show it: text for NaN and ±inf, which its client drops as numbers (0.31.0).

    >>> shown(0.5), shown(math.nan), shown(-math.inf)
    (0.5, 'NaN', '-Infinity')
    """
    if value is None or math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


@dataclass
class Best:
    """metric → its better end ("min" or "max") → the best so far, and "last" → the last, for those in `ends`.

    W&B's own `define_metric(summary="min")` compares with NaN and keeps it for good (0.31.0), so the best is taken
    here: NaN and ±inf never win, and are seen as the last value.
    """

    ends: dict[str, str] = field(default_factory=dict)
    _best: dict[str, float] = field(default_factory=dict)

    def update(self, metrics: Mapping[str, float]) -> dict[str, dict[str, float | str]]:
        """What a summary holds from now on of the metrics with a better end among these."""
        return {name: self._kept(name, value) for name, value in metrics.items() if name in self.ends}

    def _kept(self, name: str, value: float) -> dict[str, float | str]:
        end = self.ends[name]
        if finite(value):
            self._best[name] = BETTER[end](value, self._best.get(name, value))
        best: dict[str, float | str] = {end: self._best[name]} if name in self._best else {}
        return {**best, "last": shown(value)}
