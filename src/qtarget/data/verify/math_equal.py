"""When a mathematical answer is right: rules in one table each, every rule a line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import sympy

from qtarget.data.verify.math_expressions import (
    MatrixValue,
    Ratio,
    Relation,
    Scalar,
    SetDifference,
    SeveralAnswers,
    Union,
    Value,
    Words,
    equal,
)
from qtarget.data.verify.math_quantities import ratio_and_number, ratios, scalars


def right(gold: Value, said: Value) -> bool:
    """Whether `said` is the answer `gold`: it is read as the same, or the first rule that speaks of such says so."""
    if gold == said:
        return True
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
    if not isinstance(value, SeveralAnswers):
        return value
    if len(value.items) == 1 and not isinstance(value.items[0], Relation):
        return value.items[0]
    names = {_name(item) for item in value.items}
    if len(names) == 1 and None not in names and all(isinstance(item, Relation) for item in value.items):
        last = tuple(item.sides[-1] for item in value.items if isinstance(item, Relation))
        first = value.items[0]
        assert isinstance(first, Relation)
        return Relation((first.sides[0], SeveralAnswers(last)), ("=",))
    return value


def _name(value: Value) -> str | None:
    r"""Of x = 5 the x, of f(x) = 2x the f(x); None where no name is given a value."""
    if not isinstance(value, Relation) or set(value.signs) - {"=", "≈"}:
        return None
    first = value.sides[0]
    if isinstance(first, Ratio) and all(part.expr.is_Symbol for part in first.parts):
        return ":".join(part.text for part in first.parts)
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
    if None not in names and (names[0] == names[1] or _is_graph(*map(str, names))):
        return right(gold.sides[-1], said.sides[-1])
    if len(gold.sides) == len(said.sides) and gold.signs == said.signs and all(map(right, gold.sides, said.sides)):
        return True
    if len(gold.sides) == len(said.sides) == 2 and _same_relation(gold, said):
        return True
    return _as_sets(gold, said)


def _is_graph(name: str, other: str) -> bool:
    """y = 2x is f(x) = 2x."""
    return "y" in (name, other) and any(re.fullmatch(r"[A-Za-z]\(x\)", one) for one in (name, other))


_TURNED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "=": "=", "≠": "≠"}


def _same_relation(gold: Relation, said: Relation) -> bool:
    """Both have the same difference of their sides but for a factor, whose sign fits their signs."""
    differences = [_difference(relation) for relation in (gold, said)]
    if None in differences or gold.signs[0] not in _TURNED:
        return False
    ratio = _constant_ratio(*differences)
    if ratio is None:
        return False
    sign = gold.signs[0]
    return said.signs[0] == (sign if ratio.is_positive or sign in "=≠" else _TURNED[sign])


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
    ratio = sympy.nsimplify(at[0] / at[1]) if not (at[0] / at[1]).is_Rational else at[0] / at[1]
    return ratio if equal(one, ratio * other) else None


# Several


def _lists(gold: SeveralAnswers, said: SeveralAnswers) -> bool:
    if any(not value.left and _is_set(value) for value in (gold, said)) and gold.left != said.left:
        return _as_sets(gold, said)
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


def _tables(gold: MatrixValue, said: MatrixValue) -> bool:
    return len(gold.rows) == len(said.rows) and all(map(_in_order, gold.rows, said.rows))


def _table_and_list(table: MatrixValue, items: SeveralAnswers) -> bool:
    if all(isinstance(item, SeveralAnswers) and item.left == "[" for item in items.items):  # [[1, 2], [3, 4]]
        return _tables(
            table, MatrixValue(tuple(item.items for item in items.items if isinstance(item, SeveralAnswers)))
        )
    cells = tuple(cell for row in table.rows for cell in row)
    return 1 in (len(table.rows), len(table.rows[0])) and items.left != "{" and _in_order(cells, items.items)


# Sets of numbers


def _as_sets(gold: Value, said: Value) -> bool:
    sets = [_set(value) for value in (gold, said)]
    if None in sets or not any(_is_set(value) for value in (gold, said)):
        return False
    if len(_variables(gold) | _variables(said)) > 1:
        return False
    return bool(sets[0] == sets[1]) or bool(sympy.SymmetricDifference(*sets) == sympy.S.EmptySet)


def _variables(value: Value) -> set[Any]:
    """Those of its inequalities."""
    if isinstance(value, Relation):
        return set().union(*(side.expr.free_symbols for side in value.sides if isinstance(side, Scalar) and side.expr))
    parts = {SeveralAnswers: "items", Union: "parts"}.get(type(value))
    return set().union(*(map(_variables, getattr(value, parts)))) if parts else set()


def _is_set(value: Value) -> bool:
    if isinstance(value, SeveralAnswers) and not value.left:
        return bool(value.items) and all(map(_is_inequality, value.items))
    return isinstance(value, Union | SetDifference | Relation | SeveralAnswers)


def _is_inequality(value: Value) -> bool:
    return isinstance(value, Relation) and not set(value.signs) & {"=", "≈"}


def _set(value: Value) -> Any:
    kind = next((kind for kind in _SETS if isinstance(value, kind)), None)
    return _SETS[kind](value) if kind else None


def _union(value: Union) -> Any:
    parts = [_set(part) for part in value.parts]
    return None if None in parts else sympy.Union(*parts)


def _without(value: SetDifference) -> Any:
    whole, removed = _set(value.whole), _set(value.removed)
    return None if None in (whole, removed) else sympy.Complement(whole, removed)


def _listed(value: SeveralAnswers) -> Any:
    """A set of numbers, an interval, or inequalities."""
    if not value.left:
        return _either(value) if _is_set(value) else None
    ends: list[Any] = [item.expr if isinstance(item, Scalar) else None for item in value.items]
    if None in ends:
        return None
    if value.left == "{":
        return sympy.FiniteSet(*ends)
    if len(ends) == 2 and all(end.is_extended_real for end in ends):
        return sympy.Interval(*ends, left_open=value.left == "(", right_open=value.right == ")")
    return None


def _either(value: SeveralAnswers) -> Any:
    """Where one of several inequalities holds; all of those with ≠ or joined by "and", where that is anywhere."""
    parts = [_set(item) for item in value.items]
    if None in parts:
        return None
    excluded = all(isinstance(item, Relation) and item.signs == ("≠",) for item in value.items)
    both = sympy.Intersection(*parts) if value.joined == "and" or excluded else sympy.S.EmptySet
    return sympy.Union(*parts) if both == sympy.S.EmptySet else both


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


_SETS: dict[Any, Callable[[Any], Any]] = {
    Union: _union,
    SetDifference: _without,
    Relation: _solutions,
    SeveralAnswers: _listed,
}

_RULES: dict[tuple[Any, Any], Callable[[Any, Any], bool]] = {
    (Words, Words): lambda gold, said: gold.text == said.text,
    (Scalar, Scalar): scalars,
    (SeveralAnswers, SeveralAnswers): _lists,
    (Ratio, Ratio): ratios,
    (Ratio, Scalar): ratio_and_number,
    (Scalar, Ratio): lambda gold, said: ratio_and_number(said, gold),
    (MatrixValue, MatrixValue): _tables,
    (MatrixValue, SeveralAnswers): _table_and_list,
    (SeveralAnswers, MatrixValue): lambda gold, said: _table_and_list(said, gold),
    (Words, Scalar): lambda gold, said: gold.text == said.text.casefold(),
    (Scalar, Words): lambda gold, said: gold.text.casefold() == said.text,
}
