"""Numbers with a kind: units, percent, degrees, bases, ratios and times of day, and when two of them are the same."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

import sympy

from qtarget.data.verify.math_expressions import Ratio, Scalar, equal, has_large

_MINUTE, _HOUR = 60, 3600
UNITS: dict[str, tuple[str, Any]] = {
    **dict.fromkeys(("m", "meter", "metre"), ("length", 1)),
    **dict.fromkeys(("km", "kilometer", "kilometre"), ("length", 1000)),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), ("length", sympy.Rational(1, 100))),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), ("length", sympy.Rational(1, 1000))),
    **dict.fromkeys(("kg", "kilogram"), ("mass", 1000)),
    **dict.fromkeys(("g", "gram"), ("mass", 1)),
    **dict.fromkeys(("mg", "milligram"), ("mass", sympy.Rational(1, 1000))),
    **dict.fromkeys(("s", "sec", "second"), ("time", 1)),
    **dict.fromkeys(("min", "minute"), ("time", _MINUTE)),
    **dict.fromkeys(("h", "hr", "hour"), ("time", _HOUR)),
    **dict.fromkeys(("day",), ("time", 24 * _HOUR)),
    **dict.fromkeys(("week",), ("time", 7 * 24 * _HOUR)),
    **dict.fromkeys(("in", "inch", "inche"), ("foot", 1)),
    **dict.fromkeys(("ft", "foot", "feet"), ("foot", 12)),
    **dict.fromkeys(("yd", "yard"), ("foot", 36)),
    **dict.fromkeys(("mi", "mile"), ("mile", 1)),
    **dict.fromkeys(("lb", "pound"), ("pound", 1)),
    **dict.fromkeys(("l", "liter", "litre"), ("volume", 1)),
    **dict.fromkeys(("ml", "milliliter", "millilitre"), ("volume", sympy.Rational(1, 1000))),
    **dict.fromkeys(("dollar", "usd", "$"), ("dollar", 100)),
    **dict.fromkeys(("cent",), ("dollar", 1)),
    "celsius": ("celsius", 1),
    "fahrenheit": ("fahrenheit", 1),
}
"""Name → what it measures, and how many of the unit of that it is."""

_SPELLED = {"mph": "mi/h", "kph": "km/h", "kmph": "km/h", "kmh": "km/h", "cc": "cm^3"}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_NAME = re.compile(r"([^\W\d_]+|\$)\.?\s*(?:\^\s*\{?\s*(-?\d)\s*\}?)?|(/|\bper\b)")

Measure = dict[str, int]


def factor(gold: str, said: str) -> Any:
    """What a number in `said` is multiplied by to be one in `gold`: 1 where either has no unit, None for others."""
    if not gold or not said:
        return 1
    if "mod" in gold.split() or "mod" in said.split():
        return 1 if gold.split() == said.split() else None
    one, other = measured(gold), measured(said)
    return other[1] / one[1] if one[0] == other[0] else None


@lru_cache(maxsize=500)
def measured(unit: str) -> tuple[Measure, Any]:
    """What a unit measures, name → power, and how many of the units of that it is. Other words name themselves."""
    text = re.sub(r"degrees?|[{}]", " ", unit)
    text = re.sub(r"([A-Za-z]+) (squared|cubed)", lambda found: f"{found[1]}^{2 + (found[2] == 'cubed')}", text)
    for name, spelled in _SPELLED.items():
        text = re.sub(rf"\b{name}\b", spelled, text.lower())
    measures: Measure = {}
    size, sign, ahead = sympy.Integer(1), 1, 1
    for word, power, over in _NAME.findall(re.sub(r"\bper\b", "/", text)):
        if over:
            sign = -1
            continue
        if word in _POWERS:
            ahead = _POWERS[word]
            continue
        name, many = UNITS.get(word) or UNITS.get(singular(word), (singular(word), 1))
        exponent = sign * int(power or 1) * ahead
        ahead = 1
        if singular(word) not in UNITS and name in measures:  # "apples apples" says it once
            continue
        measures[name] = measures.get(name, 0) + exponent
        size *= sympy.sympify(many) ** exponent
    return measures, size


def measures(unit: str) -> bool:
    """Does it measure what is no angle in degrees: a length, a time, a minute of arc?"""
    return unit == "prime" or any(singular(word) in UNITS for word in unit.split())


def is_unit(text: str) -> bool:
    """Is every word of it a unit, and none of them likely a variable? m s^{-1}, km and m/s are; h and g h aren't."""
    names = [word for word, _, _ in _NAME.findall(text) if word]
    known = all((name if len(name) == 1 else singular(name)).lower() in {*UNITS, *_SPELLED} for name in names)
    return bool(names) and known and (any(len(name) > 1 for name in names) or "/" in text or "-" in text)


def singular(word: str) -> str:
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word


ENOUGH = 6
"""Significant digits of a decimal that stands for a number it is rounded from."""


def scalars(gold: Scalar, said: Scalar) -> bool:
    if gold.mark[:1] == "_" or said.mark[:1] == "_":
        return _based(gold) == _based(said) or (_digits(gold) == _digits(said) and "" in (gold.mark, said.mark))
    if gold.expr is None or said.expr is None:
        return gold.text == said.text and factor(gold.unit, said.unit) == 1
    if "°" in (gold.mark, said.mark) and (measures(gold.unit) or measures(said.unit)):
        return False
    times = factor(gold.unit, said.unit)
    if times is None:
        return False
    return any(_close(gold, said, one, other * times) for one, other in _read_as(gold, said))


def _based(value: Scalar) -> str:
    return value.mark or value.text.lstrip("0")


def _digits(value: Scalar) -> str:
    return value.mark.partition(" ")[2] if value.mark[:1] == "_" else value.text.replace(" ", "").lstrip("0").upper()


def _read_as(gold: Scalar, said: Scalar) -> list[tuple[Any, Any]]:
    """Pairs that may be equal: 50 % is 0.5 and, where only one has the sign, 50; 90° is 90 and π/2."""
    pair = gold.expr, said.expr
    if gold.mark == said.mark:
        return [pair]
    found = [pair] if not _is_small_percentage(gold) and not _is_small_percentage(said) else []
    factors = {"": sympy.Integer(1), "%": sympy.Rational(1, 100), "°": sympy.pi / 180}
    return [*found, (gold.expr * factors[gold.mark], said.expr * factors[said.mark])]


def _is_small_percentage(value: Scalar) -> bool:
    """0.5 % is not 0.5: only a percentage of 1 and more may have lost its sign."""
    return value.mark == "%" and not (value.expr.is_number and bool(abs(value.expr) >= 1))


def _close(gold: Scalar, said: Scalar, one: Any, other: Any) -> bool:
    """Equal; or a decimal of ENOUGH digits and the other, no whole number and longer, rounded to its last place."""
    if equal(one, other):
        return True
    return any(
        _rounds(short, long, *values)
        for short, long, values in (
            (said, gold, (other, one)),
            (gold, said, (one, other)),
        )
    )


def _rounds(short: Scalar, long: Scalar, value: Any, whole: Any) -> bool:
    if short.digits < ENOUGH or short.mark != long.mark or not _is_real(whole) or whole.is_Integer:
        return False
    if long.digits and long.place >= short.place:
        return False
    half = sympy.Rational(10) ** short.place / 2
    return bool(abs(value - whole) <= half)


def _is_real(value: Any) -> bool:
    return bool(value.is_number and value.is_real and value.is_finite) and not has_large(value)


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
