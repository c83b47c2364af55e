"""Runs that commit 08cbad9 of version 0.1.0 made, in tests/data: they stay finished, and every command reads them.

    qtarget train -m target=sft,dft model=tiny data=arithmetic data.rows=16 data.heldout_rows=4 trainer.max_steps=2 \
        eval.new_tokens=4          # 27 November 2026, AMD EPYC; without optimizer.pt, and one checkpoint for both
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

import qtarget
from qtarget.cli import run
from qtarget.config.composing import instantiate
from qtarget.record.trackers import NoTracker

MADE = Path(__file__).parents[1] / "data" / "runs_0.1.0_08cbad9"
SFT, DFT = "27762a14e5d7", "f228489c387b"
SETTINGS = ("model=tiny", "data=arithmetic", "data.rows=16", "data.heldout_rows=4", "trainer.max_steps=2")


@pytest.fixture
def runs(workdir: Path) -> Path:
    shutil.copytree(MADE, workdir / "outputs" / "runs")
    return workdir / "outputs" / "runs"


def test_a_finished_run_is_returned_not_trained_again(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in runs.glob("*/result.json")}
    assert len(before) == 2
    assert run(["train", "-m", "target=sft,dft", *SETTINGS, "eval.new_tokens=4"]) == 0
    assert {path: path.read_bytes() for path in runs.glob("*/result.json")} == before
    assert not (runs / DFT / "checkpoint").exists()


def test_parts_that_have_moved_since_are_found(runs: Path) -> None:
    tracker = yaml.safe_load((runs / SFT / "config.yaml").read_text())["tracker"]
    assert tracker == {"_target_": "qtarget.track.sinks.Nothing"}
    assert isinstance(instantiate(tracker), NoTracker)
    assert isinstance(instantiate({"_target_": "qtarget.record.trackers.Nothing"}), NoTracker)  # of 0.1.0, later on


def test_compare_reads_them(runs: Path) -> None:
    assert run(["compare", "outputs/runs", "--format", "csv", "--group-by", "target", "--against", "target=sft"]) == 0
    page = (runs / "report.html").read_text()
    assert "earlier build" not in page  # nothing that they measured is measured otherwise now
    found = {result.folder.name: result for result in qtarget.read_runs(runs)}
    for name in (SFT, DFT):
        metrics = json.loads((runs / name / "result.json").read_text())["metrics"]
        assert found[name].metrics["test/nll"] == metrics["test/nll"]


@pytest.mark.slow
def test_their_checkpoints_are_evaluated_to_the_same_numbers(runs: Path) -> None:
    assert run(["evaluate", f"checkpoint=outputs/runs/{SFT}"]) == 0
    (result,) = Path("outputs/evaluations").glob("*/result.json")
    now, then = (json.loads(path.read_text())["metrics"] for path in (result, runs / SFT / "result.json"))
    assert now["test/nll"] == pytest.approx(then["test/nll"], rel=1e-4)
    assert now["test/accuracy"] == then["test/accuracy"]


@pytest.mark.slow
def test_the_lens_reads_their_tokens(runs: Path) -> None:
    assert run(["lens", "target=sft,dft", f"checkpoint=outputs/runs/{SFT}"]) == 0
