"""How many decimals the numbers of one column have, so that what differs looks different."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from qtarget.evaluate.scores import Score

SIGNIFICANT_WIDTH, SIGNIFICANT_VALUE = 2, 3
"""Significant digits of the narrowest interval's width, and of the largest value of a column without intervals."""
MOST = 9
ROUNDING = 1e-9
"""An interval narrower than this share of its ends is a point."""


def decimals_of_values(values: Iterable[float], least: int) -> int:
    """Three significant digits of the largest value, `least` decimals at least.

    >>> decimals_of_values([4.3e-05, 1e-06], 3), decimals_of_values([2.9, 4.3e-05], 3)
    (7, 3)
    """
    sizes = [abs(value) for value in values if math.isfinite(value)]
    return _decimals(max(sizes, default=0.0), SIGNIFICANT_VALUE, least)


def decimals_of_intervals(scores: Sequence[Score], least: int) -> int:
    """Two significant digits of the narrowest interval's width; of a point, which has none, of its value.

    >>> decimals_of_intervals([Score(0.0002, -0.0029, 0.0031)], 3)
    4
    """
    sizes = [size for score in scores if (size := _width(score)) and math.isfinite(size)]
    return _decimals(min(sizes, default=0.0), SIGNIFICANT_WIDTH, least)


def decimals_of_spans(spans: Iterable[tuple[float, float]], least: int) -> int:
    """Two significant digits of the widest span."""
    return _decimals(max((abs(high - low) for low, high in spans), default=0.0), SIGNIFICANT_WIDTH, least)


def fixed(value: float, decimals: int, sign: str = "") -> str:
    """A number as text; what rounds to zero has no minus. sign: "+" shows that of positive numbers too.

    >>> fixed(-0.0004, 3), fixed(-0.0004, 3, "+"), fixed(0.5, 1, "+")
    ('0.000', '+0.000', '+0.5')
    """
    return f"{value:{sign}z,.{decimals}f}"


def bracketed(score: Score, decimals: int, sign: str = "") -> str:
    """The mean with its interval: `5.517 [5.499, 5.535]`."""
    mean, low, high = (fixed(value, decimals, sign) for value in (score.mean, score.low, score.high))
    return f"{mean} [{low}, {high}]"


def _width(score: Score) -> float:
    width = score.high - score.low
    return width if width > ROUNDING * max(abs(score.low), abs(score.high)) else abs(score.mean)


def _decimals(size: float, significant: int, least: int) -> int:
    if not size or not math.isfinite(size):
        return least
    return min(max(least, significant - 1 - math.floor(math.log10(size))), max(least, MOST))
