"""Saved states of a run: folders that appear whole, of which the last counts.

    RUN/state/step-20/state.json    a folder without one is no state: it is being taken away

Nothing here needs torch: a list of runs says how far the state of each is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from qtarget.files import remove, replacing, settle

STATE, MANIFEST = "state", "state.json"
SCRATCH = ".new"


def newest(holder: Path) -> Path | None:
    """The last state in a run's folder of states, or None."""
    return max((path for path in states(holder) if (path / MANIFEST).is_file()), key=step_of, default=None)


def states(holder: Path) -> list[Path]:
    """Folders step-NUMBER, whole or not. Another name beside them, such as step-old, is somebody's own."""
    return [path for path in holder.glob("step-*") if re.fullmatch("step-[0-9]+", path.name)]


def step_of(state: Path) -> int:
    """The optimizer steps that were done."""
    return int(state.name.removeprefix("step-"))


def publish(holder: Path, step: int, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder, MANIFEST among its files, that becomes the last state once all of it is on disk.

    A machine that stops at any moment leaves the state before or this one; the one before goes after that.
    """
    final = holder / f"step-{step}"
    if newest(holder) == final:
        return  # the same steps were done before, to the same end
    holder.mkdir(exist_ok=True)
    _remove(final)
    with replacing(final, holder / SCRATCH, durable=True) as scratch:
        scratch.mkdir()
        write(scratch)
    settle(holder)
    for earlier in states(holder):
        if earlier != final:
            _remove(earlier)


def discard(holder: Path) -> None:
    """Take all states away."""
    for path in (*states(holder), holder / SCRATCH):
        _remove(path)
    with suppress(OSError):  # there is none, or it holds something of somebody's, or a name of a network file system
        holder.rmdir()


def _remove(state: Path) -> None:
    """The manifest goes first: what is left of a state is none."""
    if state.is_dir():
        (state / MANIFEST).unlink(missing_ok=True)
    remove(state)
