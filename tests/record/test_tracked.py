"""What reaches W&B of numbers that aren't finite, and of runs that go on: W&B's real client, 0.31.0, its server in
memory.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from wandb_server import Backend, Run

from qtarget.launch.ray import slot_of
from qtarget.record.record import Record, replay
from qtarget.record.trackers import Best, Wandb

INFO = {"name": "sft", "role": "design", "experiment": "runs", "choices": {"target": "sft"}, "config_hash": "abc"}
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("end", "values", "kept"),
    [
        ("min", [3.0, 1.0, 2.0], {"min": 1.0, "last": 2.0}),
        ("min", [NAN, 2.0, 1.0], {"min": 1.0, "last": 1.0}),
        ("min", [2.0, NAN], {"min": 2.0, "last": "NaN"}),
        ("min", [2.0, -INF, 3.0], {"min": 2.0, "last": 3.0}),
        ("min", [-INF], {"last": "-Infinity"}),
        ("max", [0.2, INF, 0.4, NAN, 0.1], {"max": 0.4, "last": 0.1}),
        ("max", [0.2, INF], {"max": 0.2, "last": "Infinity"}),
        ("max", [NAN, NAN], {"last": "NaN"}),
    ],
)
def test_no_value_that_is_no_number_is_the_best_and_the_last_is_kept(
    end: str, values: Sequence[float], kept: dict[str, Any]
) -> None:
    best = Best({"val/x": end})
    for value in values:
        told = best.update({"val/x": value, "val/y": value})
    assert told == {"val/x": kept}


def offline_summary(folder: Path) -> dict[str, Any]:
    """As W&B's own reader of offline runs shows it."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(file)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    summary: dict[str, Any] = json.loads(told)["summary"]
    return summary


def test_a_nan_at_wandb_spoils_no_best_value_and_hides_nothing(workdir: Path) -> None:
    """W&B's `summary="min"` keeps a NaN for good, and its client drops a closing one: test/nll had no value."""
    sink = Wandb()
    sink.start(workdir, INFO, {})
    for step, value in enumerate([NAN, 2.0, 1.0, -INF, NAN]):
        sink.log(step, {"val/nll": value, "val/accuracy": -value, "train/nll": value})
    sink.finish({"test/nll": NAN, "test/perplexity": INF, "test/accuracy": 0.5}, failed=False)
    summary = offline_summary(workdir)
    assert summary["val/nll"] == {"min": 1.0, "last": "NaN"}
    assert summary["val/accuracy"] == {"max": -1.0, "last": "NaN"}
    assert summary["train/nll"] == "NaN"
    assert [summary[f"test/{name}"] for name in ("nll", "perplexity", "accuracy")] == ["NaN", "Infinity", 0.5]


def test_a_finished_run_that_is_told_again_tells_its_nan(tmp_path: Path) -> None:
    class Listening:
        told: dict[str, float]

        def start(self, *_: Any) -> None: ...
        def finish(self, metrics: dict[str, float], *, failed: bool) -> None:
            self.told = metrics

    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "result.json").write_text('{"metrics": {"test/nll": null, "test/accuracy": 0.0}}')
    sink = Listening()
    replay(tmp_path, sink)  # type: ignore[arg-type]
    assert math.isnan(sink.told["test/nll"])
    assert sink.told["test/accuracy"] == 0.0


def attempt(folder: Path, mode: str, steps: Sequence[int], position: dict[str, Any] | None, end: str) -> dict[str, Any]:
    """Log two rows a step; the position of the record before the last step."""
    record = Record(folder, Wandb(mode=mode))
    record.start(INFO, {"seed": 0}, position)
    for step in steps:
        if step == steps[-1]:
            before = record.offsets()
        record.log(step, {"train/nll": 10.0 - step})
        record.log(step, {"val/nll": 10.0 - step, "val/accuracy": step / 10})
    if end == "finished":
        record.finish({"test/nll": 1.0})
    else:
        record.fail(KeyboardInterrupt())
    return before


def sync(*folders: Path) -> None:
    command = [sys.executable, "-m", "wandb", "sync", *map(str, folders)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def rows_of(run: Run) -> list[tuple[int, str]]:
    """Step and first metric of every row."""
    return [(row["step"], min(name for name in row if "/" in name)) for row in run.history]


def every_row(last: int) -> list[tuple[int, str]]:
    return [(step, name) for step in range(last + 1) for name in ("train/nll", "val/accuracy")]


@pytest.mark.parametrize("synced_between", [False, True])
def test_a_resumed_offline_run_syncs_each_row_once(synced_between: bool, wandb_server: Backend, workdir: Path) -> None:
    """`wandb sync` appends a folder's rows to those that the run has: those of the first attempt stood there twice."""
    folder = workdir / "run"
    folder.mkdir()
    position = attempt(folder, "offline", range(4), None, "interrupted")  # the state is older than the last step
    (first,) = folder.glob("wandb/offline-run-*")
    if synced_between:
        sync(first)
        (run,) = wandb_server.runs.values()
        assert rows_of(run) == every_row(3)
    attempt(folder, "offline", range(3, 6), position, "finished")
    both = sorted(folder.glob("wandb/offline-run-*"))
    assert len(both) == 2
    sync(*both)
    (run,) = wandb_server.runs.values()
    assert rows_of(run) == every_row(5)
    assert [row["_step"] for row in run.history] == list(range(12))
    assert run.summary["val/nll"] == {"min": 5.0, "last": 5.0}
    assert (run.summary["train/nll"], run.summary["test/nll"], run.state) == (5.0, 1.0, "finished")


def test_a_resumed_online_run_has_each_row_once(wandb_server: Backend, workdir: Path) -> None:
    """Rows that W&B has and the saved state is older than aren't sent again, and lost ones are sent."""
    folder = workdir / "run"
    folder.mkdir()
    position = attempt(folder, "online", range(4), None, "interrupted")
    (run,) = wandb_server.runs.values()
    assert rows_of(run) == every_row(3)
    position = attempt(folder, "online", range(3, 5), position, "interrupted")
    assert rows_of(run) == every_row(4)
    del run.history[6:]  # what a kill of client and machine loses
    attempt(folder, "online", range(4, 6), position, "finished")
    assert sorted(rows_of(run)) == every_row(5)
    assert run.summary["val/nll"] == {"min": 5.0, "last": 5.0}


@pytest.mark.parametrize(("remote", "hidden"), [({"num_gpus": 0}, True), ({}, True), ({"num_gpus": 0.5}, False)])
def test_a_job_of_ray_without_gpus_sees_none(remote: dict[str, Any], hidden: bool) -> None:
    """Ray 2.60 leaves CUDA_VISIBLE_DEVICES alone for num_gpus=0; with some it sets it itself."""
    assert slot_of(remote).environment == ({"CUDA_VISIBLE_DEVICES": ""} if hidden else {})
