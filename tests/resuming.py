"""Runs that are stopped, and what has to be the same when they go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

MEASURED = {"train/tokens_per_second", "train/seconds", "train/peak_memory_gb"}
"""What a clock or the memory says."""
# 20 rows make 7 micro-batches, the last of 2 rows, and 3 steps an epoch, the last of 1 micro-batch
RAGGED = ["data.rows=20", "trainer.batch_size=3", "trainer.accumulate=3", "trainer.max_steps=8"]
SMALL = ["model=tiny", "trainer.precision=32-true", "trainer.accelerator=cpu", "data.heldout_rows=4", *RAGGED]
SMALL += ["eval.problems_in_training=2", "eval.new_tokens=2", "trainer.log_every=1", "trainer.eval_every=3"]
SMALL += ["checkpoint.optimizer=true", "lens.every=2", "lens.rows=2"]
TEACHER = ["reference@references.teacher=frozen", "references.teacher.name=tiny"]


def only_run(folder: Path) -> Path:
    (path,) = folder.glob("runs/*/result.json")
    return path.parent


def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def lines(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """What a run has measured, without the clock."""
    found = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in found]


def assert_same_run(got: Path, expected: Path) -> None:
    """To the last bit: every logged number, the lens, the closing metrics, answers, weights and optimizer."""
    assert lines(got) == lines(expected)
    assert lines(got, "histograms.jsonl") == lines(expected, "histograms.jsonl")
    ours, theirs = result(got)["metrics"], result(expected)["metrics"]
    assert {name: ours[name] for name in ours.keys() - MEASURED} == {
        name: theirs[name] for name in theirs.keys() - MEASURED
    }
    assert round(tokens_read(ours)) == round(tokens_read(theirs))
    for name in ("lens.jsonl", "samples.jsonl", "checkpoint/model.safetensors"):
        assert (got / name).read_bytes() == (expected / name).read_bytes(), name
    torch.testing.assert_close(optimizer(got), optimizer(expected), rtol=0, atol=0)


def tokens_read(metrics: dict[str, float]) -> float:
    return metrics["train/tokens_per_second"] * metrics["train/seconds"]


def optimizer(run: Path) -> dict[int, dict[str, torch.Tensor]]:
    state = torch.load(run / "optimizer.pt", weights_only=True)
    moments: dict[int, dict[str, torch.Tensor]] = state["optimizer"]["state"]
    return moments
