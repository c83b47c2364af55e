"""Faults inside of functions, many in one process: tests are collected once, and each fault runs its own in a fork.

The function's code is exchanged in the fork. What stands in a class or a module, and defaults of arguments, were used
by the import already: such a fault needs an interpreter that imports the module anew.
"""

from __future__ import annotations

import ast
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType

import pytest

Place = tuple[str, int]


def places(code: CodeType) -> Iterator[tuple[Place, CodeType]]:
    """Every code object within one, by its qualified name and first line."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield (inner.co_qualname, inner.co_firstlineno), inner
            yield from places(inner)


def changes(path: Path, mutant: CodeType) -> dict[Place, CodeType]:
    """The code that differs from the file's, of functions that can be told from one another by their place."""
    before = list(places(compile(ast.parse(path.read_text()), str(path), "exec")))
    counts = Counter(place for place, _ in before)
    known = {place: code for place, code in before if counts[place] == 1}
    return {place: code for place, code in places(mutant) if place in known and known[place] != code}


def functions_below(folder: Path) -> list[FunctionType]:
    """All that were made by modules below a folder."""
    functions = [one for one in gc.get_objects() if type(one) is FunctionType]
    return [one for one in functions if one.__code__.co_filename.startswith(f"{folder}/")]


class Collected:
    """A plugin of pytest that collects as usual and does `work` with the tests in place of running them all."""

    def __init__(self, source: Path, work: Callable[[Collected], None]) -> None:
        self.source, self.work = source, work
        self.items: dict[str, pytest.Item] = {}
        self.functions: list[FunctionType] = []
        self.failed = False

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        self.functions = functions_below(self.source)
        self.work(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed

    def exchanges(self, path: Path, mutant: CodeType) -> list[tuple[FunctionType, CodeType]]:
        """The functions of a module whose code the mutant has otherwise, each with that code."""
        changed = changes(path, mutant)
        ours = [one for one in self.functions if one.__code__.co_filename == str(path)]
        pairs = [(one, changed.get((one.__code__.co_qualname, one.__code__.co_firstlineno))) for one in ours]
        return [(one, code) for one, code in pairs if code and len(code.co_freevars) == len(one.__code__.co_freevars)]

    def status(self, tests: Sequence[str], exchanged: Sequence[tuple[FunctionType, CodeType]]) -> int:
        """0 where these pass in this order, with functions of that code; 1 at the first that doesn't."""
        for function, code in exchanged:
            function.__code__ = code
        items = [self.items[test] for test in tests]
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return 1
        return 0
