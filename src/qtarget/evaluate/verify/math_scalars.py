"""When two numbers or expressions are the same answer: percent, degrees, bases, units and decimals."""

from __future__ import annotations

from typing import Any

import sympy

from qtarget.evaluate.verify.math_expressions import equal, has_large
from qtarget.evaluate.verify.math_units import factor, measures
from qtarget.evaluate.verify.math_values import Scalar

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
