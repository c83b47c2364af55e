"""Saved states of a run: folders that appear whole, of which the last counts.

    RUN/state/step-20/state.json    a folder without one is no state: it is being taken away

Nothing here needs torch: a list of runs says how far the state of each is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

STATE, MANIFEST = "state", "state.json"
SCRATCH = ".new"


def newest(holder: Path) -> Path | None:
    """The last state in a run's folder of states, or None."""
    found = [path for path in holder.glob("step-*") if (path / MANIFEST).is_file()]
    return max(found, key=step_of, default=None)


def step_of(state: Path) -> int:
    """The optimizer steps that were done."""
    return int(state.name.removeprefix("step-"))


def publish(holder: Path, step: int, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder, MANIFEST among its files, that becomes the last state once all of it is on disk.

    A machine that stops at any moment leaves the state before or this one; the one before goes after that.
    """
    final, scratch = holder / f"step-{step}", holder / SCRATCH
    if newest(holder) == final:
        return  # the same steps were done before, to the same end
    holder.mkdir(exist_ok=True)
    for leftover in (scratch, final):
        _remove(leftover)
    scratch.mkdir()
    try:
        write(scratch)
    except BaseException:
        _remove(scratch)  # on a full disk it would be in the way
        raise
    for path in (*scratch.iterdir(), scratch):
        settle(path)
    os.replace(scratch, final)
    settle(holder)
    for earlier in holder.glob("step-*"):
        if earlier != final:
            _remove(earlier)


def discard(holder: Path) -> None:
    """Take all states away."""
    for path in holder.glob("*"):
        _remove(path)
    with suppress(OSError):  # there is none, or a network file system still holds a name in it
        holder.rmdir()


def _remove(state: Path) -> None:
    """The manifest goes first: what is left of a state is none."""
    if not state.is_dir():
        state.unlink(missing_ok=True)
        return
    (state / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(state)


def settle(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
