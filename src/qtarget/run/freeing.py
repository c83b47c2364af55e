"""Places that can be freed, and freeing them: what is in use stays, and no link is followed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from qtarget.cache_layout import LOCK
from qtarget.errors import QTargetError
from qtarget.files import files_of, locked, remove, replaced_name
from qtarget.record.runs import read_run


@dataclass(frozen=True)
class Item:
    """path: what is shown. holder: the folder whose `locks` are held meanwhile. what: in words. parts: what is removed,
    in this order; None: `path` itself. still: asked of the holder once it is locked, as what was listed may have come
    into use since.
    """

    path: Path
    holder: Path
    what: str
    parts: tuple[Path, ...] | None = None
    locks: tuple[str, ...] = (LOCK,)
    still: Callable[[Path], bool] | None = None

    @property
    def removed(self) -> tuple[Path, ...]:
        return (self.path,) if self.parts is None else self.parts

    @property
    def size(self) -> int:
        """Bytes; those that another name holds too (hard links) aren't freed, and not counted."""
        return sum(map(_bytes_freed, chain.from_iterable(map(files_of, self.removed))))


def is_unfinished(name: str, known: re.Pattern[str]) -> bool:
    """.result.json.HOST.PID of this machine, whatever the process; what another machine left is its own to clean."""
    return bool(known.fullmatch(replaced_name(name) or ""))


def passes_a_link(path: Path, top: Path) -> bool:
    """Whether a part of the path below `top` is a link."""
    return path.resolve() != top.resolve() / path.relative_to(top)


# Locks


def is_held(folder: Path, locks: Sequence[str] = (LOCK,)) -> bool:
    """Whether a process is at work in a folder. A run that is another machine's says so by its heartbeat."""
    if (folder / "result.json").is_file() and read_run(folder, datetime.now(UTC)).status == "running":
        return True
    with _lock(folder, [name for name in locks if os.path.lexists(folder / name)]) as free:  # a list makes none
        return not free


@contextmanager
def _lock(folder: Path, names: Sequence[str]) -> Iterator[bool]:
    """The folder to this process alone, where that can be had at once: not where the lock is a link or another's."""
    with ExitStack() as held:
        try:
            for name in names:
                held.enter_context(locked(folder / name, "busy", wait=0))
        except (QTargetError, OSError):
            free = False
        else:
            free = True
        yield free


# Files


def free(item: Item) -> str:
    """Remove it. Returns why it is still there, if it is: its folder has come into use, or may not be written."""
    if not item.holder.is_dir():
        return ""  # and a lock would make it anew
    with _lock(item.holder, item.locks) as free:
        if not free or (item.still and not item.still(item.holder)):
            return "in use now"
        try:
            for path in item.removed:
                if not passes_a_link(path, item.holder):
                    _remove(path)
        except OSError as error:
            return str(error.strerror or error)
        return ""


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):  # it goes on vanishing, by another hand: what remains is removed below
        remove(path)
    remove(path)


def _bytes_freed(path: Path) -> int:
    """Of a file or link; 0 where another name holds it too, or where it has vanished."""
    try:
        stat = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return stat.st_size if stat.st_nlink == 1 else 0


def shown(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


# Runs


def runs_of(roots: Sequence[Path]) -> list[Path]:
    """Those of roots that overlap once."""
    return list(dict.fromkeys(run for root in roots for run in _runs_below(root)))


def _runs_below(root: Path) -> Iterator[Path]:
    """Folders of runs, found without following links."""
    for folder, below, files in os.walk(root):
        if {"result.json", "config.yaml"} <= set(files):
            below.clear()
            yield Path(folder)
        below.sort()
