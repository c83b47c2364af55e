"""The mutation run itself, on a module of three lines and tests that do or don't notice."""

from __future__ import annotations

import ast
from pathlib import Path

import mutants
import pytest
from mutants_fork import BROKEN, outcome
from mutants_tests import KnownTests, Memory
from mutations import mutations

SOURCE = '''
def clipped(values, limit=2):
    """Those up to the limit, in a list of their own."""
    if not values:
        raise ValueError(f"{len(values) + 1}")
    kept = []
    for value in values:
        if value < limit and value != 1:
            kept.append(max(value, 0))
    return kept
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `qtarget` of one module, with its tests."""
    (tmp_path / "tests").mkdir()
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "SOURCE", tmp_path)
    monkeypatch.setattr(mutants, "RESULTS", tmp_path / "build" / "mutants.jsonl")
    monkeypatch.setattr(mutants, "KNOWN", tmp_path / "build" / "mutants_tests.json")
    monkeypatch.setattr(mutants, "TESTS", ("test_shapes.py",))
    monkeypatch.setattr(mutants, "modules", lambda: ["shapes.py"])
    return tmp_path / "shapes.py"


def written(module: Path, source: str, test: str) -> list[mutants.Mutant]:
    """The module's mutants; its test says `from qtarget.shapes import …`, which the mutated module answers."""
    module.write_text(source)
    (module.parent / "tests" / "test_shapes.py").write_text(test)
    return mutants.mutants_of("shapes.py")


def test_each_kind_of_fault_is_made_and_none_in_words_or_errors() -> None:
    changes = {(mutation.before, mutation.after) for mutation in mutations(ast.parse(SOURCE))}
    assert changes == {
        ("def clipped(values, limit=2):", "def clipped(values, limit=3):"),
        ("def clipped(values, limit=2):", "def clipped(values, limit=1):"),
        ("if not values:", "if values:"),
        ("if value < limit and value != 1:", "if value <= limit and value != 1:"),
        ("if value < limit and value != 1:", "if value < limit or value != 1:"),
        ("if value < limit and value != 1:", "if value < limit and value == 1:"),
        ("if value < limit and value != 1:", "if value < limit and value != 2:"),
        ("if value < limit and value != 1:", "if value < limit and value != 0:"),
        ("if value < limit and value != 1:", "if not (value < limit and value != 1):"),
        ("kept.append(max(value, 0))", "kept.append(min(value, 0))"),
        ("kept.append(max(value, 0))", "kept.append(max(value, 1))"),
        ("kept.append(max(value, 0))", "kept.append(max(value, -1))"),
        ("kept.append(max(value, 0))", "pass"),
    }


def test_the_tree_is_whole_again_after_the_last_mutation() -> None:
    tree = ast.parse(SOURCE)
    assert len(list(mutations(tree))) == 13
    assert ast.dump(tree) == ast.dump(ast.parse(SOURCE))


@pytest.mark.parametrize(
    ("source", "change"),
    [
        ("y = f(a, b)", "y = f(b, a)"),
        ("y = x.sum()", "y = x.mean()"),
        ("y = torch.clamp_min(x, z)", "y = torch.clamp_max(x, z)"),
        ("y = a if b else c", "y = c if b else a"),
        ("y = [x for x in z if x]", "y = [x for x in z if not x]"),
        ("y[0] = x", "pass"),
        ("y += x", "y -= x"),
    ],
)
def test_a_fault_of_tensors_and_branches_is_made(source: str, change: str) -> None:
    assert change in [mutation.after for mutation in mutations(ast.parse(source))]


@pytest.mark.slow
def test_a_fault_that_tests_notice_is_killed_and_one_that_changes_nothing_survives(module: Path) -> None:
    source = "def larger(a):\n    return a if a > 0 else 0\n"
    law = "assert [larger(a) for a in (-2, 0, 1, 5)] == [0, 0, 1, 5]"
    test = f"from qtarget.shapes import larger\n\ndef test_larger():\n    {law}\n"
    chosen = {mutant.name.split(": ")[1]: mutant for mutant in written(module, source, test)}
    known = {"tests/test_shapes.py::test_larger": (0.1, ["shapes.py:1"])}  # `qtarget.shapes` is there as a mutant only
    prints = {"tests/test_shapes.py": mutants.fingerprint(module.parent / "tests" / "test_shapes.py")}
    Memory(mutants.KNOWN, mutants.fingerprint(module)).keep(prints, known)
    run = mutants.Run()
    same = chosen["return a if a > 0 else 0 → return a if a >= 0 else 0"]
    wrong = chosen["return a if a > 0 else 0 → return a if a > 1 else 0"]
    assert run.result(same) is None
    results = [run.imported_anew(mutant) for mutant in (same, wrong)]
    assert [result.status for result in results] == ["survived", "killed"]
    assert module.read_text() == source
    assert [mutants.Run().result(mutant) for mutant in (same, wrong)] == results, "an interrupted run knows its results"
    summary, enough = mutants.verdict(results, {})
    assert "survived, line 2" in summary
    assert not enough
    assert mutants.verdict(results, {same.name: "0 is 0"})[1]


def test_a_fault_that_never_ends_is_ended() -> None:
    def endless() -> int:
        while True:
            pass

    assert outcome(endless, 0.2) is None


def test_a_child_that_fails_by_itself_is_no_killed_mutant() -> None:
    def broken() -> int:
        raise RuntimeError("not pytest's")

    assert outcome(broken, 20) == BROKEN


CALLS = """
from dataclasses import dataclass

LIMIT = 2

def doubled(value):
    return 2 * value

class Pair:
    size = 2

    @property
    def both(self):
        def inner():
            return doubled(1)
        return inner()

@dataclass
class Point:
    x: int = 0
"""
TESTS = """
from shapes import Pair, Point, doubled

def test_slow():
    assert sum(doubled(index) for index in range(300_000)) > 0

def test_pair():
    assert Pair().both == 2

def test_point():
    assert Point()
"""


@pytest.mark.slow
def test_a_fault_is_shown_to_the_tests_that_call_its_function_and_the_quicker_first(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = module.parent / "tests"
    monkeypatch.setattr(mutants, "SOURCE", tests)  # on the path of the tests beside it
    (tests / "shapes.py").write_text(CALLS)
    (tests / "test_shapes.py").write_text(TESTS)
    known = mutants.known_tests()
    slow, pair, point = (f"tests/test_shapes.py::test_{name}" for name in ("slow", "pair", "point"))
    assert known.of("shapes.py", line=7) == [pair, slow]
    assert known.of("shapes.py", line=14) == [pair]
    assert known.of("shapes.py", line=10) == [pair], "what stands in a class is used by its methods"
    assert known.of("shapes.py", line=4) == [pair, slow], "what stands in a module is used by every function"
    assert known.of("shapes.py", line=20) == [point], "a field is used by whoever makes one"
    assert set(known.of("shapes.py", line=10, always=("test_shapes.py",))) == {slow, pair, point}
    prints = {"tests/test_shapes.py": mutants.fingerprint(tests / "test_shapes.py")}
    memory = Memory(mutants.KNOWN, mutants.fingerprint(tests / "shapes.py"))
    assert memory.changed(prints) == []
    assert memory.changed({"tests/test_shapes.py": "of another day"}) == ["tests/test_shapes.py"]
    assert Memory(mutants.KNOWN, "of another source").changed(prints) == ["tests/test_shapes.py"]


@pytest.mark.slow
def test_faults_of_functions_are_tried_in_one_process_and_the_others_are_left(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = module.parent / "tests"
    monkeypatch.setattr(mutants, "SOURCE", tests)
    (tests / "shapes.py").write_text(CALLS)
    (tests / "test_shapes.py").write_text(TESTS)
    run, every = mutants.Run(), mutants.mutants_of("shapes.py")
    assert outcome(lambda: run.exchanged(every, lambda result: None), 60) == 0
    tried = {name.split(": ", maxsplit=1)[1]: result.status for name, result in run.read().items()}
    assert tried == {
        "return 2 * value → return 2 / value": "killed",
        "return 2 * value → return 3 * value": "killed",
        "return 2 * value → return 1 * value": "killed",
        "return doubled(1) → return doubled(2)": "killed",
        "return doubled(1) → return doubled(0)": "killed",
    }
    left = {mutant.name.split(": ", maxsplit=1)[1] for mutant in every} - tried.keys()
    assert left == {"LIMIT = 2 → LIMIT = 3", "LIMIT = 2 → LIMIT = 1", "size = 2 → size = 3", "size = 2 → size = 1"} | {
        "x: int = 0 → x: int = 1",
        "x: int = 0 → x: int = -1",
    }


def test_quick_tests_are_run_before_the_others_and_those_slow_to_read_at_last() -> None:
    seconds = {"test_a.py::x": 0.1, "test_laws.py::x": 0.2, "test_a.py::y": 1.0, "test_b.py::x": 5.0}
    parts = KnownTests(seconds, {}, Path()).stages(list(seconds))
    assert [tests for tests, _ in parts] == [["test_a.py::x", "test_a.py::y"], ["test_b.py::x"], ["test_laws.py::x"]]
    assert [total for _, total in parts] == pytest.approx([1.1, 5.0, 0.2])


def test_a_sample_is_the_same_for_one_seed_and_another_for_the_next() -> None:
    everything = mutants.mutants_of("data/batch.py")
    first, again, other = (list(mutants.sampled(everything, "5", seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert len({mutant.name for mutant in everything}) == len(everything)


def test_every_reviewed_survivor_is_a_mutant_of_today_and_has_a_reason() -> None:
    names = {mutant.name for module in mutants.modules() for mutant in mutants.mutants_of(module)}
    assert all(reason for reason in mutants.reviewed().values())
    assert mutants.reviewed().keys() <= names
