"""The mutation run itself, on a module of three lines and tests that do or don't notice."""

from __future__ import annotations

import ast
from pathlib import Path

import mutants
import pytest
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
    monkeypatch.setattr(mutants, "STAGES", {"shapes.py": (("test_shapes.py",),)})
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
    run = mutants.Run()
    run.limits[("test_shapes.py",)] = 60.0  # the module answers to `qtarget.shapes` only as a mutant
    same = chosen["return a if a > 0 else 0 → return a if a >= 0 else 0"]
    wrong = chosen["return a if a > 0 else 0 → return a if a > 1 else 0"]
    assert run.result(same).status == "survived"
    assert run.result(wrong).status == "killed"
    assert module.read_text() == source
    assert set(mutants.Run().results) == {same.name, wrong.name}, "an interrupted run knows its results"
    summary, enough = mutants.verdict([run.result(same), run.result(wrong)], {})
    assert "survived, line 2" in summary
    assert not enough
    assert mutants.verdict([run.result(same), run.result(wrong)], {same.name: "0 is 0"})[1]


def test_a_fault_that_never_ends_is_ended() -> None:
    def endless() -> int:
        while True:
            pass

    assert mutants.outcome(endless, 0.2) is None


def test_a_child_that_fails_by_itself_is_no_killed_mutant() -> None:
    def broken() -> int:
        raise RuntimeError("not pytest's")

    assert mutants.outcome(broken, 20) == mutants.BROKEN


def test_a_sample_is_the_same_for_one_seed_and_another_for_the_next() -> None:
    everything = mutants.mutants_of("data/batch.py")
    first, again, other = (list(mutants.sampled(everything, "5", seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert len({mutant.name for mutant in everything}) == len(everything)


def test_every_reviewed_survivor_is_a_mutant_of_today_and_has_a_reason() -> None:
    names = {mutant.name for module in mutants.modules() for mutant in mutants.mutants_of(module)}
    assert all(reason for reason in mutants.reviewed().values())
    assert mutants.reviewed().keys() <= names
