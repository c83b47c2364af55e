"""Sweep files, read without W&B, and the overrides that their points become."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from qtarget.config.composing import compose_config
from qtarget.config.overrides import quoted
from qtarget.errors import QTargetError
from qtarget.sweep.file import SweepFile, read_sweep
from qtarget.sweep.points import JobFactory, corners, grid_points, random_point, random_points
from qtarget.sweep.space import distribution

COMMAND = ["${env}", "qtarget", "train", "${args_no_hyphens}"]


def sweep_of(folder: Path, **changes: Any) -> SweepFile:
    content = {"method": "random", "run_cap": 3, "parameters": {"seed": {"values": [0, 1]}}, "command": COMMAND}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return read_sweep(path)


def test_everything_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(
        """
program: qtarget
description: only shown at W&B
project: there
method: random
name: mine
metric: {name: val/accuracy, goal: maximize}
run_cap: 7
early_terminate: {type: hyperband, min_iter: 2}
command: ["${env}", "${program}", "train", experiment=demo, "tracker=wandb", "${args_no_hyphens}", trainer.max_steps=2]
parameters:
  target: {values: [sft, dft]}
  data:
    parameters:
      noise: {parameters: {rate: {min: 0.0, max: 0.5}}}
      rows: {value: 64}
  optim.lr: {distribution: log_uniform_values, min: 1.0e-5, max: 1.0e-3}
  target/weight: {value: one}
"""
    )
    file = read_sweep(path)
    assert (file.name, file.method, file.run_cap) == ("mine", "random", 7)
    assert file.metric
    assert (file.metric.name, file.metric.maximize) == ("val/accuracy", True)
    assert list(file.parameters) == ["target", "data.noise.rate", "optim.lr"]
    assert file.constants == {"data.rows": 64, "target/weight": "one"}
    assert file.stopping
    assert file.stopping.bands[:2] == (2, 6)
    assert JobFactory(file, ("tracker.mode=x", "data.rows=8")).arguments({"target": "dft", "optim.lr": 1e-5}) == [
        "experiment_name=mine",
        "experiment=demo",
        "data.rows=8",
        "target/weight=one",
        "target=dft",
        "optim.lr=1e-05",
        "trainer.max_steps=2",
        "tracker.mode=x",
    ]


def test_a_file_without_a_name_has_its_own(tmp_path: Path) -> None:
    file = sweep_of(tmp_path)
    assert (file.name, file.metric, file.stopping) == ("mine", None, None)


@pytest.mark.parametrize(
    ("command", "before", "prefix"),
    [
        (["qtarget", "train", "${args_no_hyphens}"], (), ""),
        (["/usr/bin/env", "/opt/bin/qtarget", "train", "a=1", "${args_append_hydra}"], ("a=1",), "+"),
        (["${env}", "${interpreter}", "-m", "qtarget", "train", "${args_override_hydra}"], (), "++"),
        (["python3.11", "-m", "qtarget", "train", "seed=${envvar:MY_SEED}", "${args_no_hyphens}"], ("seed=5",), ""),
    ],
)
def test_commands_that_run_qtarget(
    command: list[str], before: tuple[str, ...], prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SEED", "5")
    file = sweep_of(tmp_path, command=command)
    assert (file.before, file.prefix, file.after) == (before, prefix, ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "anneal"}, "method must be one of grid, random, bayes"),
        ({"methods": "grid"}, "unknown key 'methods': did you mean 'method'"),
        ({"scheduler": {"engine": "optuna"}}, "'scheduler' is not supported offline"),
        ({"metrics": []}, "'metrics' is not supported offline"),
        ({"metric": {"goal": "minimize"}}, "metric needs `name"),
        ({"metric": {"name": "x", "goal": "max"}}, "goal must be one of"),
        ({"metric": {"name": "x", "target": 1}}, "metric.target is not supported offline"),
        ({"method": "bayes"}, "bayes needs `metric"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1}}, "early_terminate needs `metric"),
        (
            {"early_terminate": {"type": "hyperband", "min_iter": 1}, "metric": {"name": "test/nll"}},
            "such as val/nll, not test/nll",
        ),
        ({"parameters": {}}, "at least one key"),
        ({"parameters": {"a b": {"value": 1}}}, "'a b' is no key"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}, "value": 1}}}, "nothing else may stand"),
        ({"method": "grid", "parameters": {"optim.lr": {"min": 0.0, "max": 1.0}}}, "optim.lr: a grid takes"),
        ({"parameters": {"optim.lr": {"min": 1.0, "max": 0.0}}}, "mine.yaml: optim.lr: min must be below max"),
        ({"run_cap": 0}, "run_cap must be a whole number"),
        ({"name": "a/b"}, "name is a folder's name"),
        ({"command": None}, "needs `command"),
        ({"command": ["${env}", "python", "train.py", "${args}"]}, "must run qtarget train"),
        ({"command": ["qtarget", "cache", "${args_no_hyphens}"]}, "must run qtarget train"),
        ({"command": ["${env}", "${program}", "train", "${args_no_hyphens}"]}, "must run qtarget train"),
        ({"command": ["qtarget", "train", "${args}"]}, "must hold one of"),
        ({"command": ["qtarget", "train"]}, "must hold one of"),
        ({"command": ["qtarget", "train", "-m", "${args_no_hyphens}"]}, "no options: -m"),
        ({"command": ["qtarget", "train", "seed=${envvar:NOT_SET}", "${args_no_hyphens}"]}, "export NOT_SET"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(QTargetError, match=message):
        sweep_of(tmp_path, **changes)


@pytest.mark.parametrize(("text", "message"), [("[1]", "is a mapping"), ("a: [", "is no YAML")])
def test_what_is_no_sweep(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(QTargetError, match=message):
        read_sweep(tmp_path / "x.yaml")
    with pytest.raises(QTargetError, match="can't be read"):
        read_sweep(tmp_path / "none.yaml")


# Quoting

TEXT = st.text().filter(lambda text: "${" not in text and "\0" not in text)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
PARSER = OverridesParser.create()


def parsed(value: Any) -> Any:
    return PARSER.parse_override(f"key={quoted(value)}").value()


def typed(value: Any) -> Any:
    """With types, which == doesn't tell apart: True and 1, 1 and 1.0, −0.0 and 0.0."""
    return [typed(one) for one in value] if isinstance(value, list) else (type(value).__name__, repr(value))


@given(VALUES)
def test_hydra_reads_every_value_as_it_was(value: Any) -> None:
    assert typed(parsed(value)) == typed(value)


@given(st.lists(st.sampled_from(["null", "true", "1e5", "1", "nan", "'", '"', "\\", ",", "{", "=", "(", " ", "a"])))
def test_nor_does_it_take_text_for_anything_else(parts: list[str]) -> None:
    assert parsed("".join(parts)) == "".join(parts)


@pytest.mark.parametrize("value", ["a, b", "{x: 1}", "x=1", "null", "it's", "a\\", "line\nbreak", "γ", ""])
def test_quoted_text_reaches_the_configuration(value: str) -> None:
    assert compose_config("train", [f"name={quoted(value)}"]).name == value


@pytest.mark.parametrize("value", [{"lr": 0.1}, [{"a": 1}], "${seed}", yaml.safe_load("2026-01-02")])
def test_what_has_no_override_is_refused_with_its_key(value: Any, tmp_path: Path) -> None:
    file = sweep_of(tmp_path)
    with pytest.raises(QTargetError, match=r"mine.yaml: optim: .*can't be a value of a sweep"):
        JobFactory(file, ()).arguments({"optim": value})


# Points


def space(**fields: Any) -> dict[str, Any]:
    return {key: distribution(key, one) for key, one in fields.items()}


def test_a_grid_is_the_product_in_order() -> None:
    found = list(grid_points(space(a={"values": ["x", "y"]}, b={"min": 1, "max": 2}, c={"value": 0})))
    assert [tuple(point.values()) for point in found] == [("x", 1, 0), ("x", 2, 0), ("y", 1, 0), ("y", 2, 0)]


def test_a_random_point_depends_on_seed_number_and_key_alone() -> None:
    two = space(a={"min": 0.0, "max": 1.0}, b={"min": 0.0, "max": 1.0})
    swapped = dict(reversed(two.items()))
    assert random_point(two, 3, 5) == random_point(swapped, 3, 5)
    assert random_point(two, 3, 5)["a"] == random_point({"a": two["a"]}, 3, 5)["a"]
    drawn = {tuple(random_point(two, seed, number).values()) for seed in range(3) for number in range(5)}
    assert len(drawn) == 15
    assert all(a != b for a, b in drawn)


def test_random_points_are_unlike_and_end_with_the_space() -> None:
    found = list(random_points(space(a={"values": [1, 2, 3]}, b={"values": [True, False]}), seed=1))
    assert sorted(tuple(point.values()) for point in found) == sorted(itertools.product([1, 2, 3], [False, True]))


def test_corners_hold_each_value_and_both_ends() -> None:
    found = list(corners(space(a={"values": ["x", "y"]}, b={"min": 0.0, "max": 1.0})))
    assert {(point["a"], point["b"]) for point in found} == {("y", 0.5), ("x", 0.5), ("y", 0.0), ("y", 1.0)}


def check_all(jobs: JobFactory, points: Iterable[Mapping[str, Any]]) -> None:
    jobs.check_overrides()
    for values in points:
        jobs.make_job(values)


@pytest.mark.parametrize(
    ("parameters", "overrides", "message"),
    [
        ({"optim.lrr": {"values": [1.0, 2.0]}}, (), "optim.lrr=1.0: unknown key 'optim.lrr': did you mean 'lr'"),
        ({"target": {"values": ["dft", "dfft"]}}, (), "target=dfft: unknown target 'dfft': did you mean 'dft'"),
        ({"target/residual": {"values": ["priors"]}}, ("target=target_sft",), "unknown target/residual 'priors'"),
        ({"target.reliance.alpha": {"values": [-1.0, 0.5]}}, ("target=dft",), r"=-1\.0: target\.reliance\.alpha must"),
        ({"trainer.max_steps": {"values": [None, 5]}}, (), r"max_steps=null: "),
        ({"trainer": {"values": ["default", "dry"]}}, (), "trainer=dry leaves no results"),
        ({"seed": {"values": [0, 1]}}, ("seed=3",), "sweeps seed: change it there"),
        ({"output_dir": {"values": ["a", "b"]}}, (), "where results go"),
        ({"target": {"values": ["sft", "dft"]}}, ("optim.lr=1,2",), "optim.lr"),
    ],
)
def test_every_configuration_is_checked_before_anything_runs(
    parameters: dict[str, Any], overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    file = sweep_of(tmp_path, method="grid", parameters=parameters)
    jobs = JobFactory(file, overrides)
    points = grid_points({key: distribution(key, fields) for key, fields in parameters.items()})
    with pytest.raises(QTargetError, match=message):
        check_all(jobs, points)


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_range_stays_one_whatever_a_grid_would_make_of_it(method: str, tmp_path: Path) -> None:
    """The grid of q_uniform leaves its upper end out, and that of a wide range fits no memory."""
    ranges = {
        "a": {"distribution": "q_uniform", "min": 0, "max": 1},
        "b": {"min": 0, "max": 2**62},
        "c": {"values": [3]},
    }
    found = sweep_of(tmp_path, method=method, parameters=ranges, metric={"name": "val/nll"})
    assert (set(found.parameters), found.constants) == ({"a", "b"}, {"c": 3})
