"""The faults that a mutation run makes in a syntax tree: operators, boundaries, constants, arguments, statements."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

OPERATORS: dict[type[ast.AST], ast.AST] = {
    ast.Add: ast.Sub(),
    ast.Sub: ast.Add(),
    ast.Mult: ast.Div(),
    ast.Div: ast.Mult(),
    ast.FloorDiv: ast.Mult(),
    ast.Mod: ast.FloorDiv(),
    ast.Pow: ast.Mult(),
    ast.MatMult: ast.Mult(),
    ast.BitAnd: ast.BitOr(),
    ast.BitOr: ast.BitAnd(),
    ast.Lt: ast.LtE(),
    ast.LtE: ast.Lt(),
    ast.Gt: ast.GtE(),
    ast.GtE: ast.Gt(),
    ast.Eq: ast.NotEq(),
    ast.NotEq: ast.Eq(),
    ast.Is: ast.IsNot(),
    ast.IsNot: ast.Is(),
    ast.In: ast.NotIn(),
    ast.NotIn: ast.In(),
    ast.And: ast.Or(),
    ast.Or: ast.And(),
}
NAMES = {
    one: other
    for pair in (
        ("sum", "mean"),
        ("min", "max"),
        ("amin", "amax"),
        ("argmin", "argmax"),
        ("minimum", "maximum"),
        ("clamp_min", "clamp_max"),
        ("any", "all"),
        ("zeros", "ones"),
        ("zeros_like", "ones_like"),
        ("new_zeros", "new_ones"),
        ("log_softmax", "softmax"),
    )
    for one, other in (pair, pair[::-1])
}
TEXT = ("__str__", "__repr__")
"""Functions that make words of a number."""
UNCHANGED = ("annotation", "returns", "decorator_list", "ctx", "type_params", "type_comment")
"""Fields of nodes that hold no value."""


@dataclass(frozen=True)
class Mutation:
    """scope: the function; before, after: the statement, or its head where it has a body; line: where it begins."""

    scope: str
    line: int
    before: str
    after: str


def mutations(tree: ast.Module) -> Iterator[Mutation]:
    """Every mutation, in the order of the source; while one is held, the tree is the mutant."""
    for scope, statements, index in _statements(tree, ()):
        statement = statements[index]
        before = _head(statement)
        seen = {before}
        for owner, field, place, node in _expressions(statement):
            for other in (*_alternatives(node), *_negated(owner, field, node)):
                _put(owner, field, place, other)
                after = _head(statement)
                if after not in seen:
                    seen.add(after)
                    yield Mutation(scope, statement.lineno, before, after)
                _put(owner, field, place, node)
        if _removable(statement):
            statements[index] = ast.copy_location(ast.Pass(), statement)
            yield Mutation(scope, statement.lineno, before, "pass")
            statements[index] = statement


def _statements(owner: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[str, list[ast.stmt], int]]:
    """Statements that make numbers: none of errors, assertions, words or imports."""
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        children = getattr(owner, block, None)
        if not isinstance(children, list):
            continue
        for index, child in enumerate(children):
            if isinstance(child, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom) or _types_alone(child):
                continue
            inner = (*scope, child.name) if isinstance(child, ast.FunctionDef | ast.ClassDef) else scope
            if inner and inner[-1] in TEXT:
                continue
            if isinstance(child, ast.stmt):
                yield ".".join(inner) or "module", children, index
            yield from _statements(child, inner)


def _types_alone(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _expressions(owner: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """The nodes below a statement that belong to it and not to its body, each with its place."""
    for field, value in ast.iter_fields(owner):
        if field in UNCHANGED:
            continue
        for place, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.AST) and not isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
                yield owner, field, place, node
                yield from _expressions(node)


def _put(owner: ast.AST, field: str, place: int | None, node: ast.AST) -> None:
    if place is None:
        setattr(owner, field, node)
    else:
        getattr(owner, field)[place] = node


def _alternatives(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.operator() | ast.cmpop() | ast.boolop() if type(node) in OPERATORS:
            yield OPERATORS[type(node)]
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant():
            yield from (ast.copy_location(ast.Constant(value), node) for value in _neighbours(node.value))
        case ast.Name() | ast.Attribute():
            yield from _renamed(node)
        case ast.Call():
            yield from _swapped(node)
        case ast.IfExp():
            yield ast.copy_location(ast.IfExp(node.test, node.orelse, node.body), node)


def _negated(owner: ast.AST, field: str, node: ast.AST) -> Iterator[ast.AST]:
    """A condition's opposite, where no other mutation is that already."""
    condition = field == "ifs" or (field == "test" and isinstance(owner, ast.If | ast.While))
    negation = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    if condition and isinstance(node, ast.expr) and not isinstance(node, ast.Compare) and not negation:
        yield ast.copy_location(ast.UnaryOp(ast.Not(), node), node)


def _neighbours(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    return [value + 1] if isinstance(value, float) else []


def _renamed(node: ast.Name | ast.Attribute) -> Iterator[ast.AST]:
    name = node.id if isinstance(node, ast.Name) else node.attr
    if isinstance(node.ctx, ast.Load) and name in NAMES:
        other = copy.copy(node)
        setattr(other, "id" if isinstance(node, ast.Name) else "attr", NAMES[name])
        yield other


def _swapped(call: ast.Call) -> Iterator[ast.AST]:
    """Two neighbouring arguments of one syntactic kind change places."""
    for index, (one, two) in enumerate(zip(call.args, call.args[1:], strict=False)):
        if type(one) is type(two) and not isinstance(one, ast.Constant | ast.Starred):
            other = copy.copy(call)
            other.args = [*call.args[:index], two, one, *call.args[index + 2 :]]
            yield other


def _removable(statement: ast.stmt) -> bool:
    """An update in place or a call for its effect."""
    match statement:
        case ast.AugAssign() | ast.Expr(value=ast.Call()):
            return True
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            return True
    return False


def _head(statement: ast.stmt) -> str:
    """The statement on one line, without its body."""
    alone = copy.copy(statement)
    for block in ("body", "orelse", "finalbody", "handlers", "cases", "decorator_list"):
        if hasattr(alone, block):
            setattr(alone, block, [ast.Pass()] if block == "body" else [])
    if isinstance(alone, ast.Match):
        return f"match {ast.unparse(alone.subject)}:"
    return " ".join(line.strip() for line in ast.unparse(alone).splitlines() if line.strip() != "pass")
