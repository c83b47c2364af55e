"""What a run says while it trains, and when it is over."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import scipy.stats
from rich.console import Console

from qtarget.evaluate.row_losses import RowLoss, save_row_losses
from qtarget.progress import Progress
from qtarget.run.closing import closing_line
from qtarget.run.evaluate import _show
from qtarget.train.callbacks import LastMetrics, Meter


def measured() -> LastMetrics:
    meter = Meter()
    meter.seconds, meter.tokens = 2.0, 2468
    return LastMetrics(meter)


def test_a_log_line_says_what_was_measured_last(capsys: pytest.CaptureFixture[str]) -> None:
    last, passed = measured(), []
    log = last.passing_on(lambda step, metrics: passed.append((step, metrics)))
    log(0, {"val/accuracy": 0.25, "val/nll": 2.0})
    log(1, {"train/loss": 0.5, "train/nll": 0.625, "train/lr": 1e-4, "target/trust": 0.1})
    log(2, {"train/loss": 0.25, "train/nll": 0.5, "train/lr": 1e-4})
    assert [step for step, _ in passed] == [0, 1, 2]  # the record has all of it
    shown = Progress("sft", 2, "steps")
    shown.start()
    shown.update(1, last.at(1))  # too soon after the start for a line of its own
    shown.update(2, last.at(2))
    shown.stop()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sft: steps 2/2, ")
    assert line.endswith("left; loss 0.25, nll 0.5, lr 0.0001, 1,234 tokens/s; val accuracy 0.25, nll 2 at step 0")


def test_a_validation_of_another_step_is_shown_with_its_own() -> None:
    last = measured()
    log = last.passing_on(lambda step, metrics: None)
    log(4, {"val/nll": 2.0})
    log(5, {"train/loss": 0.5})
    assert last.at(4).endswith("val nll 2")
    assert last.at(5).endswith("val nll 2 at step 4")
    log(6, {"val/nll": 1.5})
    assert last.at(6).endswith("val nll 1.5")


def test_before_anything_is_measured_nothing_is_said() -> None:
    assert LastMetrics(Meter()).at(0) == ""


def test_on_a_terminal_it_stands_below_the_bar() -> None:
    shown = Progress("sft", 2, "steps")
    screen = io.StringIO()
    shown._bar.measured = "loss 0.25, nll 0.5"
    shown._bar.add_task("sft", total=2, completed=1, rate="3 steps/s")
    Console(file=screen, width=80).print(shown._bar.get_renderable())
    bar, below = screen.getvalue().splitlines()
    assert "3 steps/s" in bar
    assert below.strip() == "loss 0.25, nll 0.5"


def test_the_closing_line_has_metrics_time_and_bytes(tmp_path: Path) -> None:
    metrics = {"test/accuracy": 0.5, "test/accuracy_low": 0.25, "test/accuracy_high": 0.75, "test/nll": None}
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/model.safetensors").write_bytes(b"x" * 2_500_000)
    (tmp_path / "result.json").write_bytes(b"y" * 500_000)
    (tmp_path / "elsewhere").symlink_to("/usr/bin/env")
    line = closing_line({"name": "dft", "seconds": 90.0, "metrics": metrics}, tmp_path)
    assert line == (
        "dft: finished in 1.5 min: test accuracy 0.5 [0.25, 0.75], nll not finite; "
        f"wrote 3.0 MB to {tmp_path}, 2.5 MB of it the checkpoint"
    )
    assert closing_line({"name": "a", "seconds": 2.0, "metrics": {}}, tmp_path / "none").endswith(
        f"finished in 2 s; wrote 0 bytes to {tmp_path / 'none'}"
    )


def test_an_nll_has_the_interval_over_the_rows_that_were_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the closing line and in the table of an evaluation; a metric of answers has the one that was recorded."""
    losses = [RowLoss(f"row {row}", row, nats, 2, 5) for row, nats in enumerate((1.0, 2.0, 3.0, 2.5, 1.5))]
    save_row_losses(tmp_path, losses)
    low, high = scipy.stats.t.interval(0.95, 4, 1.0, scipy.stats.sem([loss.nll / 2 for loss in losses]))
    metrics = {"test/nll": 1.0, "test/accuracy": 0.5, "test/accuracy_low": 0.25, "test/accuracy_high": 0.75}
    within = f"[{low:.4g}, {high:.4g}]"
    line = closing_line({"name": "sft", "metrics": metrics, "seconds": 1.0}, tmp_path)
    assert f"accuracy 0.5 [0.25, 0.75], nll 1 {within}" in line
    _show("sft", metrics, tmp_path)
    shown = capsys.readouterr().out
    assert within in shown
    assert "[0.25, 0.75]" in shown
