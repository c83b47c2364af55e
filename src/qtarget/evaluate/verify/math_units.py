"""Units of measure: what a text such as "km/h", "cubic centimeters" or "m s^{-1}" is in the smallest units we know."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import sympy

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
