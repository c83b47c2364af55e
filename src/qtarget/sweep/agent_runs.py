"""The runs of W&B agents: the values that an agent hands over, and what became of each run.

An agent writes a point on the command line as Python prints it: null becomes `None`, true `True`, a text isn't quoted,
and keys below a key are one mapping. With their types they stand in a file that it names (wandb 0.31.0). It takes a run
that a signal has ended for good.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtarget.errors import QTargetError
from qtarget.record.record import stored_result
from qtarget.record.wandb_sweep import WandbSweep, states, under_agent

VALUES_FILE = "WANDB_SWEEP_PARAM_PATH"
"""The variable in which an agent names its file of values."""


def restore_swept_values(arguments: Sequence[str]) -> list[str]:
    """A command line on which the agent's values are those of the sweep file, by the same texts as `qtarget sweep`."""
    if not under_agent() or not os.environ.get(VALUES_FILE):
        return list(arguments)
    values = _values(Path(os.environ[VALUES_FILE]))
    return [restored for argument in arguments for restored in _restored(argument, values)]


def _values(file: Path) -> dict[str, Any]:
    import yaml

    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise QTargetError(
            f"a W&B agent started this run, and the file of its values, {file}, can't be read ({error}): start the "
            f"agent in a folder that its runs see, or unset {VALUES_FILE} to have the command line alone count"
        ) from error
    return {key: entry["value"] for key, entry in entries.items() if isinstance(entry, Mapping) and "value" in entry}


def _restored(argument: str, values: Mapping[str, Any]) -> Iterator[str]:
    """What stands for one argument: itself, where it isn't the agent's."""
    from qtarget.config.overrides import override
    from qtarget.record.runs import flatten
    from qtarget.sweep.space import check_value, is_number_to_hydra

    prefix, key, text = re.fullmatch(r"(\+{0,2})([^=]*)=?(.*)", argument, re.DOTALL).groups()  # type: ignore[union-attr]
    value = values.get(key)
    if key not in values or not (isinstance(value, Mapping) or text == str(value)):
        yield argument
        return
    for dotted, leaf in flatten({key: value}).items():
        check_value(dotted, leaf)
        _check_quotes(dotted, leaf)
        yield f"{prefix}{dotted}={leaf}" if is_number_to_hydra(dotted, leaf) else override(f"{prefix}{dotted}", leaf)


def _check_quotes(key: str, value: Any) -> None:
    """Refuse a text that brings quotes for Hydra along, as agents needed before their file of values was read."""
    if isinstance(value, str) and re.fullmatch(r"'.*'|\".*\"", value, re.DOTALL):
        raise QTargetError(
            f"{key}: the sweep's value {value} has quotes of its own, which would be part of the text: write "
            f"{value[1:-1]} in the sweep file, in YAML's quotes where YAML needs them"
        )


RUN_IDS = re.compile(r"Running runs: \[(.*?)\]|Cleaning up finished run: (\S+)")
"""What an agent writes of the runs it has."""
STOPPED = re.compile(r"\bStop: (\S+)")
"""What it writes where the sweep's early stopping ends one."""
RESULTS = "outputs/*/*/result.json"
MOST_LISTED = 20


@dataclass(frozen=True)
class Runs:
    """Ids of all runs that agents had, and of those that the sweep has stopped."""

    ids: tuple[str, ...]
    stopped: frozenset[str]


@dataclass(frozen=True)
class Recorded:
    """Our own record of a run."""

    folder: Path
    status: str


def runs_in(logs: Iterable[str]) -> Runs:
    """From what agents have written."""
    text = "\n".join(logs)
    ids = [run.strip(" '") for running, ended in RUN_IDS.findall(text) for run in (running or ended).split(",")]
    return Runs(tuple(dict.fromkeys(filter(None, ids))), frozenset(STOPPED.findall(text)))


def all_well(sweep: WandbSweep, runs: Runs) -> bool:
    """Whether every run has finished, or was stopped by the sweep; says which haven't, and what to do."""
    if not runs.ids:
        return True
    records = _records()
    ends = _ends(sweep, runs, records)
    lost = {run: end for run, end in ends.items() if end not in ("finished", "stopped by the sweep")}
    print(f"{sweep.path}: {len(ends) - len(lost)} of the {len(ends)} runs of these agents are well", file=sys.stderr)
    for run, end in list(lost.items())[:MOST_LISTED]:
        folder = f"  →  {records[run].folder}" if run in records else ""
        print(f"LOST      {run} ({end}){folder}", file=sys.stderr)
    if len(lost) > MOST_LISTED:
        print(f"          and {len(lost) - MOST_LISTED} more", file=sys.stderr)
    if lost:
        print(
            "W&B hands out no point twice: `wandb sweep FILE` makes the sweep anew, in which finished runs are not "
            "trained again",
            file=sys.stderr,
        )
    return not lost


def _ends(sweep: WandbSweep, runs: Runs, records: Mapping[str, Recorded]) -> dict[str, str]:
    """Run → how it ended: as W&B has it, and where it has no end of it as our own record does.

    A run whose process was killed is running to W&B until its heartbeat is missed for some minutes.
    """
    try:
        at_wandb: Mapping[str, str] = states(sweep.path)
    except QTargetError as error:
        print(f"W&B doesn't say what became of the runs, the records here do: {error}", file=sys.stderr)
        at_wandb = {}
    recorded = {run: records[run].status if run in records else "" for run in runs.ids}
    return {run: _end(at_wandb.get(run, "unknown"), recorded[run], run in runs.stopped) for run in runs.ids}


def _end(state: str, recorded: str, stopped: bool) -> str:
    if "finished" in (state, recorded):
        return "finished"
    if stopped:
        return "stopped by the sweep"
    # what runs no more and hasn't said so was killed, whatever its last word was
    return "killed" if "running" in (state, recorded) else recorded or state


def _records() -> dict[str, Recorded]:
    """The records in outputs/, by the id of the run at W&B."""
    from qtarget.record.trackers import name_before  # numpy comes in here, and every command imports this file

    results = ((path.parent, stored_result(path.parent) or {}) for path in Path().glob(RESULTS))
    return {
        str(run): Recorded(folder, str(result["status"]))
        for folder, result in results
        if (run := name_before(result, "wandb"))
    }
