"""Files and folders are replaced as a whole, and a lock is one process's."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from qtarget.errors import QTargetError
from qtarget.files import locked, replacing, write_atomically
from qtarget.record.runs import flatten
from qtarget.units import in_bytes


def half_written(path: Path, durable: bool) -> None:
    with replacing(path, durable=durable) as scratch:
        scratch.write_text("half")
        assert path.read_text() == "old"
        raise OSError("disk full")


@pytest.mark.parametrize("durable", [False, True])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(OSError, match="full"):
        half_written(path, durable)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", [False, True])
def test_a_folder_appears_with_all_its_files(tmp_path: Path, durable: bool) -> None:
    target, scratch = tmp_path / "model", tmp_path / ".model.new"
    scratch.mkdir()
    (scratch / "leftover").write_text("of a killed process")
    with replacing(target, scratch, durable=durable) as place:
        assert place == scratch
        place.mkdir()
        (place / "weights").write_text("1")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["weights"]
    assert not scratch.exists()


def interrupted(path: Path) -> None:
    with replacing(path) as place:
        (place / "deep").mkdir(parents=True)
        raise KeyboardInterrupt


def test_a_folder_that_fails_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def enter(path: Path, **options: Any) -> None:
    with locked(path, "somebody is at work", **options):
        pass


def test_a_lock_that_another_holds_is_said(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(QTargetError, match="somebody is at work"):
        enter(tmp_path / ".lock", wait=0)
    enter(tmp_path / ".lock", wait=0)


def test_a_lock_that_is_waited_for_is_said_once_and_got(tmp_path: Path) -> None:
    heard: list[str] = []
    other = (tmp_path / ".lock").open("w")
    fcntl.flock(other, fcntl.LOCK_EX)
    release = threading.Timer(0.3, other.close)
    release.start()
    with locked(tmp_path / ".lock", "waiting", wait=0, say=heard.append):
        assert other.closed
    release.join()
    assert heard == ["waiting"]


def test_a_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), locked(tmp_path / ".lock"):
        raise ValueError("inside")
    with locked(tmp_path / ".lock", "still held", wait=0):
        pass


def test_a_configuration_flat_keeps_lists_and_empty_mappings() -> None:
    config = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": {}, "f": None}
    assert flatten(config) == {"a.b": 1, "a.c.d": [1, 2], "e": {}, "f": None}


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1234567, "1.2 MB"), (2.5e13, "25.0 TB")]
)
def test_sizes_have_fitting_units(size: float, text: str) -> None:
    assert in_bytes(size) == text
