"""`qtarget sweep`: with stand-ins for jobs, which write a record in no time, and with the tiny model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from qtarget.cli import run as qtarget_cli
from qtarget.config import run_config
from qtarget.config.composing import compose_config
from qtarget.errors import QTargetError
from qtarget.launch import slots
from qtarget.sweep import command as sweep_command
from qtarget.sweep import points as sweep_points
from qtarget.sweep import scheduler

COMMAND = ["${env}", "qtarget", "train", "model=tiny", "${args_no_hyphens}"]
STAND_IN = """
import json, sys, time
from pathlib import Path

folder, identity, *overrides = sys.argv[1:]
told = dict(override.partition("=")[::2] for override in overrides)
rate = round(20 * float(told.get("optim.lr", 0.05)), 9)
steps = int(told.get("trainer.max_steps", 3))
folder = Path(folder)
with open("starts.txt", "a") as starts:
    starts.write(folder.name + "\\n")

def write(status, **facts):
    (folder / "result.json").write_text(json.dumps({"status": status, "config_hash": identity, "metrics": {}, **facts}))

write("running")
if rate == 13:
    sys.exit("an unlucky number")
with open(folder / "metrics.jsonl", "w") as lines:
    for step in range(steps):
        nll = None if rate == 11 else rate / (step + 1)  # a record holds null for NaN
        lines.write(json.dumps({"step": step, "val/nll": nll, "val/kl_prior": None}) + "\\n")
        lines.flush()
        time.sleep(float(told.get("trainer.clip", 0)))
write("finished", metrics={"test/nll": rate / steps, "train/nll": rate})
"""


@cache
def defaults() -> DictConfig:
    return compose_config("train", ["model=tiny"])


def composed(config_name: str, overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """What composing gives where only values are overridden, for a fraction of its time."""
    if with_hydra:
        return compose_config(config_name, overrides, with_hydra=True)
    cfg = deepcopy(defaults())
    for override in OverridesParser.create().parse_overrides([one for one in overrides if one != "model=tiny"]):
        OmegaConf.update(cfg, override.key_or_group, override.value())
    return cfg


@pytest.fixture
def stand_ins(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which jobs are stand-ins: val/nll falls from 20·optim.lr over trainer.max_steps steps."""
    script = workdir / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(sweep_points, "compose_config", composed)
    monkeypatch.setattr(run_config, "compose_config", composed)
    monkeypatch.setattr(slots, "_visible_devices", list)
    monkeypatch.setattr(slots, "can_serve", bool)  # a stand-in is no fork of qtarget's
    monkeypatch.setattr(
        slots.Job,
        "command",
        property(lambda job: [sys.executable, str(script), str(job.folder), job.identity, *job.overrides]),
    )
    return workdir


def sweep_file(folder: Path, **changes: Any) -> str:
    content = {
        "method": "grid",
        "metric": {"name": "val/nll"},
        "parameters": {"optim.lr": {"values": [0.15, 0.05, 0.1]}, "seed": {"values": [0, 1]}},
        "command": COMMAND,
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
    return str(path)


def started(folder: Path) -> list[str]:
    path = folder / "starts.txt"
    return path.read_text().split() if path.exists() else []


def points(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "outputs/mine/sweep.json").read_text())["points"]
    return found


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("outputs/mine/*/result.json")}


def test_a_grid_runs_once_and_says_what_is_best(stand_ins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", sweep_file(stand_ins), "--slots", "2"]
    assert qtarget_cli(command) == 0
    told = capsys.readouterr()
    assert re.search(r"job 1 of 6: starts in ", told.err)
    assert re.search(r"job 6 of 6, [\d.]+ s left: starts in ", told.err)
    assert re.search(r"mine: [1-5] of 6 points done, [\d.]+ s left; best val/nll", told.err)
    assert "6 of 6 points done; best val/nll 0.33333 at optim.lr=0.05 seed=0" in told.err
    assert "6 points: 6 finished; results in outputs/mine" in told.out
    assert "next: qtarget compare outputs/mine" in told.out
    assert [tuple(point["values"].values()) for point in points(stand_ins)][:3] == [(0.15, 0), (0.15, 1), (0.05, 0)]
    assert {point["state"] for point in points(stand_ins)} == {"finished"}
    assert [point["value"] for point in points(stand_ins)] == pytest.approx([1.0, 1.0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert len(set(started(stand_ins))) == 6
    assert qtarget_cli(command) == 0
    assert len(started(stand_ins)) == 6
    assert "6 points: 6 finished" in capsys.readouterr().out


def test_a_dry_sweep_says_what_would_run_and_writes_nothing(
    stand_ins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(stand_ins.iterdir())
    assert qtarget_cli(["sweep", sweep_file(stand_ins), "trainer.dry=true"]) == 0
    out, err = capsys.readouterr()
    assert "mine: 6 jobs, 0 of them finished, grid over optim.lr, seed" in out
    assert out.count("  optim.lr=") == 6
    assert "the job of optim.lr=0.15 seed=0, nothing is run:" in out
    assert re.search(r"mine: 6 jobs keep .* on disk", err)
    assert "mine: optim.lr: to have compare --best-of choose by validation afterwards, add eval.test_on=rest" in err
    assert set(stand_ins.iterdir()) - before == {stand_ins / "mine.yaml"}


def test_random_search_goes_on_where_it_was(stand_ins: Path) -> None:
    parameters = {"optim.lr": {"min": 0.025, "max": 0.075}}
    file = sweep_file(stand_ins, method="random", parameters=parameters, run_cap=3)
    assert qtarget_cli(["sweep", file]) == 0
    three = points(stand_ins)
    assert qtarget_cli(["sweep", file, "--count", "5"]) == 0
    assert points(stand_ins)[:3] == three
    assert len(started(stand_ins)) == len(set(started(stand_ins))) == 5


def test_a_failed_point_is_named_and_run_again(stand_ins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", sweep_file(stand_ins, parameters={"optim.lr": {"values": [0.05, 0.65]}})]
    assert qtarget_cli(command) == 1
    told = capsys.readouterr()
    assert "FAILED    optim.lr=0.65" in told.err
    assert "2 points: 1 finished, 1 failed" in told.out
    assert qtarget_cli([*command, "--retry", "1"]) == 1
    assert len(started(stand_ins)) == 4


def test_points_without_a_finite_value_are_named(stand_ins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["sweep", sweep_file(stand_ins, parameters={"optim.lr": {"values": [0.55, 0.05]}})]) == 0
    told = capsys.readouterr()
    (line, reason) = told.err[told.err.index("NO VALUE") :].splitlines()[:2]
    assert "optim.lr=0.55  →  outputs/mine/" in line
    assert reason.strip().startswith("val/nll was never a finite number")
    assert told.err.count("NO VALUE") == 1
    assert "2 points: 2 finished" in told.out
    assert [point["value"] for point in points(stand_ins)] == [None, pytest.approx(1 / 3)]


@pytest.mark.parametrize(
    ("metric", "early", "nearest"), [("val/nlll", True, "val/nll"), ("test/acuracy", True, None), ("nll", False, None)]
)
def test_a_metric_that_nobody_logs_stops_the_sweep_at_once(
    metric: str, early: bool, nearest: str | None, stand_ins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the first validation where its name is one of held-out rows, else with the first finished run."""
    slow = ["trainer.clip=30"] if early else []
    began = time.monotonic()
    assert qtarget_cli(["sweep", sweep_file(stand_ins, metric={"name": metric}), *slow]) == 2
    assert time.monotonic() - began < 60
    told = capsys.readouterr().err
    assert f"no run logs the metric '{metric}'" in told
    assert f"did you mean '{nearest}'" in told or nearest is None
    assert "val/kl_prior, val/nll" in told
    assert len(started(stand_ins)) == 1
    assert "running" not in {point["state"] for point in points(stand_ins)}


def test_a_mended_metric_keeps_what_has_finished(stand_ins: Path) -> None:
    assert qtarget_cli(["sweep", sweep_file(stand_ins, metric={"name": "nll"})]) == 2
    assert qtarget_cli(["sweep", sweep_file(stand_ins, metric={"name": "test/nll"})]) == 0
    assert len(started(stand_ins)) == len(set(started(stand_ins))) == 6


def test_hyperband_stops_a_bad_run_which_is_not_run_again(stand_ins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sweep_file(
        stand_ins,
        parameters={"optim.lr": {"values": [0.05, 0.45, 0.025]}},
        early_terminate={"type": "hyperband", "min_iter": 2},
    )
    command = ["sweep", file, "trainer.max_steps=8", "trainer.clip=0.4"]
    assert qtarget_cli(command) == 0
    told = capsys.readouterr()
    assert "3 points: 2 finished, 1 stopped" in told.out
    bad = next(point for point in points(stand_ins) if point["values"] == {"optim.lr": 0.45})
    stored = json.loads(Path(bad["folder"], "result.json").read_text())
    assert stored["status"] == "stopped"
    assert 1 <= stored["stopped_at_step"] < 7
    assert "not among the best 1/3" in stored["error"]
    assert qtarget_cli(command) == 0
    assert len(started(stand_ins)) == 3
    assert qtarget_cli(["compare", "outputs/mine"]) == 0
    assert f"stopped after step {stored['stopped_at_step']}" in capsys.readouterr().out


def test_another_sweep_in_the_same_folder_is_refused(stand_ins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["sweep", sweep_file(stand_ins)]) == 0
    other = sweep_file(stand_ins, parameters={"seed": {"values": [0, 1, 2]}})
    assert qtarget_cli(["sweep", other]) == 2
    told = capsys.readouterr().err
    assert "outputs/mine holds another sweep" in told
    assert "other parameters" in told
    assert "experiment_name=NAME" in told
    assert qtarget_cli(["sweep", other, "experiment_name=other"]) == 0
    assert len(list(stand_ins.glob("outputs/other/*/result.json"))) == 3
    assert len(results(stand_ins)) == 6


def test_two_drivers_of_one_sweep_are_refused(stand_ins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stand_ins / "outputs/mine").mkdir(parents=True)
    with FileLock(stand_ins / "outputs/mine/.sweep.lock"):
        assert qtarget_cli(["sweep", sweep_file(stand_ins)]) == 2
    assert "another qtarget sweep is at work in outputs/mine" in capsys.readouterr().err
    assert not started(stand_ins)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slots", "0"], "--slots must be a whole number"),
        (["--count", "0"], "--count must be a whole number"),
        (["--seed", "-1"], "--seed must be a whole number"),
        (["--retry", "-1"], "--retry must be a whole number"),
    ],
)
def test_wrong_options_are_said(
    options: list[str], message: str, stand_ins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert qtarget_cli(["sweep", sweep_file(stand_ins), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (stand_ins / "outputs").exists()


def test_what_changes_no_point_may_change_between_attempts(stand_ins: Path) -> None:
    file = sweep_file(stand_ins)
    assert qtarget_cli(["sweep", file]) == 0
    assert qtarget_cli(["sweep", file, "resume=never", "checkpoint.every=5"]) == 0
    assert qtarget_cli(["sweep", file, "trainer.max_steps=7"]) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [("hydra/launcher=slots", "starts the jobs itself"), ("experiment=prior_flaw", "is a multirun, of which")],
)
def test_a_sweep_starts_its_jobs_itself(
    override: str, message: str, stand_ins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert qtarget_cli(["sweep", sweep_file(stand_ins), override]) == 2
    assert message in capsys.readouterr().err
    assert not started(stand_ins)


def test_a_search_without_an_end_is_refused(stand_ins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["sweep", sweep_file(stand_ins, method="random")]) == 2
    assert "set run_cap in the file, or give --count N" in capsys.readouterr().err


def test_bayes_learns_and_goes_on(stand_ins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    parameters = {"optim.lr": {"min": 0.000005, "max": 0.5}, "seed": {"values": [0, 1, 2]}}
    file = sweep_file(stand_ins, method="bayes", parameters=parameters, run_cap=20)
    assert qtarget_cli(["sweep", file, "--count", "6", "--slots", "3"]) == 0
    six = [point["values"] for point in points(stand_ins)]
    assert qtarget_cli(["sweep", file]) == 0
    found = [point["values"]["optim.lr"] for point in points(stand_ins)]
    assert [point["values"] for point in points(stand_ins)][:6] == six
    assert len(set(found)) == len(found) == 20
    assert sum(found[10:]) < sum(found[:10])  # lower is better, and it has noticed
    assert len(started(stand_ins)) == 20


def test_bayes_leaves_out_what_is_not_legal_together(
    stand_ins: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each value is checked before the first run; a pair comes up later, and again whenever the sweep goes on."""
    pytest.importorskip("optuna")
    checked = sweep_points.JobFactory.make_job

    def refusing(jobs: sweep_points.JobFactory, values: dict[str, Any]) -> slots.Job:
        if values["optim.lr"] == 0.1 and values["seed"] == 1:
            raise QTargetError("not together")
        return checked(jobs, values)

    monkeypatch.setattr(sweep_points.JobFactory, "make_job", refusing)
    file = sweep_file(stand_ins, method="bayes", run_cap=12)
    monkeypatch.setattr(sweep_command, "corners", lambda space: [{"optim.lr": 0.05, "seed": 0}])
    for _ in range(2):
        assert qtarget_cli(["sweep", file]) == 0
        assert "left out: not together" in capsys.readouterr().err
    assert {point["state"] for point in points(stand_ins)} == {"finished"}


def test_bayes_says_what_to_install(
    stand_ins: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert qtarget_cli(["sweep", sweep_file(stand_ins, method="bayes", run_cap=2)]) == 2
    assert "pip install 'qtarget[search]'" in capsys.readouterr().err


# With the tiny model

TINY = ["data.rows=16", "data.heldout_rows=2", "eval.new_tokens=2", "checkpoint.save=false", "eval.kl_prior=false"]
TINY += ["trainer.precision=32-true", "trainer.accelerator=cpu", "trainer.eval_every=0"]


def until(done: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < 300
        time.sleep(0.1)


@pytest.mark.slow
def test_a_job_ends_with_its_driver(workdir: Path) -> None:
    file = sweep_file(workdir, parameters={"seed": {"values": [0, 1]}}, metric={"name": "train/nll"})
    command = [sys.executable, "-m", "qtarget", "sweep", file, "--slots", "1", *TINY, "trainer.max_steps=100000"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: any(path.stat().st_size for path in workdir.glob("outputs/mine/*/metrics.jsonl")))
    (folder,) = (path.parent for path in workdir.glob("outputs/mine/*/metrics.jsonl"))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    with FileLock(folder / ".lock", timeout=60):
        assert results(workdir)[folder.name]["status"] != "finished"


@pytest.mark.slow
def test_hyperband_stops_a_run_that_does_not_learn(workdir: Path, warm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(scheduler, "CHECK_SECONDS", 0.1)
    file = sweep_file(
        workdir,
        parameters={"optim.lr": {"values": [3e-3, 1e-9]}},
        metric={"name": "train/nll"},
        early_terminate={"type": "hyperband", "min_iter": 4},
    )
    steps = ["trainer.max_steps=80", "trainer.log_every=1", "trainer.batch_size=4"]
    assert qtarget_cli(["sweep", file, "--slots", "1", *TINY, *steps]) == 0
    by_rate = {point["values"]["optim.lr"]: point for point in points(workdir)}
    assert (by_rate[3e-3]["state"], by_rate[1e-9]["state"]) == ("finished", "stopped")
