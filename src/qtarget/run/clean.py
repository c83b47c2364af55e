"""`qtarget clean`: what of runs and caches nobody needs any more, listed, and with --yes freed.

A run keeps its configuration, result, measurements, samples, log and adapter, whatever is named. One that is at work
is left alone, and so is the last state of one that can go on. Nothing outside the folders of results and QTARGET_CACHE
is touched, and no link is followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from qtarget.config.parsers import clean_parser
from qtarget.errors import QTargetError
from qtarget.files import locked, remove
from qtarget.record.runs import read_run
from qtarget.resume_folders import STATE, newest
from qtarget.units import in_bytes

CHECKPOINT, OPTIMIZER, LOCK = "checkpoint", "optimizer.pt", ".lock"
UNFINISHED_WRITE = re.compile(r"\.([\w-]+\.(json|jsonl|yaml|txt|safetensors)|adapter)\.[^/]+\.\d+|\.checkpoint\.new")
"""Names that files and folders have while they are written (qtarget.files.replacing): .result.json.HOST.PID."""


@dataclass(frozen=True)
class Item:
    """path: what is shown. holder: the folder whose lock is held meanwhile. what: in words. parts: what is removed, in
    this order; None: `path` itself.
    """

    path: Path
    holder: Path
    what: str
    parts: tuple[Path, ...] | None = None

    @property
    def removed(self) -> tuple[Path, ...]:
        return (self.path,) if self.parts is None else self.parts

    @property
    def size(self) -> int:
        """Bytes; those that another name holds too (hard links) aren't freed, and not counted."""
        every = [path for part in self.removed for path in (part, *part.rglob("*"))]
        stats = [path.lstat() for path in every if path.is_symlink() or not path.is_dir()]
        return sum(stat.st_size for stat in stats if stat.st_nlink == 1)


def clean(arguments: Sequence[str]) -> int:
    """List what would be freed; free it with --yes. Raises QTargetError for what the user has to mend."""
    options = clean_parser().parse_intermixed_args(arguments)
    roots = [_root(Path(name).expanduser()) for name in options.paths or ["outputs"]]
    runs = [run for root in roots for run in _runs_below(root)]
    named = {_named_run(Path(name).expanduser(), runs) for name in options.checkpoint}
    items = [item for run in runs for item in _of_run(run, run in named, optimizer=options.optimizer)]
    items += _of_caches(runs) if options.caches else []
    freed = 0
    for item in items:
        size = item.size
        done = _free(item) if options.yes else True
        print(f"{in_bytes(size):>10}  {item.what:<40}  {_shown(item.path)}{'' if done else '  (in use now: left)'}")
        freed += size if done else 0
    print(_closing(len(items), freed, yes=options.yes))
    return 0


def _closing(count: int, freed: int, *, yes: bool) -> str:
    more = "--checkpoint RUN, --optimizer and --caches name more"
    if not count:
        return f"nothing to free; {more}"
    places = "1 place" if count == 1 else f"{count} places"
    return f"freed {in_bytes(freed)}" if yes else f"{in_bytes(freed)} in {places}: --yes frees it. {more}"


# Runs


def _root(path: Path) -> Path:
    if not path.is_dir():
        raise QTargetError(f"no folder {path}: name a folder of results, such as outputs")
    return path.resolve()


def _runs_below(root: Path) -> Iterator[Path]:
    """Folders of runs, found without following links."""
    for folder, below, files in os.walk(root):
        if {"result.json", "config.yaml"} <= set(files):
            below.clear()
            yield Path(folder)
        below.sort()


def _named_run(path: Path, runs: Sequence[Path]) -> Path:
    run = path.resolve()
    if path.is_symlink() or run not in runs:
        raise QTargetError(f"--checkpoint {path} is no run below the folders that are cleaned: name them first")
    status = read_run(run, datetime.now(UTC)).status
    if status != "finished":
        raise QTargetError(f"--checkpoint {path}: the run is {status}, and may go on from its checkpoint")
    return run


def _of_run(run: Path, is_named: bool, *, optimizer: bool) -> Iterator[Item]:
    if _is_held(run):
        return
    finished = read_run(run, datetime.now(UTC)).status == "finished"
    held = {
        **dict.fromkeys(_unfinished_writes(run), "left of a write that was cut off"),
        **dict.fromkeys(_old_states(run, finished), "a state that nothing goes on from"),
    }
    if optimizer and finished:
        held[run / CHECKPOINT / OPTIMIZER] = "the optimizer's state"
    if is_named:
        held.pop(run / CHECKPOINT / OPTIMIZER, None)
        held[run / CHECKPOINT] = "the checkpoint"
    for path, what in held.items():
        if path.exists() and not _passes_a_link(path, run):
            yield Item(path, run, what)


def _unfinished_writes(run: Path) -> list[Path]:
    return sorted(path for path in run.iterdir() if UNFINISHED_WRITE.fullmatch(path.name))


def _old_states(run: Path, finished: bool) -> list[Path]:
    """All that a finished run has left; else what lies beside the last whole one."""
    holder = run / STATE
    if finished:
        return [holder]
    last = newest(holder)
    return sorted(path for path in holder.glob("*") if path != last) if last else []


def _passes_a_link(path: Path, top: Path) -> bool:
    """Whether a part of the path below `top` is a link."""
    return path.resolve() != top.resolve() / path.relative_to(top)


# Caches


def _of_caches(runs: Sequence[Path]) -> list[Item]:
    """Scores of references in QTARGET_CACHE, but for those being built. A run that is at work may read any of them."""
    from qtarget.model.builtin import cache_dir  # torch and transformers come in here

    holder = cache_dir() / "references"
    if holder.is_symlink() or not holder.is_dir():
        return []
    if busy := [run for run in runs if _is_held(run)]:
        raise QTargetError(f"{_shown(busy[0])} is at work and may read a cache: wait for it, or leave --caches out")
    caches = [cache for cache in sorted(holder.iterdir()) if cache.is_dir() and not cache.is_symlink()]
    items = [Item(cache, cache, "scores of a reference", _parts(cache)) for cache in caches if not _is_held(cache)]
    return [item for item in items if item.parts]


def _parts(cache: Path) -> tuple[Path, ...]:
    """The manifest first: what is left of a cache is none. The folder stays, with the lock that is held."""
    mine = [path for path in cache.iterdir() if _is_of_a_cache(path.name) and not path.is_symlink()]
    return tuple(sorted(mine, key=lambda path: (path.name != "manifest.json", path.name)))


def _is_of_a_cache(name: str) -> bool:
    return name == "manifest.json" or name.endswith(".safetensors") or bool(UNFINISHED_WRITE.fullmatch(name))


# Locks


def _is_held(folder: Path) -> bool:
    """Whether a process is at work in a folder. A run that is another machine's says so by its heartbeat."""
    if (folder / "result.json").is_file() and read_run(folder, datetime.now(UTC)).status == "running":
        return True
    if not (folder / LOCK).exists():
        return False
    with _lock(folder) as free:
        return not free


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """The folder to this process alone, where that can be had at once."""
    holding = locked(folder / LOCK, "busy", wait=0)
    try:
        holding.__enter__()
    except QTargetError:
        yield False
        return
    try:
        yield True
    finally:
        holding.__exit__(None, None, None)


def _free(item: Item) -> bool:
    """Remove it, unless its folder has come into use since."""
    with _lock(item.holder) as free:
        for path in item.removed if free else ():
            if not _passes_a_link(path, item.holder):
                remove(path)
        return free


def _shown(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
