"""One sweep file, two ways: W&B's agent and `qtarget sweep` make the same point and the same run of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
from wandb.sdk.lib.config_util import save_config_file_from_dict

from qtarget.config.composing import compose_config
from qtarget.config.identity import config_hash
from qtarget.errors import QTargetError
from qtarget.sweep.agent_runs import restore_swept_values
from qtarget.sweep.file import read_sweep
from qtarget.sweep.points import JobFactory, grid_points

PARSER = OverridesParser.create()
MACROS = {"": "args_no_hyphens", "+": "args_append_hydra", "++": "args_override_hydra"}


def agents_arguments(
    args: Mapping[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, prefix: str = ""
) -> list[str]:
    """What wandb 0.31's agent puts on a command line, and its file of values, both made by wandb's own functions."""
    handed = {key: {"value": value} for key, value in args.items()}
    file = folder / "wandb/sweep-abc/config-run1.yaml"
    save_config_file_from_dict(str(file), handed)
    for name, value in {"SWEEP_ID": "abc", "RUN_ID": "run1", "SWEEP_PARAM_PATH": str(file)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    made: list[str] = create_sweep_command_args({"args": handed})[MACROS[prefix]]
    return made


def parsed(arguments: list[str]) -> dict[str, Any]:
    return {one.key_or_group: one.value() for one in PARSER.parse_overrides(arguments)}


def offline_arguments(folder: Path, parameters: Mapping[str, Any]) -> list[str]:
    """Those of the one point of a sweep file."""
    file = folder / "same.yaml"
    content = {"method": "grid", "parameters": parameters}
    content["command"] = ["${env}", "qtarget", "train", "model=tiny", "${args_no_hyphens}", "experiment_name=same"]
    file.write_text(yaml.safe_dump(content))
    sweep = read_sweep(file)
    (point,) = grid_points(sweep.parameters)
    return JobFactory(sweep, ()).arguments(point)


def identity(arguments: list[str]) -> tuple[DictConfig, str]:
    cfg = compose_config("train", arguments)
    return cfg, config_hash(cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.max_length", None),
        ("checkpoint.every", None),
        ("name", None),
        ("name", "None"),
        ("name", "null"),
        ("name", "True"),
        ("name", "1e5"),
        ("name", "2026_11_27"),
        ("name", "a, b"),
        ("name", "x=1 (y)"),
        ("checkpoint.save", False),
        ("eval.kl_prior", True),
        ("optim.betas", [0.9, 0.99]),
        ("optim.lr", 1e-05),
        ("seed", 3),
        ("target", "dft"),
    ],
)
def test_a_point_is_the_same_under_an_agent_and_offline(
    key: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent writes null as `None`, which Hydra reads as a text of four letters, and true as `True`."""
    offline = offline_arguments(tmp_path, {key: {"value": value}})
    handed = agents_arguments({key: value}, tmp_path, monkeypatch)
    agent = ["model=tiny", *restore_swept_values(handed), "experiment_name=same"]
    assert identity(agent) == identity(offline)
    if key != "target":
        assert OmegaConf.select(identity(agent)[0], key) == value


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_every_way_of_handing_over_keeps_types(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = {"a.b": None, "a.c": "None", "d": True, "e": "true", "f": [None, "x y", 1.5], "g": "~", "h": ""}
    arguments = agents_arguments(args, tmp_path, monkeypatch, prefix)
    assert parsed(restore_swept_values(arguments)) == args


def test_keys_below_a_key_arrive_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`parameters` below a parameter: the agent writes a mapping of Python's, which Hydra can't read."""
    args = {"optim": {"lr": 0.001, "betas": [0.9, 0.95]}, "seed": 1}
    nested = {"optim": {"parameters": {"lr": {"value": 0.001}, "betas": {"value": [0.9, 0.95]}}}, "seed": {"value": 1}}
    agent = ["model=tiny", *restore_swept_values(agents_arguments(args, tmp_path, monkeypatch)), "experiment_name=same"]
    assert parsed(agent)["optim.lr"] == 0.001
    assert identity(agent) == identity(offline_arguments(tmp_path, nested))


def test_what_the_agent_did_not_hand_over_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agents_arguments({"name": None}, tmp_path, monkeypatch)
    assert restore_swept_values(["name=None", "role=None", "-m", "name=other"]) == [
        "name=null",
        "role=None",
        "-m",
        "name=other",
    ]
    monkeypatch.delenv("WANDB_RUN_ID")
    assert restore_swept_values(["name=None"]) == ["name=None"]


def test_a_number_that_yaml_takes_for_text_is_one_to_the_agents_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1e-5 without a point is text in YAML 1.1; Hydra made a number of it, and offline it is refused with the mend."""
    lr = yaml.safe_load("1e-5")
    assert parsed(restore_swept_values(agents_arguments({"optim.lr": lr}, tmp_path, monkeypatch))) == {"optim.lr": 1e-5}
    with pytest.raises(QTargetError, match=r"write 1\.0e-5"):
        offline_arguments(tmp_path, {"optim.lr": {"value": lr}})


@pytest.mark.parametrize(("key", "written"), [("name", "2026_11_27"), ("target", "7"), ("experiment", "true")])
def test_a_name_that_yaml_takes_for_something_else_is_refused_both_ways(
    key: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = yaml.safe_load(written)
    with pytest.raises(QTargetError, match=f"{key} is text, and {value!r} is none: write it in quotes"):
        restore_swept_values(agents_arguments({key: value}, tmp_path, monkeypatch))
    with pytest.raises(QTargetError, match=f"{key} is text, and {value!r} is none: write it in quotes"):
        offline_arguments(tmp_path, {key: {"value": value}})


@pytest.mark.parametrize("value", ["'a,b'", '"null"'])
def test_a_text_with_quotes_of_its_own_is_refused(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, an agent's run needed them; now they would be letters of the name."""
    with pytest.raises(QTargetError, match=f"name: the sweep's value {value} has quotes .* write {value[1:-1]} in"):
        restore_swept_values(agents_arguments({"name": value}, tmp_path, monkeypatch))


def test_a_file_of_values_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = agents_arguments({"name": None}, tmp_path, monkeypatch)
    (tmp_path / "wandb/sweep-abc/config-run1.yaml").unlink()
    with pytest.raises(QTargetError, match=r"the file of its values, .* can't be read"):
        restore_swept_values(arguments)
