"""The table of `qtarget compare --group-by`: designs over several seeds, each beside a baseline."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from qtarget.errors import QTargetError
from qtarget.track.grouped import Grouped, in_order
from qtarget.track.groups import group_runs, rows
from qtarget.track.runs import Run
from qtarget.track.selection import choose


@dataclass(frozen=True)
class Grouping:
    """What is taken together, and what is said of it.

    keys: runs that agree in them are a group. metric: what is compared. against: KEY=VALUE texts that name the
    baseline. best_of: keys whose value each group chooses, by its validation metric `by`.
    """

    keys: Sequence[str]
    metric: str = "test/accuracy"
    against: Sequence[str] = ()
    best_of: Sequence[str] = ()
    by: str = "val/accuracy"


def grouped_rows(runs: Sequence[Run], asked: Grouping) -> Grouped:
    """The runs as grouped, each group at its best where that was asked for."""
    baseline = _baseline(asked.keys, asked.against)
    choice = choose(runs, asked.keys, asked.best_of, asked.by, asked.metric) if asked.best_of else None
    groups = choice.groups if choice else group_runs(runs, asked.keys)
    for key, value in baseline.items():
        values = sorted({group.key[key] for group in groups})
        if value not in values:
            raise QTargetError(f"--against {key}={value}: no group has that; {key} is {', '.join(values)}")
    found = tuple(rows(groups, asked.metric, baseline))
    return in_order(Grouped(found, asked.metric, tuple(asked.against), choice.remarks if choice else ()))


def _baseline(keys: Sequence[str], against: Sequence[str]) -> dict[str, str]:
    told = dict(text.partition("=")[::2] for text in against)
    strange = sorted(set(told) - set(keys))
    if strange:
        raise QTargetError(f"--against names {', '.join(strange)}; it takes KEY=VALUE of --group-by {','.join(keys)}")
    return told


def as_csv(found: Grouped) -> str:
    """Unrounded numbers, one row a group."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = ("low", "high")
    difference = ("difference", "difference_low", "difference_high")
    writer.writerow([*found.rows[0].group.told, "seeds", found.metric, *ends, "min_seed", "max_seed", *difference])
    for row in found.rows:
        inside = [row.interval.low, row.interval.high] if row.interval else ["", ""]
        apart = [row.difference.mean, row.difference.low, row.difference.high] if row.difference else [""] * 3
        numbers = [row.mean, *inside, row.low_seed, row.high_seed, *apart]
        writer.writerow([*row.group.told.values(), len(row.group.values(found.metric)), *numbers])
    return text.getvalue()
