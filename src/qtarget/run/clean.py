"""`qtarget clean`: what of runs and caches nobody needs any more, listed, and with --yes freed.

A run keeps its configuration, result, measurements, samples, log and adapter, whatever is named; of one that failed
before it trained a step the folder goes. One that is at work is left alone, and so is the last state of one that can
go on. Nothing outside the folders of results and QTARGET_CACHE
is touched, and no link is followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from qtarget.cache_layout import LOCK
from qtarget.config.parsers import clean_parser
from qtarget.errors import QTargetError
from qtarget.record.record import HISTOGRAMS, METRICS
from qtarget.record.runs import read_run
from qtarget.resume_folders import SCRATCH as STATE_SCRATCH
from qtarget.resume_folders import STATE, newest, states
from qtarget.run.cache_folders import OUTPUTS, cache_items, check_idle
from qtarget.run.freeing import Item, free, is_held, is_unfinished, passes_a_link, runs_of, shown
from qtarget.units import in_bytes

CHECKPOINT, OPTIMIZER = "checkpoint", "optimizer.pt"
CHECKPOINT_SCRATCH = ".checkpoint.new"
OF_A_RUN = re.compile(r"config\.yaml|result\.json|samples\.jsonl|heldout_nll\.jsonl|optimizer\.pt")
"""Files that are written under another name until they are whole (qtarget.files.replacing)."""
OF_A_FAILURE = ("config.yaml", "result.json", "traceback.txt", LOCK)
EMPTY_WITHOUT_A_STEP = (METRICS, HISTOGRAMS)


def clean(arguments: Sequence[str]) -> int:
    """List what would be freed; free it with --yes. Raises QTargetError for what the user has to mend."""
    options = clean_parser().parse_intermixed_args(arguments)
    roots = [_root(Path(name).expanduser()) for name in options.paths or [OUTPUTS]]
    runs = runs_of(roots)
    named = {run for name in options.checkpoint for run in _named_runs(Path(name).expanduser(), runs)}
    items = [item for run in runs for item in _of_run(run, run in named, optimizer=options.optimizer)]
    if options.caches:
        check_idle(roots)
        items += [item for item in cache_items() if not is_held(item.holder, item.locks)]
    freed = 0
    for item in items:
        size = item.size
        left = free(item) if options.yes else ""
        print(f"{in_bytes(size):>10}  {item.what:<40}  {shown(item.path)}{f'  ({left}: left)' if left else ''}")
        freed += 0 if left else size
    print(_closing(len(items), freed, yes=options.yes))
    return 0


def _closing(count: int, freed: int, *, yes: bool) -> str:
    more = "--checkpoint RUN, --optimizer and --caches list checkpoints, optimizer states and caches too"
    if not count:
        return f"nothing to free; {more}"
    places = "1 place" if count == 1 else f"{count} places"
    return f"freed {in_bytes(freed)}" if yes else f"{in_bytes(freed)} in {places}: --yes frees it. {more}"


# Runs


def _root(path: Path) -> Path:
    if not path.is_dir():
        raise QTargetError(f"no folder {path}: name a folder of results, such as {OUTPUTS}")
    return path.resolve()


def _named_runs(path: Path, runs: Sequence[Path]) -> list[Path]:
    """The run that is named, or the finished runs of a folder; others of the folder are said, and left alone."""
    named = path.resolve()
    below = [run for run in runs if run.is_relative_to(named)]
    if path.is_symlink() or not below:
        raise QTargetError(
            f"--checkpoint {path} is no run below the folders that are cleaned, and holds none: name them first"
        )
    statuses = {run: read_run(run, datetime.now(UTC)).status for run in below}
    finished = [run for run, status in statuses.items() if status == "finished"]
    if not finished:
        what = f"the run is {statuses[named]}" if below == [named] else f"none of its {len(below)} runs is finished"
        raise QTargetError(f"--checkpoint {path}: {what}, and may go on from its checkpoint")
    for run, status in statuses.items():
        if status != "finished":
            print(f"left alone: {shown(run)} is {status}, and may go on from its checkpoint")
    return finished


def _of_run(run: Path, is_named: bool, *, optimizer: bool) -> Iterator[Item]:
    if is_held(run):
        return
    if _never_trained(run):
        yield Item(run, run, "a failed run that never trained", still=_never_trained)
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
        if path.exists() and not passes_a_link(path, run):
            yield Item(path, run, what)


def _never_trained(run: Path) -> bool:
    """Whether a run failed before its first step, and its folder holds the record of that alone: no state, checkpoint
    or line of measurements, and nothing of anybody's own.

    Training measures before its first step. With trainer.eval_every=0 it doesn't, and once the rows had been counted
    (`rows`) nothing says whether it began.
    """
    if not all(map(_is_of_a_failure, run.glob("*"))):
        return False
    record = read_run(run, datetime.now(UTC))
    is_read = bool(record.versions)  # all records have them; one that can't be read counts as failed, too
    may_have_begun = record.rows and record.config.get("trainer.eval_every", "0") == "0"
    return is_read and record.status == "failed" and not record.metrics and not may_have_begun


def _is_of_a_failure(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    is_empty = path.name in EMPTY_WITHOUT_A_STEP and not path.stat().st_size
    return is_empty or path.name in OF_A_FAILURE or is_unfinished(path.name, OF_A_RUN)


def _unfinished_writes(run: Path) -> list[Path]:
    return sorted(
        path for path in run.glob("*") if path.name == CHECKPOINT_SCRATCH or is_unfinished(path.name, OF_A_RUN)
    )


def _old_states(run: Path, finished: bool) -> list[Path]:
    """All that a finished run has left; else what lies beside the last whole one. What is no state isn't ours."""
    holder = run / STATE
    mine = [*states(holder), holder / STATE_SCRATCH]
    if finished and set(holder.glob("*")) <= set(mine):
        return [holder]
    last = newest(holder)
    return sorted(path for path in mine if path != last or finished) if finished or last else []
