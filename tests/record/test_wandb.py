"""W&B's real client, CLI and agents against a server in memory: what arrives there is what stands in our record."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
import yaml
from test_sweep_files import COMMAND
from wandb_server import ENTITY, Backend, Run, Sweep

from qtarget.cli import run as qtarget_cli
from qtarget.errors import QTargetError
from qtarget.measures import validation_direction
from qtarget.record.runs import flatten
from qtarget.record.trackers import Wandb
from qtarget.record.wandb_sweep import find_sweep, unlogged

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
# W&B's own command line, whose agents ask for work every fifth of a second and not every five.
QUICK = "import wandb.wandb_agent as agents; agents.Agent.POLL_INTERVAL = 0.2; from wandb.cli.cli import cli; cli()"
SMALL: dict[str, Any] = {
    "model": "tiny",
    "data.rows": 16,
    "data.heldout_rows": 4,
    "trainer.max_steps": 2,
    "trainer.eval_every": 1,
    "trainer.log_every": 1,
    "trainer.precision": "32-true",
    "eval.new_tokens": 2,
    "checkpoint.save": False,
}
INFO = {"name": "sft", "role": "design", "experiment": "runs", "choices": {"target": "sft"}}


def wandb_command(*arguments: str) -> str:
    """What W&B's command line has said; colours taken away."""
    here = str(Path(sys.executable).parent)
    done = subprocess.run(
        [sys.executable, "-c", QUICK, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": os.pathsep.join([here, os.environ["PATH"]]), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)


def made_sweep(method: str, swept: Mapping[str, Any], **settings: Any) -> str:
    """ENTITY/PROJECT/ID of a sweep, made with `wandb sweep FILE` as the user makes it."""
    settings = {"metric": {"name": "val/nll", "goal": "minimize"}} | settings
    fixed = {name: {"value": value} for name, value in SMALL.items()}
    sweep = {"program": "qtarget", "project": "qtarget", "method": method, "command": COMMAND, **settings}
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep | {"parameters": fixed | dict(swept)}))
    found = re.search(r"wandb agent (\S+)", wandb_command("sweep", "sweep.yaml"))
    assert found
    return found[1]


def results() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in Path().glob("outputs/runs/*/result.json")]


def history(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """What our record holds, line by line, without the clock."""
    lines = map(json.loads, (folder / name).read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def logged(rows: Any) -> list[dict[str, Any]]:
    """The rows of a W&B history that hold our metrics, without W&B's own columns and the rows of other things."""
    ours = ({name: value for name, value in row.items() if not name.startswith("_")} for row in rows)
    others = ("samples", "calibration", "trust", "histogram/")
    return [row for row in ours if not any(name.startswith(others) for name in row)]


def histograms(rows: Any) -> list[tuple[int, dict[str, Any]]]:
    """Steps, and the histograms that W&B has of them: name → counts and edges, its keys nested or dotted."""
    found = []
    for row in rows:
        held: dict[str, Any] = {}
        for name, value in row.items():
            whole, _, part = name.partition(".")
            if whole.startswith("histogram/"):
                held.setdefault(whole, {}).update({part: value} if part else value)
        if held:
            found.append((row["step"], {name: (one["values"], one["bins"]) for name, one in held.items()}))
    return found


def same_histograms(rows: Any, folder: Path) -> None:
    """What W&B has are the record's counts, between the edges that the record's ends imply."""
    lines = history(folder, "histograms.jsonl")
    shown = histograms(rows)
    assert [step for step, _ in shown] == [line.pop("step") for line in lines]
    for (_, got), line in zip(shown, lines, strict=True):
        assert got.keys() == line.keys() == {"histogram/reliance", "histogram/weight", "histogram/p"}
        for name, one in line.items():
            counts, edges = got[name]
            assert counts == one["counts"]
            assert edges == pytest.approx(np.linspace(one["low"], one["high"], len(counts) + 1))


def agrees(run: Any, folder: Path) -> None:
    """A run of `wandb.Api()` holds what our record does: every line, every closing value, the configuration."""
    record = json.loads((folder / "result.json").read_text())
    assert {name: run.summary_metrics[name] for name in record["metrics"]} == record["metrics"]
    assert logged(run.scan_history()) == history(folder)
    same_histograms(run.scan_history(), folder)
    assert run.config["target"] == record["choices"]["target"]
    assert (
        run.config["data.noise.rate"] == yaml.safe_load((folder / "config.yaml").read_text())["data"]["noise"]["rate"]
    )
    assert (run.name, run.job_type) == (record["name"], record["role"])
    nll = [line["val/nll"] for line in history(folder) if "val/nll" in line]
    assert run.summary_metrics["val/nll"] == {"min": min(nll), "last": nll[-1]}


@pytest.mark.slow
def test_a_grid_with_a_swept_group_and_a_swept_field(warm: None, wandb_server: Backend) -> None:
    """`wandb sweep` and `wandb agent` as they are; every value read back through `wandb.Api()`. A null arrives as null,
    which the agent writes as `None`: the runs are called after their targets.
    """
    swept = {"target": {"values": ["sft", "dft"]}, "data.noise.rate": {"values": [0.0, 0.5]}, "name": {"value": None}}
    path = made_sweep("grid", swept)
    wandb_command("agent", path)
    runs = list(wandb.Api().sweep(path).runs)
    folders = {
        json.loads((folder / "result.json").read_text())["config_hash"]: folder
        for folder in Path().glob("outputs/runs/*")
    }
    found = {(run.config["target"], run.config["data.noise.rate"]): run for run in runs}
    assert set(found) == {(target, rate) for target in ("sft", "dft") for rate in (0.0, 0.5)}
    for folder in folders.values():
        record = json.loads((folder / "result.json").read_text())
        rate = yaml.safe_load((folder / "config.yaml").read_text())["data"]["noise"]["rate"]
        run = found[record["choices"]["target"], rate]
        agrees(run, folder)
        assert run.state == "finished"
        assert run.group == path.rpartition("/")[2]
        assert (
            run.config["target.reliance._target_"]
            == f"qtarget.design.reliance.{'Power' if record['name'] == 'dft' else 'Constant'}"
        )
    # a point that another sweep has finished: it is not trained again, and W&B has its values all the same
    again = made_sweep("grid", {"target": {"value": "dft"}, "data.noise.rate": {"value": 0.5}, "name": {"value": None}})
    wandb_command("agent", again)
    assert len(results()) == 4
    (repeated,) = wandb.Api().sweep(again).runs
    assert logged(repeated.scan_history()) == logged(found["dft", 0.5].scan_history())
    assert repeated.summary_metrics["test/nll"] == found["dft", 0.5].summary_metrics["test/nll"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "bayes"])
def test_drawn_values_arrive(method: str, warm: None, wandb_server: Backend) -> None:
    drawn = {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-2}
    path = made_sweep(method, {"optim.lr": drawn, "target.reliance.value": {"min": 0.1, "max": 1.0}}, run_cap=2)
    wandb_command("agent", path)
    rates = sorted(run.config["optim.lr"] for run in wandb.Api().sweep(path).runs)
    configs = [yaml.safe_load(file.read_text()) for file in Path().glob("outputs/runs/*/config.yaml")]
    assert rates == sorted(config["optim"]["lr"] for config in configs)
    assert len(set(rates)) == 2


@pytest.mark.slow
def test_hyperband_stops_a_run_that_learns_nothing(warm: None, wandb_server: Backend) -> None:
    path = made_sweep(
        "grid",
        {
            "optim.lr": {"values": [1e-2, 0.0]},
            "trainer.max_steps": {"value": 160},
            "trainer.eval_every": {"value": 5},
        },
        early_terminate={"type": "hyperband", "min_iter": 2, "eta": 3},
    )
    wandb_command("agent", path)
    good, bad = wandb.Api().sweep(path).runs
    assert (good.state, bad.state) == ("finished", "killed")
    (folder,) = (
        file.parent for file in Path().glob("outputs/runs/*/result.json") if '"optim.lr=0.0"' in file.read_text()
    )
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    assert 10 <= history(folder)[-1]["step"] < 160


@pytest.mark.slow
def test_two_agents_share_a_sweep_in_which_a_design_fails(
    wandb_server: Backend, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`qtarget agents`, with W&B's agents untouched, and every command of them in an interpreter of its own."""
    (workdir / "broken.py").write_text(
        "class Raising:\n    def __call__(self, view):\n        raise RuntimeError('broken')\n"
    )
    (workdir / "conf/target").mkdir(parents=True)
    (workdir / "conf/target/raising.yaml").write_text("_target_: broken.Raising\n")
    path = made_sweep("grid", {"target": {"values": ["sft", "raising", "dft"]}})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert qtarget_cli(["agents", path, "--agents", "2"]) == 1
    runs = {run.config["target"]: run for run in wandb.Api().sweep(path).runs}
    assert {target: run.state for target, run in runs.items()} == {
        "sft": "finished",
        "raising": "failed",
        "dft": "finished",
    }
    assert {run.agent for run in wandb_server.runs.values()} == {"agent0", "agent1"}
    told = capsys.readouterr().err
    assert told.count("ended; log: outputs/agents/sweep0/agent-") == 2
    assert "2 of the 3 runs of these agents are well" in told
    (lost,) = (line for line in told.splitlines() if line.startswith("LOST"))
    assert "(failed)  →  outputs/runs/" in lost


@pytest.mark.slow
def test_an_offline_run_is_synced_with_nothing_lost(
    workdir: Path, wandb_server: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert qtarget_cli(["train", *(f"{name}={value}" for name, value in SMALL.items()), "tracker=wandb"]) == 0
    (folder,) = workdir.glob("outputs/runs/*")
    (offline,) = folder.glob("wandb/offline-run-*")
    assert not wandb_server.runs
    wandb_command("sync", str(offline))
    (run,) = wandb.Api().runs(f"{ENTITY}/qtarget")
    agrees(run, folder)
    assert run.group == "runs"
    assert run.state == "finished"


def table_of(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a table as an offline run keeps it."""
    (path,) = (
        path for path in folder.glob("wandb/offline-run-*/files/media/table/*") if re.match(rf"{name}_\d", path.name)
    )
    shown = json.loads(path.read_text())
    return [dict(zip(shown["columns"], row, strict=True)) for row in shown["data"]]


@pytest.mark.slow
def test_wandbs_reader_and_our_record_agree_value_by_value(warm: None, workdir: Path) -> None:
    """`wandb leet inspect` of an offline run, against metrics.jsonl and result.json."""
    assert qtarget_cli(["train", *(f"{name}={value}" for name, value in SMALL.items()), "tracker=wandb"]) == 0
    (folder,) = workdir.glob("outputs/runs/*")
    (run,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    lines = subprocess.run([*inspect, str(run)], capture_output=True, text=True, check=True).stdout
    rows = [record["history"]["item"] for record in map(json.loads, lines.splitlines()) if "history" in record]
    assert logged(rows) == history(folder)
    same_histograms(rows, folder)
    told = json.loads(
        subprocess.run([*inspect, "--summary", str(run)], capture_output=True, text=True, check=True).stdout
    )
    result = json.loads((folder / "result.json").read_text())
    assert {name: told["summary"][name] for name in result["metrics"]} == result["metrics"]
    config = flatten(yaml.safe_load((folder / "config.yaml").read_text()))
    sent = {key: value for key, value in config.items() if value != {}} | result["choices"]
    assert {name: told["config"][name] for name in sent} == sent
    assert table_of(folder, "trust") == result["trust"]
    assert len(result["trust"]) == 20
    assert table_of(folder, "calibration") == result["calibration"]
    assert table_of(folder, "calibration_curve_table") == [one for one in result["calibration"] if one["tokens"]]


def test_a_run_goes_on_under_its_own_id(wandb_server: Backend, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's side of a resume: one run, and its lines behind those that were there."""
    monkeypatch.setenv("WANDB_RUN_ID", "again")
    monkeypatch.setenv("WANDB_RESUME", "allow")
    for step in (1, 2):
        sink = Wandb(mode="online")
        sink.start(workdir, INFO, {"seed": 0})
        sink.log(step, {"val/nll": 3.0 - step})
        sink.finish({"test/nll": 3.0 - step} if step == 2 else {}, failed=step == 1)
    (run,) = wandb_server.runs.values()
    assert run.starts == 2
    assert [(line["step"], line["val/nll"]) for line in run.history] == [(1, 2.0), (2, 1.0)]
    assert run.state == "finished"
    assert (run.summary["test/nll"], run.summary["val/nll"]) == (1.0, {"min": 1.0, "last": 1.0})


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_the_checkpoint_is_an_artifact_on_request(mode: str, warm: None, wandb_server: Backend, workdir: Path) -> None:
    """What arrives is the folder, file by file and byte by byte; that of an offline run with `wandb sync`."""
    small = [f"{name}={value}" for name, value in SMALL.items() if name != "checkpoint.save"]
    assert qtarget_cli(["train", *small, "tracker=wandb", f"tracker.mode={mode}", "tracker.artifact=true"]) == 0
    if mode == "offline":
        wandb_command("sync", *map(str, workdir.glob("outputs/runs/*/wandb/offline-run-*")))
    (folder,) = workdir.glob("outputs/runs/*/checkpoint")
    (run,) = wandb_server.runs.values()
    kept = {artifact.collection: artifact for artifact in wandb_server.artifacts.values()}
    (model,) = (artifact for artifact in kept.values() if artifact.kind == "model")
    assert model.committed
    assert model.collection == f"checkpoint-{run.name}"
    assert set(json.loads(model.manifest)["contents"]) == {path.name for path in folder.iterdir()}
    assert model.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    tables = {name for name, artifact in kept.items() if artifact.kind == "run_table"}
    assert tables == {
        f"run-{run.name}-{name}" for name in ("samples", "calibration", "calibration_curve_table", "trust")
    }


def test_an_artifact_of_no_checkpoint_is_refused(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["tracker=wandb", "tracker.artifact=true", "checkpoint.save=false"]
    assert qtarget_cli(["train", "model=tiny", *asked]) == 2
    assert "tracker.artifact=true sends the checkpoint to W&B, and checkpoint.save=false" in capsys.readouterr().err
    (measured,) = workdir.glob("outputs/runs/*/metrics.jsonl")
    assert measured.read_text() == ""


def planned(backend: Backend, monkeypatch: pytest.MonkeyPatch, metric: str, goal: str) -> Run:
    """A run that an agent is about to start, in a sweep for this metric."""
    config = {"method": "random", "parameters": {"seed": {"value": 0}}, "metric": {"name": metric, "goal": goal}}
    sweep = backend.sweeps["s"] = Sweep(ENTITY, "mine", "s", config)
    run = backend.runs["r"] = Run(ENTITY, "mine", "r", sweep)
    sweep.runs.append(run)
    for name, value in {"SWEEP_ID": "s", "RUN_ID": "r", "PROJECT": "mine", "ENTITY": ENTITY}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    return run


def test_under_an_agent_the_run_keeps_its_id_and_the_sweep_says_what_is_best(
    wandb_server: Backend, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(wandb_server, monkeypatch, "val/drift", "maximize")
    sink = Wandb(mode="online", tags=["a", "b"])
    sink.start(workdir, INFO, {"target": {"alpha": 1.0}})
    for step, value in ((0, 0.25), (1, 0.75), (2, 0.5)):
        sink.log(step, {"val/drift": value, "val/accuracy": value, "val/ece": value, "train/nll": value})
    sink.finish({}, failed=False)
    assert list(wandb_server.runs) == ["r"]
    assert (run.state, run.project, run.told["groupName"], run.told["jobType"]) == ("finished", "mine", "s", "design")
    assert run.told["tags"] == ["a", "b"]
    assert run.values["target"] == "sft"
    assert run.values["target.alpha"] == 1.0
    best = {name: run.summary[name] for name in ("val/drift", "val/accuracy", "val/ece", "train/nll")}
    assert best == {
        "val/drift": {"max": 0.75, "last": 0.5},
        "val/accuracy": {"max": 0.75, "last": 0.5},
        "val/ece": {"min": 0.25, "last": 0.5},
        "train/nll": 0.5,
    }


def test_a_metric_that_nobody_logs_is_said_at_the_first_validation(
    wandb_server: Backend, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(wandb_server, monkeypatch, "val/acuracy", "maximize")
    sink = Wandb(mode="online")
    sink.start(workdir, INFO, {})
    with pytest.warns(UserWarning, match=r"'val/acuracy' is not logged.*Logged: val/accuracy, val/nll"):
        sink.log(0, {"val/accuracy": 0.5, "val/nll": 1.0})
    sink.log(1, {"val/accuracy": 0.5, "val/nll": 1.0})
    sink.finish({}, failed=False)


@pytest.mark.parametrize("metric", ["val/nll", "test/nll", "train/nll"])
def test_metrics_that_come_are_known(metric: str) -> None:
    assert unlogged(metric, {"val/nll", "train/nll"}) is None


@pytest.mark.parametrize(
    ("metric", "best"),
    [("val/accuracy", "max"), ("val/avg@8", "max"), ("val/nll", "min"), ("val/length", None), ("train/nll", None)],
)
def test_what_is_best_of_a_metric(metric: str, best: str | None) -> None:
    assert validation_direction(metric) == best


def test_a_sweep_that_is_not_there(wandb_server: Backend) -> None:
    with pytest.raises(QTargetError, match=r"no sweep tester/qtarget/nothere.*wandb sweep FILE"):
        find_sweep("tester/qtarget/nothere")


@pytest.mark.usefixtures("no_wandb")
def test_without_a_key_or_a_server_nothing_starts(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["agents", "tester/qtarget/s", "--gpus", "0"]) == 2
    told = capsys.readouterr().err
    assert "set WANDB_API_KEY (or run `wandb login`), and WANDB_BASE_URL" in told
    assert "qtarget sweep FILE" in told
    assert not (workdir / "outputs").exists()
