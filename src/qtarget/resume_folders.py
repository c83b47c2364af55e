"""Saved states of a run: folders that appear whole, of which the last counts.

    RUN/state/step-20/state.json    a folder without one is no state: it is being taken away

Nothing here needs torch: a list of runs says how far the state of each is.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from qtarget.files import remove, settle

STATE, MANIFEST = "state", "state.json"
SCRATCH = ".new"
PARTS = "parts"
"""The key of the manifest that lists files, each with its bytes."""


def newest(holder: Path) -> Path | None:
    """The last whole state in a run's folder of states, or None."""
    whole = (path for path in states(holder) if (path / MANIFEST).is_file() and not missing_parts(path))
    return max(whole, key=step_of, default=None)


def incomplete(holder: Path) -> list[Path]:
    """States that lack a part, which somebody has taken away: they were published whole."""
    return [path for path in states(holder) if (path / MANIFEST).is_file() and missing_parts(path)]


def missing_parts(state: Path) -> list[str]:
    """Files that the manifest lists and the folder lacks. A manifest that can't be read lists none."""
    try:
        parts = json.loads((state / MANIFEST).read_text(encoding="utf-8")).get(PARTS, {})
        return [name for name in parts if not (state / name).is_file()]
    except (OSError, ValueError, AttributeError):
        return []


def states(holder: Path) -> list[Path]:
    """Folders step-NUMBER, whole or not. Another name beside them, such as step-old, is somebody's own."""
    return [path for path in holder.glob("step-*") if re.fullmatch("step-[0-9]+", path.name)]


def step_of(state: Path) -> int:
    """The optimizer steps that were done."""
    return int(state.name.removeprefix("step-"))


def open_scratch(holder: Path, step: int) -> Path | None:
    """An empty folder for `publish`; None: the state of `step` is there, of the same steps to the same end."""
    final, scratch = holder / f"step-{step}", holder / SCRATCH
    if newest(holder) == final:
        return None
    holder.mkdir(exist_ok=True)
    remove(scratch)  # a killed process has left it
    scratch.mkdir()
    return scratch


def publish(holder: Path, step: int, manifest: dict[str, Any]) -> None:
    """Make the scratch folder, whose files are on disk, the last state.

    A machine that stops at any moment leaves the state before or this one; the one before goes after that.
    """
    final, scratch = holder / f"step-{step}", holder / SCRATCH
    (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for part in (scratch / MANIFEST, scratch):
        settle(part)
    _remove(final)
    os.replace(scratch, final)
    settle(holder)
    for earlier in states(holder):
        if earlier != final:
            _remove(earlier)


def drop_scratch(holder: Path) -> None:
    """Take away what was being written: on a full disk it would be in the way."""
    remove(holder / SCRATCH)


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
