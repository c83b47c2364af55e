"""When a mathematical answer is right: rules in one table each, every rule a line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import sympy

from qtarget.evaluate.verify.math_expressions import equal, has_large
from qtarget.evaluate.verify.math_values import Relation, Scalar, Several, Table, Union, Value, Words

ENOUGH = 6
"""Significant digits of a decimal that stands for a number it is rounded from."""

UNITS = {
    **dict.fromkeys(("m", "meter", "metre"), ("length", 1)),
    **dict.fromkeys(("km", "kilometer", "kilometre"), ("length", 1000)),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), ("length", sympy.Rational(1, 100))),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), ("length", sympy.Rational(1, 1000))),
    **dict.fromkeys(("kg", "kilogram"), ("mass", 1000)),
    **dict.fromkeys(("g", "gram"), ("mass", 1)),
    **dict.fromkeys(("mg", "milligram"), ("mass", sympy.Rational(1, 1000))),
    **dict.fromkeys(("s", "sec", "second"), ("time", 1)),
    **dict.fromkeys(("min", "minute"), ("time", 60)),
    **dict.fromkeys(("h", "hr", "hour"), ("time", 3600)),
    **dict.fromkeys(("day",), ("time", 86400)),
    **dict.fromkeys(("in", "inch", "inche"), ("foot", 1)),
    **dict.fromkeys(("ft", "foot", "feet"), ("foot", 12)),
    **dict.fromkeys(("dollar", "usd", "$"), ("dollar", 100)),
    **dict.fromkeys(("cent",), ("dollar", 1)),
}
"""Name → what it measures, and how many of the smallest unit it is."""


def right(gold: Value, said: Value) -> bool:
    """Whether `said` is the answer `gold`, by the first rule that speaks of such answers."""
    gold, said = _single(gold), _single(said)
    if isinstance(gold, Relation) and isinstance(said, Relation):
        return _relations(gold, said)
    if isinstance(gold, Relation) or isinstance(said, Relation):
        return _one_relation(gold, said)
    for kind, rule in _RULES.items():
        if isinstance(gold, kind[0]) and isinstance(said, kind[1]):
            return rule(gold, said)
    return _as_sets(gold, said)


def _single(value: Value) -> Value:
    """{5} is 5; x = 1, x = 2 is x = {1, 2}."""
    if not isinstance(value, Several):
        return value
    if len(value.items) == 1 and not isinstance(value.items[0], Relation):
        return value.items[0]
    names = {_name(item) for item in value.items}
    if len(names) == 1 and None not in names and all(isinstance(item, Relation) for item in value.items):
        last = tuple(item.sides[-1] for item in value.items if isinstance(item, Relation))
        first = value.items[0]
        assert isinstance(first, Relation)
        return Relation((first.sides[0], Several(last)), ("=",))
    return value


def _name(value: Value) -> str | None:
    r"""Of x = 5 the x, of f(x) = 2x the f(x); None where no name is given a value."""
    if not isinstance(value, Relation) or set(value.signs) - {"=", "≈"}:
        return None
    first = value.sides[0]
    if not isinstance(first, Scalar | Words):
        return None
    is_name = re.fullmatch(
        r"\\?[A-Za-z]+'?(?:_\{?\w+\}?)?(?:\s*\([\w, ]*\))?|\\text\s*\{.*\}|\|[A-Z]+\||\\(?:angle|overline).*",
        first.text,
    )
    return first.text.replace(" ", "") if is_name else None


# Relations


def _one_relation(gold: Value, said: Value) -> bool:
    """One is an equation or an inequality: x = 5 is 5, x > 3 is (3, ∞); both sides of ≈ are said."""
    relation = gold if isinstance(gold, Relation) else said
    assert isinstance(relation, Relation)
    swap = relation is gold
    if set(relation.signs) <= {"=", "≈"}:
        if swap and _name(gold) is None and "≈" not in relation.signs:
            return False  # an equation was asked for
        sides = relation.sides if "≈" in relation.signs else relation.sides[-1:]
        return any(right(side, said) if swap else right(gold, side) for side in sides)
    return _as_sets(gold, said)


def _relations(gold: Relation, said: Relation) -> bool:
    names = _name(gold), _name(said)
    if None not in names and names[0] == names[1]:
        return right(gold.sides[-1], said.sides[-1])
    if len(gold.sides) == len(said.sides) and gold.signs == said.signs and all(map(right, gold.sides, said.sides)):
        return True
    if len(gold.sides) == len(said.sides) == 2 and _same_relation(gold, said):
        return True
    return _as_sets(gold, said)


_TURNED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "=": "=", "≠": "≠"}


def _same_relation(gold: Relation, said: Relation) -> bool:
    """Both have the same difference of their sides but for a factor, whose sign fits their signs."""
    differences = [_difference(relation) for relation in (gold, said)]
    if None in differences or gold.signs[0] not in _TURNED:
        return False
    factor = _constant_ratio(*differences)
    if factor is None:
        return False
    sign = gold.signs[0]
    return said.signs[0] == (sign if factor.is_positive or sign in "=≠" else _TURNED[sign])


def _difference(relation: Relation) -> Any:
    sides: list[Any] = [side.expr if isinstance(side, Scalar) and not side.mark else None for side in relation.sides]
    return None if None in sides or any(isinstance(side, sympy.MatrixBase) for side in sides) else sides[0] - sides[1]


def _constant_ratio(one: Any, other: Any) -> Any:
    if one.free_symbols != other.free_symbols or not one.free_symbols:
        return None
    point = {name: sympy.Rational(17, 7) + place for place, name in enumerate(sorted(one.free_symbols, key=str))}
    at = [value.subs(point) for value in (one, other)]
    if at[0] == 0 or at[1] == 0 or not (at[0] / at[1]).is_real:
        return None
    factor = sympy.nsimplify(at[0] / at[1]) if not (at[0] / at[1]).is_Rational else at[0] / at[1]
    return factor if equal(one, factor * other) else None


# Numbers and expressions


def _scalars(gold: Scalar, said: Scalar) -> bool:
    if gold.mark[:1] == "_" or said.mark[:1] == "_":
        return _based(gold) == _based(said) or (_digits(gold) == _digits(said) and "" in (gold.mark, said.mark))
    if gold.expr is None or said.expr is None:
        return gold.text == said.text and _factor(gold.unit, said.unit) == 1
    factor = _factor(gold.unit, said.unit)
    if factor is None:
        return False
    return any(_close(gold, said, one, other * factor) for one, other in _read_as(gold, said))


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


def _factor(gold: str, said: str) -> Any:
    """What `said` is to be multiplied by to be in the unit of `gold`; None where they don't measure the same."""
    if not gold or not said or _unit(gold) == _unit(said):
        return 1
    (one, power), (other, other_power) = _unit(gold), _unit(said)
    if power == other_power and one in UNITS and other in UNITS and UNITS[one][0] == UNITS[other][0]:
        return (sympy.sympify(UNITS[other][1]) / UNITS[one][1]) ** power
    return None


def _unit(text: str) -> tuple[str, int]:
    words = text.lower().strip(" .").replace("square ", "").replace("cubic ", "").replace("sq. ", "").replace("sq ", "")
    name, _, power = words.partition("^")
    found = (
        int(power) if power.strip().isdigit() else 2 if "sq" in text.lower() else 3 if "cubic" in text.lower() else 1
    )
    return " ".join(_singular(word) for word in dict.fromkeys(name.split())), found


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word


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


# Several


def _lists(gold: Several, said: Several) -> bool:
    if gold.left == "{" or said.left == "{":
        return {gold.left, said.left} <= {"{", ""} and _same_members(gold.items, said.items)
    if not gold.left and not said.left:
        return _in_any_order(gold.items, said.items)
    brackets = {gold.left + gold.right, said.left + said.right} - {""}
    is_pair = len(gold.items) == 2 or len(said.items) == 2
    if is_pair and (len(brackets) > 1 or ("" in (gold.left, said.left) and brackets != {"()"})):
        return _as_sets(gold, said)
    return _in_order(gold.items, said.items)


def _in_order(gold: tuple[Value, ...], said: tuple[Value, ...]) -> bool:
    return len(gold) == len(said) and all(map(right, *map(_nameless, (gold, said), (said, gold))))


def _nameless(items: tuple[Value, ...], others: tuple[Value, ...]) -> tuple[Value, ...]:
    """y = 2, x = 1 in the order of the names, where the others have none."""
    names = [_name(item) for item in items]
    if None in names or any(_name(other) for other in others):
        return items
    return tuple(item for _, item in sorted(zip(names, items, strict=True), key=lambda pair: str(pair[0])))


def _in_any_order(gold: tuple[Value, ...], said: tuple[Value, ...]) -> bool:
    """One for one. Named ones are matched by name, with others that have none by the order of names."""
    if len(gold) != len(said):
        return False
    left = list(said)
    for item in gold:
        match = next((place for place, other in enumerate(left) if right(item, other)), None)
        if match is None:
            return False
        left.pop(match)
    return True


def _same_members(gold: tuple[Value, ...], said: tuple[Value, ...]) -> bool:
    return all(any(right(one, other) for other in said) for one in gold) and all(
        any(right(one, other) for one in gold) for other in said
    )


def _tables(gold: Table, said: Table) -> bool:
    return len(gold.rows) == len(said.rows) and all(map(_in_order, gold.rows, said.rows))


def _table_and_list(table: Table, items: Several) -> bool:
    cells = tuple(cell for row in table.rows for cell in row)
    return 1 in (len(table.rows), len(table.rows[0])) and items.left != "{" and _in_order(cells, items.items)


# Sets of numbers


def _as_sets(gold: Value, said: Value) -> bool:
    sets = [_set(value) for value in (gold, said)]
    if None in sets or not any(_is_set(value) for value in (gold, said)):
        return False
    return bool(sets[0] == sets[1]) or bool(sympy.SymmetricDifference(*sets) == sympy.S.EmptySet)


def _is_set(value: Value) -> bool:
    return isinstance(value, Union | Relation) or (isinstance(value, Several) and bool(value.left))


def _set(value: Value) -> Any:
    if isinstance(value, Union):
        parts = [_set(part) for part in value.parts]
        return None if None in parts else sympy.Union(*parts)
    if isinstance(value, Relation):
        return _solutions(value)
    if isinstance(value, Several):
        ends: list[Any] = [item.expr if isinstance(item, Scalar) else None for item in value.items]
        if None in ends:
            return None
        if value.left == "{":
            return sympy.FiniteSet(*ends)
        if value.left and len(ends) == 2 and all(end.is_extended_real for end in ends):
            return sympy.Interval(*ends, left_open=value.left == "(", right_open=value.right == ")")
    return None


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<": sympy.Lt,
    ">": sympy.Gt,
    "≤": sympy.Le,
    "≥": sympy.Ge,
    "≠": sympy.Ne,
    "=": sympy.Eq,
}


def _solutions(relation: Relation) -> Any:
    """The real numbers that a relation of one variable holds for."""
    sides: list[Any] = [side.expr if isinstance(side, Scalar) else None for side in relation.sides]
    if None in sides or set(relation.signs) - set(_OPERATORS) or set(relation.signs) == {"="}:
        return None
    names = set().union(*(side.free_symbols for side in sides))
    if len(names) != 1:
        return None
    real = sympy.Symbol("x", real=True)
    sides = [side.xreplace({names.copy().pop(): real}) for side in sides]
    found = sympy.S.Reals
    for left, sign, behind in zip(sides[:-1], relation.signs, sides[1:], strict=True):
        found = found.intersect(
            sympy.S.Reals if (one := _OPERATORS[sign](left, behind)) is sympy.true else one.as_set()
        )
    return found


_RULES: dict[tuple[Any, Any], Callable[[Any, Any], bool]] = {
    (Words, Words): lambda gold, said: gold.text == said.text,
    (Scalar, Scalar): _scalars,
    (Several, Several): _lists,
    (Table, Table): _tables,
    (Table, Several): _table_and_list,
    (Several, Table): lambda gold, said: _table_and_list(said, gold),
    (Words, Scalar): lambda gold, said: gold.text == said.text.casefold(),
    (Scalar, Words): lambda gold, said: gold.text.casefold() == said.text,
}
