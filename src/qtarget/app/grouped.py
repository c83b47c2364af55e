"""The table of `qtarget compare --group-by`: designs over several seeds, each beside a baseline."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qtarget.errors import QTargetError
from qtarget.evaluate.scores import Score
from qtarget.track.groups import Row, group_runs, rows
from qtarget.track.runs import Run
from qtarget.track.selection import Choice, choose

MISSING = "–"


@dataclass(frozen=True)
class Grouping:
    """What is taken together, and what is said of it.

    keys: runs that agree in them are a group. metric: what is compared. against: KEY=VALUE texts that name the
    baseline. best_of: keys whose value each group chooses, by its validation metric `by`.
    """

    keys: Sequence[str] = ()
    metric: str = "test/accuracy"
    against: Sequence[str] = ()
    best_of: Sequence[str] = ()
    by: str = "val/accuracy"


def grouped_rows(runs: Sequence[Run], asked: Grouping) -> tuple[list[Row], tuple[str, ...]]:
    """Rows of the runs as grouped, and remarks on what was chosen."""
    baseline = _baseline(asked.keys, asked.against)
    if asked.best_of:
        choice = choose(runs, asked.keys, asked.best_of, asked.by, asked.metric)
    else:
        choice = Choice(tuple(group_runs(runs, asked.keys)))
    groups = choice.groups
    for key, value in baseline.items():
        values = sorted({group.key[key] for group in groups})
        if value not in values:
            raise QTargetError(f"--against {key}={value}: no group has that; {key} is {', '.join(values)}")
    return rows(groups, asked.metric, baseline), choice.remarks


def _baseline(keys: Sequence[str], against: Sequence[str]) -> dict[str, str]:
    told = dict(text.partition("=")[::2] for text in against)
    strange = sorted(set(told) - set(keys))
    if strange:
        raise QTargetError(f"--against names {', '.join(strange)}; it takes KEY=VALUE of --group-by {','.join(keys)}")
    return told


def cells(found: Sequence[Row], metric: str) -> list[list[str]]:
    """The table as text, its titles first; shares are in percent, and so are their differences."""
    keys = _keys(found[0])
    share = any(row.interval for row in found)
    scale, digits = (100, 1) if share else (1, 3)
    title = f"{metric} %" if share else metric
    compared = any(row.difference for row in found)
    titles = [*keys, "seeds", f"{title} [95 %]", "by seed", *["difference [95 %]"] * compared]
    return [titles, *(_cells(row, metric, scale, digits, compared) for row in found)]


def _cells(row: Row, metric: str, scale: float, digits: int, compared: bool) -> list[str]:
    def number(value: float, sign: str = "") -> str:
        return f"{scale * value:{sign}.{digits}f}"

    mean = _bracketed(row.interval, number) if row.interval else number(row.mean)
    span = f"{number(row.low_seed)} … {number(row.high_seed)}" if len(row.group.runs) > 1 else MISSING
    apart = _bracketed(row.difference, lambda value: number(value, "+")) if row.difference else MISSING
    return [*_values(row), row.group.seeds(metric), mean, span, *[apart] * compared]


def _keys(row: Row) -> list[str]:
    """What a row says of its group: what makes it one, and what was chosen for it."""
    return [*row.group.key, *row.group.chosen]


def _values(row: Row) -> list[str]:
    return [*row.group.key.values(), *row.group.chosen.values()]


def _bracketed(found: Score, number: Callable[[float], str]) -> str:
    return f"{number(found.mean)} [{number(found.low)}, {number(found.high)}]"


def note(found: Sequence[Row], asked: Grouping, remarks: Sequence[str] = ()) -> str:
    """What the intervals cover, why some are missing, and how the best were chosen."""
    against = asked.against
    told = "Intervals resample held-out problems and seeds together; with few seeds their share is coarse."
    if not any(row.interval for row in found):
        told = "No intervals: this metric has no value for each problem, or the answers were not kept."
    if any(row.difference for row in found):
        told += f" Differences to {' and '.join(against)} are paired by seed and problem."
    elif against:
        told += " No differences: they are taken problem by problem, and the groups share none."
    if asked.best_of:
        told += (
            f" {', '.join(asked.best_of)}: for each group the best by the mean of {asked.by} at the end of training."
        )
    return "\n".join([told, *remarks])


def as_csv(found: Sequence[Row], metric: str) -> str:
    """Unrounded numbers, one row a group."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = ("low", "high")
    difference = ("difference", "difference_low", "difference_high")
    writer.writerow([*_keys(found[0]), "seeds", metric, *ends, "min_seed", "max_seed", *difference])
    for row in found:
        inside = [row.interval.low, row.interval.high] if row.interval else ["", ""]
        apart = [row.difference.mean, row.difference.low, row.difference.high] if row.difference else [""] * 3
        numbers = [row.mean, *inside, row.low_seed, row.high_seed, *apart]
        writer.writerow([*_values(row), len(row.group.values(metric)), *numbers])
    return text.getvalue()
