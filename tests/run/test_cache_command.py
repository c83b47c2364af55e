"""`qtarget cache` without keys: what runs share is listed with its size, and what nobody uses is freed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from qtarget.cli import run as qtarget_cli
from qtarget.data import prepared_files
from qtarget.data.module import DataConfig, Prepared
from qtarget.data.once import prepare_once
from qtarget.data.sources.jsonl import Jsonl
from qtarget.files import lock_shared, locked
from qtarget.model.builtin import tiny_tokenizer

SCORES = {"format": 1, "identity": {"rows": "12"}, "made_from": {"model": "tiny"}, "shards": []}


@pytest.fixture
def holder(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scores of a reference, prepared data that nobody reads, and what a build of another has left."""
    holder = workdir / "cache"
    monkeypatch.setenv("QTARGET_CACHE", str(holder))
    scores = holder / "references" / "label-1"
    scores.mkdir(parents=True)
    (scores / "manifest.json").write_text(json.dumps(SCORES))
    (scores / "shard-00000.safetensors").write_bytes(b"x" * 5000)
    prepared(holder)
    building = holder / "prepared" / "half" / ".building"
    building.mkdir(parents=True)
    (building / "train.arrow").write_bytes(b"x" * 3000)
    return holder


def prepared(holder: Path) -> Prepared:
    rows = [{"prompt": f"{index}?", "completion": f"{index}!"} for index in range(9)]
    path = holder.parent / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = DataConfig(Jsonl(str(path)), rows=None, heldout_rows=None, keep=True)
    return prepare_once(config, tiny_tokenizer(), 1024, holder / "prepared")


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    capsys.readouterr()
    assert qtarget_cli(["cache", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def kept(holder: Path) -> set[str]:
    return {path.parent.name for path in holder.rglob("manifest.json")}


def test_both_kinds_are_listed_with_what_they_are_of(holder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys)
    assert [line.split("  ")[-1] for line in lines[:1]] == ["tiny"]
    assert "scores of a reference" in lines[0]
    assert lines[1].split("  ")[-1].startswith("8 rows of prompt")
    assert any("left of a build that was cut off" in line and "cache/prepared/half" in line for line in lines)
    assert lines[-1].endswith("that nobody uses now")
    assert "in 3 caches" in lines[-1]
    assert len(kept(holder)) == 2


def test_a_list_changes_nothing_and_yes_frees_all(holder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path for path in holder.rglob("*") if path.is_file()}
    listed = shown(capsys)
    assert {path for path in holder.rglob("*") if path.is_file() and path.stat().st_size} <= before
    freed = shown(capsys, "--yes")
    size = listed[-1].split(" in ")[0]
    assert freed[-1] == f"freed {size} of {size}"
    assert not [path for path in holder.rglob("*") if path.is_file() and path.stat().st_size]
    assert shown(capsys)[-1].startswith(f"no caches in {holder}")


@pytest.mark.parametrize(("name", "left"), [("references", 1), ("prepared", 1), ("label-*", 1)])
def test_a_name_frees_a_kind_or_what_is_called_so(
    name: str, left: int, holder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown(capsys, name, "--yes")
    assert len(kept(holder)) == left
    assert ("label-1" in kept(holder)) == (name == "prepared")


def test_prepared_data_that_is_read_or_built_stays(holder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read = prepared(holder)
    with locked(holder / "references" / "label-1" / ".lock"):
        lines = shown(capsys, "--yes")
    assert sum("(in use: left)" in line for line in lines) == 2
    assert len(kept(holder)) == 2
    assert len(list(read.train)) == 8
    del read
    shown(capsys, "--yes")
    assert kept(holder) == set()


def test_prepared_data_stays_between_a_look_for_it_and_its_opening(
    holder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = prepared_files.opened

    def after_a_prune(*given: Any) -> Prepared:
        assert any("prepared" in line and "(in use: left)" in line for line in shown(capsys, "--yes"))
        return opened(*given)

    monkeypatch.setattr(prepared_files, "opened", after_a_prune)
    assert len(prepared(holder).train) == 8


def test_prepared_data_that_is_pruned_just_now_is_prepared_again(holder: Path) -> None:
    """A reader waits for the command's lock before it looks."""
    folder = next(path.parent for path in (holder / "prepared").glob("*/manifest.json"))
    read: list[Prepared] = []
    reader = threading.Thread(target=lambda: read.append(prepared(holder)))
    with locked(folder / ".reading"):
        reader.start()
        time.sleep(0.5)
        for name in ("manifest.json", *prepared_files.FILES):
            (folder / name).unlink()
    reader.join()
    assert len(read[0].train) == 8


def test_a_reader_of_the_other_kind_keeps_nothing_but_its_own(holder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader: set[str] = set()
    lock_shared(holder / "references" / "label-1" / ".reading", reader)
    shown(capsys, "--yes")
    assert kept(holder) == {"label-1"}


def test_clean_frees_both_kinds_too(holder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("outputs").mkdir()
    assert qtarget_cli(["clean", "--yes", "--caches"]) == 0
    assert kept(holder) == set()


def test_a_name_that_is_none_and_keys_beside_yes_are_refused(holder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["cache", "nowhere", "--yes"]) == 2
    assert "no cache is called nowhere" in capsys.readouterr().err
    assert qtarget_cli(["cache", "detail=label", "--yes"]) == 2
    assert "give one or the other" in capsys.readouterr().err
    assert len(kept(holder)) == 2


def test_a_list_waits_for_no_torch(holder: Path) -> None:
    code = "import sys; from qtarget.cli import run; run(['cache']); print({'torch', 'hydra'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
