"""The table of `qtarget compare --group-by`: designs over several seeds, each beside a baseline."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from qtarget.errors import QTargetError
from qtarget.track.grouped import Grouped, in_order
from qtarget.track.groups import group_runs, rows
from qtarget.track.runs import Run


def grouped_rows(runs: Sequence[Run], keys: Sequence[str], metric: str, against: Sequence[str]) -> Grouped:
    """Rows of the runs grouped by `keys`; against: KEY=VALUE texts that name the baseline."""
    baseline = _baseline(keys, against)
    groups = group_runs(runs, keys)
    for key, value in baseline.items():
        values = sorted({group.key[key] for group in groups})
        if value not in values:
            raise QTargetError(f"--against {key}={value}: no group has that; {key} is {', '.join(values)}")
    return in_order(Grouped(tuple(rows(groups, metric, baseline)), metric, tuple(against)))


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
    writer.writerow([*found.keys, "seeds", found.metric, *ends, "min_seed", "max_seed", *difference])
    for row in found.rows:
        inside = [row.interval.low, row.interval.high] if row.interval else ["", ""]
        apart = [row.difference.mean, row.difference.low, row.difference.high] if row.difference else [""] * 3
        numbers = [row.mean, *inside, row.low_seed, row.high_seed, *apart]
        writer.writerow([*row.group.key.values(), len(row.group.values(found.metric)), *numbers])
    return text.getvalue()
