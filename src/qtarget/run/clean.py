"""`qtarget clean`: what of runs and caches nobody needs any more, listed, and with --yes freed.

A run keeps its configuration, result, measurements, samples, log and adapter, whatever is named. One that is at work
is left alone, and so is the last state of one that can go on. Nothing outside the folders of results and QTARGET_CACHE
is touched, and no link is followed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from qtarget.config.parsers import clean_parser
from qtarget.errors import QTargetError
from qtarget.files import files_of, locked, remove, replaced_name
from qtarget.record.runs import read_run
from qtarget.resume_folders import SCRATCH as STATE_SCRATCH
from qtarget.resume_folders import STATE, newest, states
from qtarget.units import in_bytes

OUTPUTS = "outputs"
CHECKPOINT, OPTIMIZER, LOCK = "checkpoint", "optimizer.pt", ".lock"
CHECKPOINT_SCRATCH = ".checkpoint.new"
OF_A_RUN = re.compile(r"config\.yaml|result\.json|samples\.jsonl|heldout_nll\.jsonl|optimizer\.pt")
OF_A_CACHE = re.compile(r"manifest\.json|head\.safetensors|shard-[0-9]{5,}\.safetensors")
"""Files that are written under another name until they are whole (qtarget.files.replacing)."""


@dataclass(frozen=True)
class Item:
    """path: what is shown. holder: the folder whose `locks` are held meanwhile. what: in words. parts: what is removed,
    in this order; None: `path` itself.
    """

    path: Path
    holder: Path
    what: str
    parts: tuple[Path, ...] | None = None
    locks: tuple[str, ...] = (LOCK,)

    @property
    def removed(self) -> tuple[Path, ...]:
        return (self.path,) if self.parts is None else self.parts

    @property
    def size(self) -> int:
        """Bytes; those that another name holds too (hard links) aren't freed, and not counted."""
        return sum(map(_bytes_freed, chain.from_iterable(map(files_of, self.removed))))


def clean(arguments: Sequence[str]) -> int:
    """List what would be freed; free it with --yes. Raises QTargetError for what the user has to mend."""
    options = clean_parser().parse_intermixed_args(arguments)
    roots = [_root(Path(name).expanduser()) for name in options.paths or [OUTPUTS]]
    runs = _runs_of(roots)
    named = {_named_run(Path(name).expanduser(), runs) for name in options.checkpoint}
    items = [item for run in runs for item in _of_run(run, run in named, optimizer=options.optimizer)]
    items += _of_caches(roots) if options.caches else []
    freed = 0
    for item in items:
        size = item.size
        left = _free(item) if options.yes else ""
        print(f"{in_bytes(size):>10}  {item.what:<40}  {_shown(item.path)}{f'  ({left}: left)' if left else ''}")
        freed += 0 if left else size
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
        raise QTargetError(f"no folder {path}: name a folder of results, such as {OUTPUTS}")
    return path.resolve()


def _runs_of(roots: Sequence[Path]) -> list[Path]:
    """Those of roots that overlap once."""
    return list(dict.fromkeys(run for root in roots for run in _runs_below(root)))


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
        of_earlier_builds = run / CHECKPOINT / OPTIMIZER
        held |= dict.fromkeys((run / OPTIMIZER, of_earlier_builds), "the optimizer's state")
    if is_named:
        held.pop(run / CHECKPOINT / OPTIMIZER, None)
        held[run / CHECKPOINT] = "the checkpoint"
    for path, what in held.items():
        if path.exists() and not _passes_a_link(path, run):
            yield Item(path, run, what)


def _unfinished_writes(run: Path) -> list[Path]:
    return sorted(
        path for path in run.glob("*") if path.name == CHECKPOINT_SCRATCH or _is_unfinished(path.name, OF_A_RUN)
    )


def _is_unfinished(name: str, known: re.Pattern[str]) -> bool:
    """.result.json.HOST.PID of this machine, whatever the process; what another machine left is its own to clean."""
    return bool(known.fullmatch(replaced_name(name) or ""))


def _old_states(run: Path, finished: bool) -> list[Path]:
    """All that a finished run has left; else what lies beside the last whole one. What is no state isn't ours."""
    holder = run / STATE
    mine = [*states(holder), holder / STATE_SCRATCH]
    if finished and set(holder.glob("*")) <= set(mine):
        return [holder]
    last = newest(holder)
    return sorted(path for path in mine if path != last or finished) if finished or last else []


def _passes_a_link(path: Path, top: Path) -> bool:
    """Whether a part of the path below `top` is a link."""
    return path.resolve() != top.resolve() / path.relative_to(top)


# Caches


def _of_caches(roots: Sequence[Path]) -> list[Item]:
    """Scores of references in QTARGET_CACHE, but for those that are built or read now.

    A run that is at work may be about to read any of them. It is looked for below the roots and the folder of results
    that is the default; runs of other folders are seen by the lock of the cache alone, once they read it.
    """
    from qtarget.model.builtin import cache_dir  # torch and transformers come in here
    from qtarget.model.cache import READING

    holder = cache_dir() / "references"
    if holder.is_symlink() or not holder.is_dir():
        return []
    _check_idle(roots)
    locks = (LOCK, READING)
    caches = [cache for cache in sorted(holder.glob("*")) if _is_cache(cache) and not _is_held(cache, locks)]
    return [Item(cache, cache, "scores of a reference", _parts(cache), locks) for cache in caches]


def _check_idle(roots: Sequence[Path]) -> None:
    """Raise QTargetError for a run that is at work; say where runs were looked for."""
    outputs = Path(OUTPUTS).resolve()
    searched = list(dict.fromkeys([*roots, *([outputs] if outputs.is_dir() else [])]))
    if busy := [run for run in _runs_of(searched) if _is_held(run)]:
        raise QTargetError(f"{_shown(busy[0])} is at work and may read a cache: wait for it, or leave --caches out")
    places = ", ".join(str(_shown(folder)) for folder in searched)
    print(f"no run is at work below {places}; a run elsewhere that is yet to read a cache isn't seen")


def _is_cache(folder: Path) -> bool:
    """Whether it holds a manifest as qtarget writes it. Another folder isn't ours, whatever its files are called."""
    manifest = folder / "manifest.json"
    if folder.is_symlink() or manifest.is_symlink():
        return False
    try:
        facts = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and {"format", "identity", "shards"} <= facts.keys()


def _parts(cache: Path) -> tuple[Path, ...]:
    """The manifest first: what is left of a cache is none. The folder stays, with the lock that is held."""
    mine = [path for path in cache.glob("*") if _is_of_a_cache(path.name) and not path.is_symlink()]
    return tuple(sorted(mine, key=lambda path: (path.name != "manifest.json", path.name)))


def _is_of_a_cache(name: str) -> bool:
    return bool(OF_A_CACHE.fullmatch(name)) or _is_unfinished(name, OF_A_CACHE)


# Locks


def _is_held(folder: Path, locks: Sequence[str] = (LOCK,)) -> bool:
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


def _free(item: Item) -> str:
    """Remove it. Returns why it is still there, if it is: its folder has come into use, or may not be written."""
    if not item.holder.is_dir():
        return ""  # and a lock would make it anew
    with _lock(item.holder, item.locks) as free:
        if not free:
            return "in use now"
        try:
            for path in item.removed:
                if not _passes_a_link(path, item.holder):
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


def _shown(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
