"""Ratios and times of day: both are numbers with colons between them."""

from __future__ import annotations

import math
import re

import sympy

from qtarget.evaluate.verify.math_expressions import equal
from qtarget.evaluate.verify.math_values import Ratio, Scalar

ONE = Scalar("1", sympy.Integer(1))

_TIME = re.compile(r"0?(\d{1,2}):([0-5]\d)(?::([0-5]\d))?")
HALF = re.compile(r"\s*(?:\\text\s*\{\s*)?([ap])\.?\s*m\.?\s*\}?", re.IGNORECASE)


def ratios(gold: Ratio, said: Ratio) -> bool:
    """6:8 is 3:4; where a time of day may be meant, 3:30 is that time alone: not 1:10, and 3:30 pm is 15:30."""
    times = [_seconds(ratio) for ratio in (gold, said)]
    if gold.half or said.half:
        return None not in times and _same_time(gold, said)
    zeros = any(re.match(r"0\d", part.text) for part in (*gold.parts[1:], *said.parts[1:]))
    if None not in times or zeros or (times[0] is not None and _divisor(gold) > 1):
        return times[0] == times[1]
    return _same_shares(gold, said)


def ratio_and_number(ratio: Ratio, number: Scalar) -> bool:
    """1:2 is one half; 3:30, which isn't in lowest terms, is a time and no tenth."""
    is_time = _seconds(ratio) is not None and _divisor(ratio) > 1
    return not ratio.half and not is_time and _same_shares(ratio, Ratio((number, ONE)))


def _same_shares(gold: Ratio, said: Ratio) -> bool:
    if len(gold.parts) != len(said.parts):
        return False
    first, other = gold.parts[0].expr, said.parts[0].expr
    return first != 0 and all(
        equal(one.expr * other, two.expr * first) for one, two in zip(gold.parts, said.parts, strict=True)
    )


def _divisor(time: Ratio) -> int:
    return math.gcd(*(int(part.expr) for part in time.parts))


def _same_time(gold: Ratio, said: Ratio) -> bool:
    if gold.half and said.half:
        return _seconds(gold) == _seconds(said)
    named, other = (gold, said) if gold.half else (said, gold)
    return _seconds(other) in (_seconds(named), _seconds(Ratio(named.parts)))


def _seconds(ratio: Ratio) -> int | None:
    """Seconds since midnight where it is written as a time, else None."""
    found = _TIME.fullmatch(":".join(part.text for part in ratio.parts))
    if not found:
        return None
    hour = int(found[1])
    if ratio.half:
        hour = hour % 12 + 12 * (ratio.half == "pm")
    return 3600 * hour + 60 * int(found[2]) + int(found[3] or 0)
