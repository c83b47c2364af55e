"""The sweeps that are shipped: every key and option exists, and what they go by is logged."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from wandb_server import points

from qtarget.cli import run as qtarget_cli
from qtarget.config.shipped_sweeps import sweep_file
from qtarget.measures import validation_direction
from qtarget.record.wandb_sweep import BEST
from qtarget.sweep.file import read_sweep
from qtarget.sweep.points import JobFactory, random_points
from qtarget.sweep.points import corners as sweep_corners

FILES = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))
COMMAND = ["${env}", "qtarget", "train", "tracker=wandb", "tracker.mode=online", "${args_no_hyphens}"]


def read(words: Iterable[str]) -> dict[str, Any]:
    """What Hydra takes from overrides, in any order."""
    parsed = OverridesParser.create().parse_overrides(list(words))
    return {one.get_key_element(): one.value() for one in parsed}


def agent_points(sweep: Mapping[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """Drawn as W&B draws."""
    return itertools.islice(points(sweep), count)


def driver_points(jobs: JobFactory, sweep: Mapping[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """What the offline driver checks first, and what it draws, with what the file keeps fixed."""
    fixed = {name: one["value"] for name, one in sweep["parameters"].items() if "value" in one}
    space = jobs.file.parameters
    for values in (*sweep_corners(space), *itertools.islice(random_points(space, 0), count)):
        yield {name: (fixed | values)[name] for name in sweep["parameters"]}


def ends(parameter: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameter, of its numbers the least and the largest: what is legal of a number is an interval."""
    values = parameter.get("values", [])
    numbers = [value for value in values if isinstance(value, (int, float))]
    return {"values": [min(numbers), max(numbers)]} if numbers and numbers == values else parameter


def corners(parameters: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The ends of every range, with every combination of the other values."""
    choices = [
        one.get("values") or [one[end] for end in ("value", "min", "max") if end in one] for one in parameters.values()
    ]
    return (dict(zip(parameters, chosen, strict=True)) for chosen in itertools.product(*choices))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_says_what_agents_and_the_offline_driver_need(file: Path) -> None:
    sweep = yaml.safe_load(file.read_text())
    assert (sweep["name"], sweep["project"], sweep["command"]) == (file.stem, "qtarget", COMMAND)
    assert sweep["method"] in ("grid", "random", "bayes")
    assert validation_direction(sweep["metric"]["name"]) == BEST[sweep["metric"]["goal"]]
    assert sweep["parameters"]["experiment_name"] == {"value": file.stem}
    told = file.read_text().partition("\nname:")[0]
    assert f"wandb sweep sweeps/{file.name}" in told
    assert f"qtarget sweep sweeps/{file.name}" in told
    if sweep["method"] == "grid":
        assert len(list(corners(sweep["parameters"]))) == sweep["run_cap"]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_corner_and_fifty_points_are_right(file: Path) -> None:
    """What an agent writes for a point is read as what the offline driver writes. The corners are composed too: each
    choice with every other, and both ends of what is a number.
    """
    sweep, jobs = yaml.safe_load(file.read_text()), JobFactory(read_sweep(file), ())
    drawn = [] if sweep["method"] == "grid" else [*agent_points(sweep, 25), *driver_points(jobs, sweep, 25)]
    for values in (*corners(sweep["parameters"]), *drawn):
        swept = {name: values[name] for name in jobs.file.parameters}
        assert read(f"{name}={value}" for name, value in values.items()) == read(jobs.arguments(swept))
    for values in corners({name: ends(one) for name, one in sweep["parameters"].items()}):
        swept = {name: values[name] for name in jobs.file.parameters}
        assert jobs.make_job(swept).folder.parent.name == file.stem


@pytest.mark.parametrize("launcher", ["basic", "slots"])
def test_a_multirun_is_refused_under_an_agent(
    launcher: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    assert qtarget_cli(["train", "-m", f"hydra/launcher={launcher}", "model=tiny", "seed=0,1"]) == 2
    assert "let the sweep say what varies" in capsys.readouterr().err
    assert not list(workdir.glob("outputs/*/*/result.json"))


def test_the_shipped_sweeps_are_listed_with_a_sentence_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["sweep", "--list"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [file.stem for file in FILES]
    for line, file in zip(lines, FILES, strict=True):
        sentence = line.split(maxsplit=1)[1]
        assert sentence[-1] in ".?"
        assert " ".join(file.read_text().replace("\n# ", " ").split()).startswith(f"# {sentence} ")
    assert last.endswith(str(FILES[0].parent))


def test_a_shipped_sweep_is_taken_by_its_name_and_a_file_of_that_name_comes_first(workdir: Path) -> None:
    assert sweep_file("noise_robustness") == next(file for file in FILES if file.stem == "noise_robustness")
    Path("noise_robustness").touch()
    assert sweep_file("noise_robustness") == Path("noise_robustness")
    assert sweep_file("mine/own.yaml") == Path("mine/own.yaml")


def test_an_unknown_name_of_a_sweep_names_the_nearest(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["sweep", "noise_robustnes"]) == 2
    assert "no file and no shipped sweep 'noise_robustnes': did you mean 'noise_robustness'?" in capsys.readouterr().err
