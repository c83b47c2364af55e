"""Which runs are one line of a plot: those that differ in their seed alone, or those of a row of `--group-by`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qtarget.compare.group_table import Grouped
from qtarget.compare.groups import GroupRow
from qtarget.plot.figures import RunGroup
from qtarget.plot.looks import GREY, Mark, marks
from qtarget.record.runs import Run, differing, differing_keys, finished, is_seed, unfinished

MOST_KEYS = 3
"""Keys that a label names; where more differ it has the start of the first run's hash."""


def run_groups(runs: Sequence[Run]) -> list[RunGroup]:
    """The rows of the table, then unfinished runs that left numbers; seeds of one configuration together.

    Runs that are only listed have no line.
    """
    plotted = finished(runs) + [run for run in unfinished(runs) if run.history and not run.only_listed]
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


def _by_configuration(runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    members: dict[object, list[Run]] = {}
    for run in runs:
        same = (run.name, run.role, run.status, run.outdated, run.but_seed)
        members.setdefault(same if run.but_seed else run.folder, []).append(run)
    groups: list[tuple[Run, ...]] = []
    for group in members.values():
        seeds = {run.seed for run in group}
        groups += [tuple(group)] if len(seeds) == len(group) else [(run,) for run in group]
    rank = {run.folder: index for index, run in enumerate(runs)}
    return sorted(groups, key=lambda group: rank[group[0].folder])


def _label(group: Sequence[Run], others: Sequence[Sequence[Run]]) -> str:
    """The name, and the values that tell it from the other groups of that name."""
    if len(group) == 1:
        return group[0].display_name
    namesakes = [other[0] for other in others if other[0].name == group[0].name]
    keys = [key for key in differing_keys(namesakes) if not is_seed(key)]
    options = differing([run.choices for run in namesakes])
    values = [f"{key.rpartition('.')[2]}={group[0].config.get(key, '–')}" for key in keys]
    values += [f"{key.rpartition('/')[2]}={group[0].choices.get(key, '–')}" for key in sorted(options)]
    apart = f" ({', '.join(values)})" * bool(values)
    if not 0 < len(values) <= MOST_KEYS and len(namesakes) > 1:
        apart = f" ({group[0].folder.name[:6]}…)"
    return replace(group[0], label=f"{group[0].name}{apart}").display_name


def _design(run: Run) -> str:
    return run.choices.get("target", run.name)


def _is_base(group: Sequence[Run]) -> bool:
    return group[0].role == "base"
