"""Which runs are one line of a plot: those that differ in their seed alone, or those of a row of `--group-by`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qtarget.compare.group_table import Grouped
from qtarget.compare.groups import GroupRow
from qtarget.plot.figures import RunGroup
from qtarget.plot.looks import GREY, Mark, marks
from qtarget.record.runs import Run, describes_only, differing_keys, finished, unfinished

MOST_KEYS = 3
"""Keys that a label names; where more differ it has the start of the first run's hash."""


def run_groups(runs: Sequence[Run]) -> list[RunGroup]:
    """The rows of the table, then unfinished runs that left numbers; seeds of one configuration together."""
    plotted = finished(runs) + [run for run in unfinished(runs) if run.history]
    members = _by_configuration(plotted)
    labels = [_label(group, members) for group in members]
    trained = [(_design(group[0]), label) for group, label in zip(members, labels, strict=True) if not _is_base(group)]
    styled = iter(marks(trained))
    return [
        RunGroup(Mark(index, label, GREY, 0) if _is_base(group) else replace(next(styled), index=index), group)
        for index, (group, label) in enumerate(zip(members, labels, strict=True))
    ]


def groups_of_rows(grouped: Grouped) -> list[RunGroup]:
    """One for each row of the grouped table."""
    styled = marks([(row_design(grouped, row), row.group.label) for row in grouped.rows])
    return [RunGroup(mark, row.group.runs) for row, mark in zip(grouped.rows, styled, strict=True)]


def row_design(grouped: Grouped, row: GroupRow) -> str:
    """The design whose colour a row has."""
    return row.group.key.get("target") or grouped.design(row)


def is_seed(key: str) -> bool:
    """Whether a configuration key is a seed: of the run, of its data or of its noise."""
    return key.rpartition(".")[2] == "seed"


def _by_configuration(runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    members: dict[object, list[Run]] = {}
    for run in runs:
        config = {item for item in run.config.items() if not describes_only(item[0]) and not is_seed(item[0])}
        same = (run.name, run.role, run.status, run.outdated, frozenset(config))
        members.setdefault(same if run.config else run.folder, []).append(run)
    together = [group for group in members.values() if len({run.seed for run in group}) == len(group)]
    alone = [[run] for group in members.values() if group not in together for run in group]
    rank = {run.folder: index for index, run in enumerate(runs)}
    return sorted(map(tuple, together + alone), key=lambda group: rank[group[0].folder])


def _label(group: Sequence[Run], others: Sequence[Sequence[Run]]) -> str:
    """The name, and the values that tell it from the other groups of that name."""
    if len(group) == 1:
        return group[0].display_name
    namesakes = [other[0] for other in others if other[0].name == group[0].name]
    keys = [key for key in differing_keys(namesakes) if not is_seed(key)]
    values = [f"{key.rpartition('.')[2]}={group[0].config.get(key, '–')}" for key in keys]
    apart = f" ({', '.join(values)})" * bool(keys)
    if len(keys) > MOST_KEYS:
        apart = f" ({group[0].folder.name[:6]}…)"
    return replace(group[0], label=f"{group[0].name}{apart}").display_name


def _design(run: Run) -> str:
    return run.choices.get("target", run.name)


def _is_base(group: Sequence[Run]) -> bool:
    return group[0].role == "base"
