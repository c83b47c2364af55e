"""What a mathematical answer is made of: expressions of sympy from LaTeX, with exact numbers, and when two equal."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy, normalize_latex
from sympy.core.function import AppliedUndef


@dataclass(frozen=True)
class Words:
    """An answer in words: "even", "Monday"."""

    text: str


@dataclass(frozen=True)
class Scalar:
    """A number or an expression of sympy, None where it can't be read; and what is written around it.

    digits, place: significant digits and the power of ten of the last one, of a decimal (`0.333`: 3, −3); digits 0: no
    decimal. mark: "%", "°" or "_b" for a number in base b. unit: words behind it.
    """

    text: str
    expr: Any
    digits: int = 0
    place: int = 0
    mark: str = ""
    unit: str = ""


@dataclass(frozen=True)
class SeveralAnswers:
    """Answers with commas between them: in brackets, or "" where there are none. Half-open intervals too.

    joined: "and" or "or", where that stands between them.
    """

    items: tuple[Value, ...]
    left: str = ""
    right: str = ""
    joined: str = field(default="", compare=False)


@dataclass(frozen=True)
class Union:
    """Intervals and sets, joined."""

    parts: tuple[Value, ...]


@dataclass(frozen=True)
class SetDifference:
    """A set without another's members."""

    whole: Value
    removed: Value


@dataclass(frozen=True)
class Ratio:
    """Parts with colons between them, 1:2 or 3:30; half: "am" or "pm" of a time of day."""

    parts: tuple[Scalar, ...]
    half: str = ""


@dataclass(frozen=True)
class Relation:
    """Sides with signs between them, `signs[i]` behind `sides[i]`: = ≠ < > ≤ ≥ ≈."""

    sides: tuple[Value, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class MatrixValue:
    """A matrix, by rows."""

    rows: tuple[tuple[Value, ...], ...]


Value = Words | Scalar | SeveralAnswers | Union | SetDifference | Ratio | Relation | MatrixValue


LARGEST = 20_000
"""Digits of a number that is worked out; larger ones are compared by their factors."""
POINTS = ("23571/10000", "6131/10000", "-17253/10000", "51907/10000", "1273/10000", "-3413/10000", "7019/1000")
"""Values that variables are given; the places of variables move them on."""
DIGITS = 400
"""Digits that a difference is followed to before it counts as none."""

_SPELLING = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
_READING = ConversionConfig(lowercase_symbols=False)
_LATEX = (("∞", r"\infty "), ("−", "-"), ("∅", r"\emptyset "))
_TEXT = re.compile(r"\\text\s*\{[^{}]*\}")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)°")
_DOUBLE = re.compile(r"(?<![\d.])(\d{1,3})!!(?!!)")
_FACTORIAL_POWER = re.compile(r"(?<![\w.])(\d+|[a-z])!(?=\s*\^)")
_SPACED_DIGITS = re.compile(r"\d\s+\d")
_GROUPS = re.compile(r"(\^|\\sqrt)\s*\(((?:[^()]|\([^()]*\))*)\)")


@lru_cache(maxsize=2000)
def expression(text: str) -> Any:
    """The expression of a formula, its decimals exact; None where there is none that latex2sympy reads whole."""
    text = _DOUBLE.sub(lambda found: str(sympy.factorial2(int(found[1]))), text)
    text = _FACTORIAL_POWER.sub(r"(\1!)", text)
    text = _DEGREES.sub(r"\\frac{\1\\pi}{180}", _TEXT.sub(" ", text)).strip()
    for sign, latex in _LATEX:
        text = text.replace(sign, latex)
    if not text:
        return None
    try:
        spelled = normalize_latex(_GROUPS.sub(r"\1{\2}", text), _SPELLING)
        if _SPACED_DIGITS.search(spelled):  # latex2sympy adds them
            return None
        read = latex2sympy(
            spelled, is_real=None, convert_degrees=False, normalization_config=None, conversion_config=_READING
        )
        return exact(_known(read))
    except Exception:  # the parser and sympy raise all sorts
        return None


def _known(read: Any) -> Any:
    """With the imaginary unit, Euler's number, and variables whatever their case, where no letter stands in both."""
    read = read.xreplace({name: sympy.I for name in read.free_symbols if name.name == "i"})
    names = {symbol: symbol.name.lower() for symbol in read.free_symbols}
    if len(set(names.values())) < len(names):
        return read
    return read.xreplace({symbol: sympy.Symbol(name) for symbol, name in names.items()})


def exact(read: Any) -> Any:
    """Worked out, decimals as fractions; powers and factorials of more than LARGEST digits stay as they are."""
    if isinstance(read, sympy.UnevaluatedExpr):
        return exact(read.args[0])
    if isinstance(read, sympy.Sum | sympy.Product | sympy.Integral | sympy.Derivative | sympy.Limit):
        return exact(read.doit()) if read.doit() != read else read
    if not read.args:
        return sympy.Rational(str(read)) if read.is_Float else read
    args = [exact(part) for part in read.args]
    if _is_large(read, args):
        return read.func(*args, evaluate=False)
    if read.is_Pow and _has_odd_root(*args):
        return -((-args[0]) ** args[1]) if args[1].p % 2 else (-args[0]) ** args[1]
    return read.func(*args)


def _has_odd_root(base: Any, power: Any) -> bool:
    """The cube root of −8 is −2, as schools teach it, and not sympy's 1 + i√3."""
    return bool(base.is_Rational and base.is_negative and power.is_Rational and power.q % 2 and power.q > 1)


def _is_large(read: Any, args: list[Any]) -> bool:
    if isinstance(read, sympy.factorial | sympy.factorial2 | sympy.gamma):
        return bool(args[0].is_number) and not (args[0].is_Rational and abs(args[0]) < LARGEST // 4)
    if not read.is_Pow or not args[0].is_number or not args[1].is_number or args[0] in (0, 1, -1, sympy.E):
        return False
    base, power = args
    if not base.is_Rational or not power.is_Rational:
        return has_large(base) or has_large(power)
    digits = max(abs(base.p), base.q).bit_length() * math.log10(2)
    return bool(abs(power) > LARGEST) and digits * float(min(abs(power), 10**12)) > LARGEST


def has_large(value: Any) -> bool:
    """Does it hold a number that was not worked out?"""
    return any(_is_large(part, list(part.args)) for part in sympy.preorder_traversal(value) if part.args)


def equal(one: Any, other: Any) -> bool:
    """Whether two expressions are the same number, matrix or function of their variables.

    Numbers: exactly, a difference of irrational ones to DIGITS digits. Functions: as numbers, wherever both are real
    at POINTS; where there are too few such points, wherever they are numbers at all.
    """
    if one == other:
        return True
    if isinstance(one, sympy.MatrixBase) or isinstance(other, sympy.MatrixBase):
        return getattr(one, "shape", 0) == getattr(other, "shape", 1) and all(map(equal, one, other))
    one, other = _named(one), _named(other)
    if has_large(one) or has_large(other):
        return _factors(one) == _factors(other)
    free = sorted(one.free_symbols | other.free_symbols, key=str)
    if not free:
        return _equal_numbers(one, other)
    return _equal_functions(one, other, free)


def _named(value: Any) -> Any:
    """Functions that are only names, f(x), as variables."""
    return value.replace(lambda part: isinstance(part, AppliedUndef), lambda part: sympy.Symbol(str(part)))


def _equal_functions(one: Any, other: Any, free: list[Any]) -> bool:
    if one.has(sympy.oo, sympy.zoo, sympy.nan) or other.has(sympy.oo, sympy.zoo, sympy.nan):
        return False
    real, beyond = [], []
    for start in range(len(POINTS)):
        point = {
            name: sympy.Rational(POINTS[(start + 3 * place) % len(POINTS)]) + place for place, name in enumerate(free)
        }
        values = exact(one.subs(point)), exact(other.subs(point))
        if all(_is_real(value) for value in values):
            real.append(values)
        else:
            beyond.append(values)
    return all(_equal_numbers(*values) for values in (real if len(real) >= 2 else real + beyond))


def _is_real(value: Any) -> bool:
    number = value.evalf(15, maxn=DIGITS)
    return bool(number.is_number) and not number.has(sympy.nan, sympy.zoo) and not _significant(sympy.im(number))


def _equal_numbers(one: Any, other: Any) -> bool:
    if one.has(sympy.nan) or other.has(sympy.nan):
        return False
    if one.is_infinite or other.is_infinite:
        return bool(one == other)
    if one.is_Rational and other.is_Rational:
        return bool(one == other)
    difference = one - other
    if difference == 0:
        return True
    number = difference.evalf(15, maxn=DIGITS)
    if not number.is_number or number.free_symbols or number.has(sympy.nan):
        return bool(sympy.simplify(difference) == 0)
    return not any(_significant(part) for part in number.as_real_imag())


def _significant(number: Any) -> bool:
    """Is it certainly not 0? sympy gives a difference that vanished a precision of 1 bit."""
    return bool(number != 0) and getattr(number, "_prec", 53) != 1


def _factors(value: Any) -> dict[Any, Any] | None:
    """A product as base → exponent, whole numbers taken apart; what isn't one is its own base."""
    found: dict[Any, Any] = {}
    for factor in sympy.Mul.make_args(value):
        base, power = factor.args if factor.is_Pow else (factor, sympy.Integer(1))
        small = base.is_Integer and 1 < base < 10**20
        for prime, times in (sympy.factorint(base) if small else {base: 1}).items():
            found[prime] = found.get(prime, 0) + times * power
    return {base: power for base, power in found.items() if power != 0 and base != 1}
