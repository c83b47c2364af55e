"""`qtarget clean` frees the folder of a run that failed before it trained, and of no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_clean import RECORD, cleaned, files, fill, run_folder
from test_runs import write_run

from qtarget.cli import run as qtarget_cli
from qtarget.files import locked
from qtarget.run import clean, freeing


def refused(digest: str, **changes: object) -> Path:
    """As a configuration that can't be read leaves a run; `changes` are of its record."""
    failed = {"status": "failed", "error": "QTargetError: no model at ./x", "metrics": {}, "rows": {}}
    folder = write_run(Path("outputs/demo"), "sft", digest, **failed | changes)
    fill(folder, "traceback.txt")
    fill(folder, "histograms.jsonl", ".lock", size=0)
    return folder


def test_folders_of_runs_that_failed_before_they_trained_go_and_those_of_all_others_stay(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished, interrupted = run_folder("finished", "f" * 12), run_folder("interrupted", "1" * 12)
    empty, counted = refused("a" * 12), refused("b" * 12, rows={"train": 8}, config={"trainer": {"eval_every": 20}})
    listed = cleaned(capsys)
    assert [line.split()[-1] for line in listed.splitlines() if "a failed run that never trained" in line] == [
        str(empty),
        str(counted),
    ]
    assert empty.is_dir()
    kept = {f"{run}/{name}" for run in (finished, interrupted) for name in RECORD}
    cleaned(capsys, "--yes")
    assert not empty.exists()
    assert not counted.exists()
    assert kept <= files(Path("outputs"))
    assert "nothing to free" in cleaned(capsys)


STAYS: dict[str, dict[str, object]] = {
    "a line of measurements": {"history": '{"step": 0}\n'},
    "half a line": {"history": '{"st'},
    "metrics": {"metrics": {"test/nll": 0.5}},
    "another status": {"status": "interrupted"},
    "no evaluation before training": {"rows": {"train": 8}, "config": {"trainer": {"eval_every": 0}}},
    "no such key in the configuration": {"rows": {"train": 8}},
}


@pytest.mark.parametrize("why", STAYS)
def test_the_folder_of_a_failed_run_that_may_have_trained_stays(
    why: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = refused("a" * 12, **STAYS[why])
    before = files(folder)
    assert "nothing to free" in cleaned(capsys, "--yes")
    assert files(folder) == before


@pytest.mark.parametrize("name", ["notes.md", "state/step-4/state.json", "checkpoint/config.json", "csv/metrics.csv"])
def test_so_does_one_that_holds_anything_else(name: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = refused("a" * 12)
    fill(folder, name)
    before = files(folder)
    cleaned(capsys, "--yes")
    assert files(folder) == before


def test_so_does_one_with_a_link_or_with_a_record_that_cannot_be_read(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linked, damaged = refused("a" * 12), refused("b" * 12)
    (linked / "config.yaml").rename(workdir / "config.yaml")
    (linked / "config.yaml").symlink_to(workdir / "config.yaml")
    (damaged / "result.json").write_text('{"status": "failed", "err')
    outside = refused("c" * 12).rename(workdir / "outside")
    Path("outputs/demo/link").symlink_to(outside, target_is_directory=True)
    before = files(workdir)
    assert "nothing to free" in cleaned(capsys, "--yes")
    assert files(workdir) == before


def test_one_that_trains_after_it_was_listed_stays(workdir: Path) -> None:
    folder = refused("a" * 12).resolve()
    (item,) = clean._of_run(folder, False, optimizer=False)
    (folder / "metrics.jsonl").write_text('{"step": 0}\n')
    assert freeing.free(item) == "in use now"
    assert (folder / "result.json").is_file()
    (folder / "metrics.jsonl").write_text("")
    with locked(folder / ".lock", "busy", wait=0):
        assert freeing.free(item) == "in use now"
    assert freeing.free(item) == ""
    assert not folder.exists()


def test_a_run_that_was_refused_is_freed_and_its_command_runs_again(
    workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert qtarget_cli(["train", "model=tiny", "trainer.clip=-1"]) == 2
        (run,) = Path("outputs/runs").iterdir()
        assert qtarget_cli(["clean", "--yes"]) == 0
        assert not run.exists()
