"""The sweeps that are shipped: every key and option exists, and what they go by is logged."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose
from wandb_server import points

from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import composing, instantiate_design
from qtarget.config.run_config import RunConfig
from qtarget.record.wandb_sweep import BEST, best_of

FILES = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))
COMMAND = ["${env}", "qtarget", "train", "tracker=wandb", "tracker.mode=online", "${args_no_hyphens}"]


def composed(values: Mapping[str, Any]) -> Any:
    """The configuration of one point, its values written as W&B's agent writes them."""
    return compose("train", overrides=[f"{name}={value}" for name, value in values.items()])


def corners(parameters: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The ends of every range, with every combination of the other values."""
    ends = [
        one.get("values") or [one[end] for end in ("value", "min", "max") if end in one] for one in parameters.values()
    ]
    return (dict(zip(parameters, chosen, strict=True)) for chosen in itertools.product(*ends))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_says_what_agents_and_the_offline_driver_need(file: Path) -> None:
    sweep = yaml.safe_load(file.read_text())
    assert (sweep["name"], sweep["project"], sweep["command"]) == (file.stem, "qtarget", COMMAND)
    assert sweep["method"] in ("grid", "random", "bayes")
    assert best_of(sweep["metric"]["name"]) == BEST[sweep["metric"]["goal"]]
    assert sweep["parameters"]["experiment_name"] == {"value": file.stem}
    told = file.read_text().partition("\nname:")[0]
    assert f"wandb sweep sweeps/{file.name}" in told
    assert f"qtarget sweep sweeps/{file.name}" in told
    if sweep["method"] == "grid":
        assert len(list(corners(sweep["parameters"]))) == sweep["run_cap"]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_corner_and_fifty_points_compose(file: Path) -> None:
    sweep = yaml.safe_load(file.read_text())
    drawn = itertools.islice(points(sweep | {"method": "random"}), 50)
    with composing():
        for values in (*corners(sweep["parameters"]), *drawn):
            cfg = composed(values)
            assert instantiate_design(RunConfig.read(cfg).target)


@pytest.mark.parametrize("launcher", ["basic", "slots"])
def test_a_multirun_is_refused_under_an_agent(
    launcher: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    assert qtarget_cli(["train", "-m", f"hydra/launcher={launcher}", "model=tiny", "seed=0,1"]) == 2
    assert "let the sweep say what varies" in capsys.readouterr().err
    assert not list(workdir.glob("outputs/*/*/result.json"))
