"""A disk that is full: the run says so, and what there was before is still there.

No file may be longer than a limit (RLIMIT_FSIZE), which the operating system holds every library to: Python's own
writes, torch's and those of safetensors' Rust.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from resuming import SMALL, assert_same_run, only_run, result

from qtarget.cli import run as qtarget_cli
from qtarget.record.record import Record
from qtarget.record.trackers import NoTracker
from qtarget.resume_folders import newest
from qtarget.train.lightning_module import QTargetModule

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
COMMAND = ["train", *SMALL]


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def trains_no_more(patch: pytest.MonkeyPatch) -> None:
    def step(*_: Any) -> None:
        raise AssertionError("a step was taken again")

    patch.setattr(QTargetModule, "training_step", step)


def names(run: Path) -> set[str]:
    return {path.name for path in run.iterdir()}


def test_a_checkpoint_that_finds_no_room_is_said_and_written_by_the_next_attempt(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The adapter (69 kB) fits, and the weights with it merged (110 kB) don't."""
    command = [*COMMAND, "model/adapter=lora", "checkpoint.optimizer=false"]
    with no_file_longer_than(100_000):
        assert qtarget_cli(command) == 2
    said, run = capfd.readouterr().err, only_run(Path("outputs"))
    assert "can't save the checkpoint in outputs/runs/" in said
    assert "File too large (os error 27). What was trained is kept in outputs/runs/" in said
    assert "Traceback" not in said
    assert result(run)["status"] == "failed"
    assert names(run).isdisjoint({"checkpoint", ".checkpoint.new"})
    assert newest(run / "state") == run / "state" / "step-8"
    trains_no_more(monkeypatch)
    assert qtarget_cli(command) == 0
    assert (run / "checkpoint" / "model.safetensors").is_file()
    assert not (run / "state").exists()


def test_an_optimizer_that_finds_no_room_is_said_and_what_was_trained_is_kept(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The weights (110 kB) fit, and the optimizer's state (233 kB) doesn't."""
    with no_file_longer_than(150_000):
        assert qtarget_cli(COMMAND) == 2
    run = only_run(Path("outputs"))
    assert "can't save the optimizer's state in outputs/runs/" in capfd.readouterr().err
    assert not [name for name in names(run) if "optimizer" in name]
    assert newest(run / "state") is not None
    with monkeypatch.context() as patched:
        trains_no_more(patched)
        assert qtarget_cli(COMMAND) == 2
        assert "the attempt that took the last step left no optimizer.pt in" in capfd.readouterr().err
        assert qtarget_cli([*COMMAND, "checkpoint.optimizer=false"]) == 0
    assert qtarget_cli(COMMAND) == 0
    assert "it has no optimizer.pt, as it was trained without" in capfd.readouterr().out


def no_room_for_states(patch: pytest.MonkeyPatch) -> None:
    """From step 3 on."""
    import resource

    log = Record.log

    def logged(self: Record, step: int, metrics: Any) -> None:
        log(self, step, metrics)
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    patch.setattr(Record, "log", logged)


def no_room_for_a_line(patch: pytest.MonkeyPatch) -> None:
    """Of measurements, from step 3 on."""
    append = Record._append

    def appended(self: Record, name: str, step: int, values: Any) -> None:
        with no_file_longer_than(100 if step >= 3 else 10**9):
            append(self, name, step, values)

    patch.setattr(Record, "_append", appended)


@pytest.mark.parametrize(
    ("fills", "message"),
    [(no_room_for_states, "can't save the run's state"), (no_room_for_a_line, "can't write the record")],
)
def test_a_disk_that_fills_up_leaves_the_last_state_and_a_run_that_goes_on_ends_as_an_unbroken_one(
    fills: Any, message: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [*COMMAND, "checkpoint.every=2"]
    with monkeypatch.context() as patched, no_file_longer_than(10**9):
        fills(patched)
        assert qtarget_cli(command) == 2
    run, said = only_run(Path("outputs")), capfd.readouterr().err
    assert message in said
    assert "the same command goes on from" in said
    assert "Traceback" not in said
    assert [path.name for path in (run / "state").iterdir()] == ["step-2"]
    assert newest(run / "state") == run / "state" / "step-2"
    assert qtarget_cli(command) == 0
    assert "goes on from step 2" in capfd.readouterr().out
    assert qtarget_cli([*command, "output_dir=whole"]) == 0
    assert_same_run(run, only_run(Path("whole")))


def test_samples_that_find_no_room_are_written_by_the_next_attempt(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [*COMMAND, "checkpoint.save=false", "checkpoint.optimizer=false"]
    from qtarget.run import fit

    save = fit.save_samples

    def full(*given: Any) -> None:
        with no_file_longer_than(10):
            save(*given)

    with monkeypatch.context() as patched:
        patched.setattr(fit, "save_samples", full)
        assert qtarget_cli(command) == 2
    said = capfd.readouterr().err
    assert (
        "File too large. Make room (qtarget clean lists what nobody needs), and the same command goes on from" in said
    )
    trains_no_more(monkeypatch)
    assert qtarget_cli(command) == 0


def test_a_full_disk_hides_no_error_of_the_run(workdir: Path) -> None:
    record = Record(Path("."), NoTracker())
    with no_file_longer_than(0):
        record.fail(ValueError("what went wrong"))
    assert not (workdir / "result.json").exists()
