"""Which tests a fault is shown to: those that call the function it stands in, quickest first.

A run without a fault notes what each test calls and how long it takes; build/mutants_tests.json keeps that until the
test's file or the source changes. What a cache of the process holds for later tests was called by the first one alone,
so a fault rather survives too often than too seldom.
"""

from __future__ import annotations

import ast
import itertools
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

QUICK = 1.5
"""Seconds of the tests that are run before the others."""
SLOW_TO_READ = ("test_laws.py",)
"""Files that take seconds before a test of theirs runs: they come last."""


@dataclass(frozen=True)
class KnownTests:
    """What is known of tests.

    seconds: of each. callers: function, by where it begins ("math/head.py:36"), or class ("math/head.py:Head") → the
    tests that call it or make one.
    """

    seconds: dict[str, float]
    callers: dict[str, list[str]]
    source: Path

    def of(self, module: str, line: int, always: Sequence[str] = ()) -> list[str]:
        """The tests for a fault at this line, quickest first; `always`: files whose tests see faults of an import.

        Of a function that no test calls, the import does: all that call any of its module.
        """
        tree = ast.parse((self.source / module).read_text())
        functions, at_import = called_with(tree, line)
        tests = self._callers(module, functions)
        if at_import or not tests:
            tests = tests or self._callers(module, functions_of(tree))
            tests |= {test for test in self.seconds if Path(test.split("::")[0]).name in always}
        return sorted(tests, key=lambda test: (self.seconds[test], test))

    def calls(self, module: str, line: int) -> bool:
        """Whether a test calls a function around this line."""
        functions, at_import = called_with(ast.parse((self.source / module).read_text()), line)
        return not at_import and bool(self._callers(module, functions))

    def _callers(self, module: str, places: Sequence[int | str]) -> set[str]:
        return {test for place in places for test in self.callers.get(f"{module}:{place}", ())}

    def stages(self, tests: Sequence[str]) -> list[tuple[list[str], float]]:
        """Parts to run one after another, each with its seconds: the quick ones, the others, those slow to read."""
        late = [test for test in tests if Path(test.split("::")[0]).name in SLOW_TO_READ]
        early = [test for test in tests if test not in set(late)]
        ends = itertools.accumulate(self.seconds[test] for test in early)
        quick = sum(end <= QUICK for end in ends)
        parts = [part for part in (early[:quick], early[quick:], late) if part]
        return [(part, sum(self.seconds[test] for test in part)) for part in parts]


def called_with(tree: ast.Module, line: int) -> tuple[Sequence[int | str], bool]:
    """Where the functions begin, or what the class is called, that use a line; and whether the import runs it.

    Inside of a function that is the function; in the body of a class it and its methods; elsewhere every function.
    """
    around = [node for node in ast.walk(tree) if _begins(node) <= line <= getattr(node, "end_lineno", 0)]
    inside = [node for node in around if isinstance(node, ast.FunctionDef)]
    if inside:
        return [_begins(max(inside, key=_begins))], False
    classes = [node for node in around if isinstance(node, ast.ClassDef)]
    if classes:
        innermost = max(classes, key=_begins)
        return [innermost.name, *functions_of(innermost)], True
    return functions_of(tree), True


def functions_of(tree: ast.AST) -> list[int]:
    """Where the functions below a node begin."""
    return [_begins(node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def _begins(node: ast.AST) -> int:
    """A node's first line, its decorators' included, as code objects count."""
    decorators = getattr(node, "decorator_list", [])
    return min([getattr(node, "lineno", sys.maxsize), *(decorator.lineno for decorator in decorators)])


class Watching:
    """A plugin of pytest that notes of each test its seconds and the functions below `source` that it calls."""

    def __init__(self, source: Path) -> None:
        self.source = str(source) + "/"
        self.tests: dict[str, tuple[float, list[str]]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[Any]:
        called: dict[int, CodeType] = {}
        made: set[type] = set()

        def note(frame: FrameType, event: str, argument: object) -> None:
            if event == "call":
                called[id(frame.f_code)] = frame.f_code
                if frame.f_code.co_name == "__init__" and frame.f_code.co_filename == "<string>":  # a dataclass's
                    made.add(type(frame.f_locals["self"]))

        start = time.process_time()
        sys.setprofile(note)
        try:
            return (yield)
        finally:
            sys.setprofile(None)
            ours = [code for code in called.values() if code.co_filename.startswith(self.source)]
            functions = {f"{code.co_filename.removeprefix(self.source)}:{code.co_firstlineno}" for code in ours}
            classes = {place for cls in made for place in self._places(cls)}
            self.tests[item.nodeid] = (round(time.process_time() - start, 3), sorted(functions | classes))

    def _places(self, cls: type) -> Iterator[str]:
        """A class and those that it is made of, as far as they are ours."""
        for one in cls.__mro__:
            path = getattr(sys.modules.get(one.__module__), "__file__", None) or ""
            if path.startswith(self.source):
                yield f"{path.removeprefix(self.source)}:{one.__name__}"


class Chosen:
    """A plugin of pytest that runs these tests in this order and no others."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.order = {test: index for index, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((one for one in items if one.nodeid in self.order), key=lambda one: self.order[one.nodeid])


class Memory:
    """What was noted, test file by test file, at `path`; `source`: of the fingerprint that the source has today."""

    def __init__(self, path: Path, source: str) -> None:
        kept = json.loads(path.read_text()) if path.exists() else {}
        self.path, self.source = path, source
        self.files: dict[str, Any] = kept["files"] if kept.get("source") == source else {}

    def changed(self, prints: Mapping[str, str]) -> list[str]:
        """Files (path → fingerprint) of which nothing is known, or not in this form."""
        return [file for file, key in prints.items() if self.files.get(file, {}).get("key") != key]

    def keep(self, prints: Mapping[str, str], tests: Mapping[str, tuple[float, list[str]]]) -> None:
        """What was noted of the tests of these files."""
        for file, key in prints.items():
            own = {name: noted for name, noted in tests.items() if name.split("::")[0] == file}
            self.files[file] = {"key": key, "tests": own}
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(json.dumps({"source": self.source, "files": self.files}, ensure_ascii=False))

    def known(self, files: Iterable[str], root: Path) -> KnownTests:
        """Of these files; root: the folder of the source."""
        seconds: dict[str, float] = {}
        callers: dict[str, list[str]] = defaultdict(list)
        for file in files:
            for test, (taken, functions) in self.files[file]["tests"].items():
                seconds[test] = taken
                for function in functions:
                    callers[function].append(test)
        return KnownTests(seconds, callers, root)
