"""`qtarget clean` frees what it lists, and nothing that anybody may need: the folders are compared file by file."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_runs import write_run

from qtarget.cli import run as qtarget_cli
from qtarget.files import lock_shared, locked, write_atomically
from qtarget.record.runs import read_runs
from qtarget.run import clean, freeing

HERE = socket.gethostname()
STATE_FILES = ("state/step-4/state.json", "state/step-4/w.pt")
CUT_OFF = f".result.json.{HERE}.12"
RECORD = ("config.yaml", "result.json", "metrics.jsonl")
KEPT = (*RECORD, "histograms.jsonl", "samples.jsonl", "heldout_nll.jsonl", "log.txt", "traceback.txt", "adapter/a.bin")


def fill(folder: Path, *names: str, size: int = 1000) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def run_folder(status: str, digest: str, **changes: object) -> Path:
    folder = write_run(Path("outputs/demo"), "sft", digest, status=status, **changes)
    fill(folder, *(name for name in KEPT if name not in RECORD), "checkpoint/model.safetensors")
    fill(folder, "checkpoint/config.json", "checkpoint/optimizer.pt", "optimizer.pt", *STATE_FILES)
    return folder


def files(*folders: Path) -> set[str]:
    """What is there, links included, but for locks."""
    found = [path for folder in folders for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return {str(path) for path in found if path.name != ".lock"}


def cleaned(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert qtarget_cli(["clean", *arguments]) == 0
    return capsys.readouterr().out


@pytest.fixture
def finished(workdir: Path) -> Path:
    folder = run_folder("finished", "f" * 12)
    fill(folder, CUT_OFF, ".checkpoint.new/model.safetensors")
    return folder


@pytest.fixture
def interrupted(workdir: Path) -> Path:
    folder = run_folder("interrupted", "1" * 12)
    fill(folder, "state/step-2/w.pt", "state/.new/w.pt", ".checkpoint.new/model.safetensors")
    return folder


def test_without_yes_nothing_is_touched_and_the_list_is_what_yes_frees(
    finished: Path, interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(Path("outputs"))
    told = cleaned(capsys)
    assert files(Path("outputs")) == before
    assert told.splitlines()[-1].startswith("7.0 kB in 6 places: --yes frees it.")
    listed = {line.split("  ")[-1].strip() for line in told.splitlines()[:-1]}
    assert cleaned(capsys, "--yes").splitlines()[-1] == "freed 7.0 kB"
    gone = before - files(Path("outputs"))
    assert {name for name in before if any(name == one or name.startswith(f"{one}/") for one in listed)} == gone


def test_of_a_finished_run_states_and_cut_off_writes_go_and_all_else_stays(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned(capsys, "--yes")
    checkpoint = {"checkpoint/model.safetensors", "checkpoint/config.json", "checkpoint/optimizer.pt"}
    assert files(finished) == {f"{finished}/{name}" for name in {*KEPT, *checkpoint, "optimizer.pt"}}


def test_the_optimizers_state_goes_where_asked_also_where_earlier_builds_kept_it(
    finished: Path, interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(Path("outputs"))
    cleaned(capsys, "--yes")
    left = files(Path("outputs"))
    cleaned(capsys, "--yes", "--optimizer")
    assert left - files(Path("outputs")) == {
        f"{finished}/{name}" for name in ("optimizer.pt", "checkpoint/optimizer.pt")
    }
    assert f"{interrupted}/optimizer.pt" in before & files(Path("outputs"))


def test_of_an_unfinished_run_the_last_state_and_the_checkpoint_stay(
    interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(interrupted)
    cleaned(capsys, "--yes", "--optimizer", "--caches")
    gone = {"state/step-2/w.pt", "state/.new/w.pt", ".checkpoint.new/model.safetensors"}
    assert before - files(interrupted) == {f"{interrupted}/{name}" for name in gone}


def test_where_no_state_is_whole_what_there_is_stays(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder("failed", "a" * 12)
    (folder / "state" / "step-4" / "state.json").unlink()
    assert "nothing to free" in cleaned(capsys, "--yes")
    assert (folder / "state" / "step-4" / "w.pt").is_file()


def test_checkpoints_go_only_where_they_are_named_and_only_of_finished_runs(
    finished: Path, interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = run_folder("finished", "b" * 12)
    cleaned(capsys, "--yes", "--checkpoint", str(finished), "--optimizer")
    assert not (finished / "checkpoint").exists()
    assert {path.name for path in (other / "checkpoint").iterdir()} == {"model.safetensors", "config.json"}
    assert not list(Path("outputs").glob(f"*/{other.name}/optimizer.pt"))
    assert (finished / "adapter" / "a.bin").is_file()
    assert qtarget_cli(["clean", "--yes", "--checkpoint", str(interrupted)]) == 2
    assert "the run is interrupted, and may go on from its checkpoint" in capsys.readouterr().err


def test_a_folder_stands_for_the_checkpoints_of_its_finished_runs(
    finished: Path, interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = run_folder("finished", "b" * 12)
    assert finished.parent == interrupted.parent == other.parent
    before = files(interrupted / "checkpoint")
    printed = cleaned(capsys, "--checkpoint", str(finished.parent))
    assert printed.count("the checkpoint") == 2
    assert f"{interrupted.name} is interrupted, and may go on from its checkpoint" in printed
    assert (finished / "checkpoint").is_dir()
    cleaned(capsys, "--yes", "--checkpoint", str(finished.parent))
    assert not (finished / "checkpoint").exists()
    assert not (other / "checkpoint").exists()
    assert files(interrupted / "checkpoint") == before


def test_a_checkpoint_outside_the_named_folders_is_refused(
    finished: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "elsewhere").mkdir()
    (workdir / "elsewhere" / "link").symlink_to(finished, target_is_directory=True)
    for named in ([str(workdir / "elsewhere"), "--checkpoint", str(finished)], ["--checkpoint", "elsewhere/link"]):
        assert qtarget_cli(["clean", "--yes", *named]) == 2
        assert "is no run below the folders that are cleaned" in capsys.readouterr().err
    assert (finished / "checkpoint" / "model.safetensors").is_file()


def test_a_run_at_work_is_left_alone(finished: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its lock on this machine, by its heartbeat on any other."""
    elsewhere = run_folder("running", "d" * 12, heartbeat=datetime.now(UTC).isoformat())
    fill(elsewhere, "state/step-2/w.pt")
    before = files(Path("outputs"))
    with locked(finished / ".lock", "busy", wait=0):
        assert "nothing to free" in cleaned(capsys, "--yes", "--optimizer", "--checkpoint", str(finished))
    assert files(Path("outputs")) == before
    assert cleaned(capsys, "--yes").splitlines()[-1].startswith("freed 4.0 kB")
    assert (elsewhere / "state" / "step-2" / "w.pt").is_file()


def test_no_link_is_followed_and_nothing_outside_is_freed(
    finished: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A linked run, a linked state, a linked checkpoint, and a link within a state."""
    fill(workdir / "outside", "state/step-1/w.pt", "checkpoint/optimizer.pt")
    other = run_folder("finished", "c" * 12)
    for name in ("state", "checkpoint"):
        subprocess.run(["rm", "-r", str(other / name)], check=True)
        (other / name).symlink_to(workdir / "outside" / name, target_is_directory=True)
    (finished / "state" / "step-4" / "link").symlink_to(workdir / "outside", target_is_directory=True)
    finished.rename(workdir / "moved")
    Path("outputs/linked").symlink_to(workdir / "moved", target_is_directory=True)
    before = files(workdir / "outside", workdir / "moved")
    cleaned(capsys, "--yes", "--optimizer", "--checkpoint", str(other))
    assert files(workdir / "outside", workdir / "moved") == before
    cleaned(capsys, "moved", "--yes")
    assert not (workdir / "moved" / "state").exists()
    assert files(workdir / "outside") == {name for name in before if "/outside/" in name}


def test_folders_that_are_no_runs_are_left_alone(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(
        workdir / "outputs" / "mine",
        "state/step-1/w.pt",
        CUT_OFF,
        "checkpoint/optimizer.pt",
        "result.json",
    )
    before = files(workdir)
    assert "nothing to free" in cleaned(capsys, "--yes", "--optimizer")
    assert files(workdir) == before


def test_a_file_that_another_name_holds_is_not_counted_as_freed(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.link(finished / "state" / "step-4" / "w.pt", "kept.pt")
    assert cleaned(capsys, "--yes").splitlines()[-1] == "freed 3.0 kB"
    assert Path("kept.pt").stat().st_size == 1000


def test_folders_that_overlap_are_cleaned_once(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = ("outputs", "outputs/demo", str(finished), "outputs/../outputs")
    assert cleaned(capsys, *paths).splitlines()[-1].startswith("4.0 kB in 3 places")
    assert cleaned(capsys, *paths, "--yes").splitlines()[-1] == "freed 4.0 kB"


def test_what_vanishes_meanwhile_is_nothing_to_free(
    finished: Path, interrupted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once between the list and the sizes, where a whole run goes, and once just before a state is removed."""
    listed, removed = clean._of_run, freeing.remove

    def emptied(run: Path, *options: bool, **more: bool) -> list[freeing.Item]:
        items = list(listed(run, *options, **more))
        if run == interrupted.resolve():
            shutil.rmtree(run)
        return items

    def late(path: Path) -> None:
        if (path / "step-4").is_dir():
            shutil.rmtree(path / "step-4")
            raise FileNotFoundError(2, "as rmtree says it where another process removes, too")
        removed(path)

    monkeypatch.setattr(clean, "_of_run", emptied)
    monkeypatch.setattr(freeing, "remove", late)
    assert cleaned(capsys, "--yes").splitlines()[-1] == "freed 4.0 kB"
    assert not interrupted.exists()
    assert not (finished / "state").exists()


def test_what_may_not_be_removed_is_left_and_the_rest_goes(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = freeing.remove

    def refused(path: Path) -> None:
        if path.name == "state":
            raise PermissionError(13, "Permission denied")  # root, as in a container, is refused nothing by mode bits
        removed(path)

    monkeypatch.setattr(freeing, "remove", refused)
    told = cleaned(capsys, "--yes")
    assert f"{finished}/state  (Permission denied: left)" in told
    assert told.splitlines()[-1] == "freed 2.0 kB"


@pytest.mark.parametrize("kind", ["a link", "a link to nothing", "a folder"])
def test_a_run_of_which_the_lock_is_no_file_is_in_use(
    finished: Path, workdir: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = finished / ".lock"
    fill(workdir, "target")
    lock.mkdir() if kind == "a folder" else lock.symlink_to(workdir / ("target" if kind == "a link" else "none"))
    before = files(workdir)
    assert "nothing to free" in cleaned(capsys, "--yes", "--optimizer", "--checkpoint", str(finished))
    assert files(workdir) == before


def test_a_run_of_which_the_lock_is_another_users_is_in_use(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """open(2) of a file that is another user's: EACCES. Root, as in a container, is never told so."""
    (finished / ".lock").touch()
    opened = os.open

    def refused(path: object, *arguments: object, **more: object) -> int:
        if str(path).endswith(".lock"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refused)
    assert "nothing to free" in cleaned(capsys, "--yes")
    assert (finished / "state").is_dir()


def test_a_folder_among_the_states_that_is_no_step_is_left_and_runs_are_read(
    finished: Path, interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody's copy of a state."""
    for run in (finished, interrupted):
        fill(run, "state/step-old/state.json", "state/step-/state.json")
    assert [run.resume_step for run in read_runs("outputs") if run.folder.name == interrupted.name] == [4]
    cleaned(capsys, "--yes")
    assert {path.name for path in (finished / "state").iterdir()} == {"step-old", "step-"}
    assert {path.name for path in (interrupted / "state").iterdir()} == {"step-4", "step-old", "step-"}


def test_only_the_very_names_of_unfinished_writes_are_cut_off_writes(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = (".result.json.before-edit.1", f".notes.json.{HERE}.1", f".result.json.{HERE}.x", f"result.json.{HERE}.1")
    fill(finished, *mine, f".result.json.not-{HERE}.1", f".result.json.{HERE}.1.bak", f".samples.jsonl.{HERE}.77")
    before = files(finished)
    cleaned(capsys, "--yes")
    gone = {CUT_OFF, f".samples.jsonl.{HERE}.77", ".checkpoint.new/model.safetensors", *STATE_FILES}
    assert before - files(finished) == {f"{finished}/{name}" for name in gone}
    monkeypatch.setattr(os, "replace", lambda scratch, path: None)  # as if the process ended here
    write_atomically(finished / "config.yaml", "new")
    assert f"/.config.yaml.{HERE}.{os.getpid()}\n" in cleaned(capsys)


# Caches

MANIFEST = '{"format": 1, "identity": {"rows": "12"}, "made_from": {}, "shards": [{"file": "shard-00000.safetensors"}]}'


@pytest.fixture
def cache(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole cache of scores, one that is being built, a link, and a converted model."""
    holder = workdir / "cache"
    monkeypatch.setenv("QTARGET_CACHE", str(holder))
    for name in ("whole", "building"):
        fill(holder / "references" / name, "shard-00000.safetensors", "head.safetensors", ".lock")
        (holder / "references" / name / "manifest.json").write_text(MANIFEST)
    fill(holder / "references" / "whole", f".shard-00001.safetensors.{HERE}.12", "notes.md")
    fill(workdir / "outside", "manifest.json", "shard-00000.safetensors")
    (holder / "references" / "link").symlink_to(workdir / "outside", target_is_directory=True)
    fill(holder / "models" / "converted", "model.safetensors")
    return holder


def test_caches_go_only_where_asked_and_none_under_a_lock(
    finished: Path, cache: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(cache, workdir / "outside")
    cleaned(capsys, "--yes")
    assert files(cache, workdir / "outside") == before
    with locked(cache / "references" / "building" / ".lock", "busy", wait=0):
        cleaned(capsys, "--yes", "--caches")
    names = ("manifest.json", "shard-00000.safetensors", "head.safetensors", f".shard-00001.safetensors.{HERE}.12")
    assert before - files(cache, workdir / "outside") == {f"{cache}/references/whole/{name}" for name in names}


def test_no_cache_goes_while_a_run_is_at_work_that_may_read_it(
    finished: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(cache)
    with locked(finished / ".lock", "busy", wait=0):
        assert qtarget_cli(["clean", "--yes", "--caches"]) == 2
    assert "is at work and may read a cache" in capsys.readouterr().err
    assert files(cache) == before


def test_no_cache_goes_while_a_run_of_the_default_folder_is_at_work_whatever_is_named(
    finished: Path, cache: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On another machine: by its heartbeat."""
    at_work = run_folder("running", "d" * 12, heartbeat=datetime.now(UTC).isoformat())
    (workdir / "elsewhere").mkdir()
    before = files(cache)
    assert qtarget_cli(["clean", "elsewhere", "--yes", "--caches"]) == 2
    assert f"{at_work} is at work and may read a cache" in capsys.readouterr().err
    assert files(cache) == before
    shutil.rmtree(at_work)
    told = cleaned(capsys, "elsewhere", "--caches")
    assert told.splitlines()[0].startswith("no run is at work below elsewhere, outputs; a run elsewhere")


def test_a_cache_that_anything_reads_stays_until_the_last_reader_is_gone(
    finished: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, before = cache / "references" / "whole", files(cache)
    readers: list[set[str]] = [set(), set()]  # any object, for as long as it lives
    for reader in readers:
        lock_shared(whole / ".reading", reader)
    del reader
    while readers:
        assert "references/whole" not in cleaned(capsys, "--yes", "--caches")
        assert {path for path in before if "/whole/" in path} <= files(cache)
        readers.pop()
    cleaned(capsys, "--yes", "--caches")
    assert not (whole / "manifest.json").exists()


def test_a_folder_without_a_manifest_of_qtargets_is_no_cache(
    finished: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that lie there, another program's manifest, files of somebody's own in a cache."""
    fill(cache / "references" / "llama", "model.safetensors", "shard-00000.safetensors", "head.safetensors")
    fill(cache / "references" / "damaged", "manifest.json", "shard-00000.safetensors")
    fill(cache / "references" / "other", "shard-00000.safetensors")
    (cache / "references" / "other" / "manifest.json").write_text('{"name": "a web app"}')
    fill(cache / "references" / "whole", "model.safetensors")
    before = files(cache)
    cleaned(capsys, "--yes", "--caches")
    gone = {path.removeprefix(f"{cache}/references/").split("/")[0] for path in before - files(cache)}
    assert gone == {"whole", "building"}
    assert (cache / "references" / "whole" / "model.safetensors").is_file()


def test_a_folder_that_is_missing_is_said(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["clean"]) == 2
    assert "no folder outputs: name a folder of results" in capsys.readouterr().err


def test_a_list_waits_for_no_torch(finished: Path) -> None:
    code = (
        "import sys; from qtarget.cli import run; code = run(['clean']); print({'torch', 'hydra'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
