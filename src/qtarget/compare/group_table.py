"""The table of `qtarget compare --group-by`: designs over seeds beside a baseline, and its intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from qtarget.compare.columns import MISSING, PER_BYTE, differing_tokenizers, numeric
from qtarget.compare.decimals import (
    bracketed,
    decimals_of_intervals,
    decimals_of_spans,
    decimals_of_values,
    fixed,
)
from qtarget.compare.formats import Table
from qtarget.compare.groups import Group, GroupRow, group_runs, is_of_rows, rows
from qtarget.compare.selection import choose
from qtarget.errors import QTargetError
from qtarget.evaluate.scores import Score
from qtarget.measures import direction
from qtarget.record.runs import Run, differing_but_seeds


@dataclass(frozen=True)
class Grouped:
    """Rows of one metric; against: the KEY=VALUE texts that name the baseline; remarks: how the groups were chosen."""

    rows: tuple[GroupRow, ...]
    metric: str
    against: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def keys(self) -> list[str]:
        return list(self.rows[0].group.key)

    @property
    def number_keys(self) -> list[str]:
        """The keys under which groups differ in a number."""
        return [key for key in self.keys if numeric([row.group.key[key] for row in self.rows])]

    def design(self, row: GroupRow) -> str:
        """What groups have in common that differ in numbers alone."""
        return label_without(row.group, self.number_keys)

    @property
    def compared(self) -> bool:
        return self.comparisons > 0

    @property
    def comparisons(self) -> int:
        return sum(row.difference is not None for row in self.rows)

    @property
    def unit(self) -> str:
        """What intervals resample beside seeds, and what differences are paired by."""
        return "row" if is_of_rows(self.metric) else "problem"

    @property
    def per_byte(self) -> bool:
        """Whether bits per byte stand beside the nll, because it is of unlike tokens."""
        return self.metric == "test/nll" and differing_tokenizers(run for row in self.rows for run in row.group.runs)

    @property
    def has_intervals(self) -> bool:
        return any(row.interval for row in self.rows)

    @property
    def is_percent(self) -> bool:
        """Shares are in percent, and so are their differences."""
        return (self.has_intervals and not is_of_rows(self.metric)) or self.metric.endswith("/accuracy")

    @property
    def scale(self) -> float:
        return 100.0 if self.is_percent else 1.0

    @property
    def least_decimals(self) -> int:
        return 1 if self.is_percent else 3

    @property
    def decimals(self) -> int:
        """Of the means and their intervals."""
        scores = [self._scaled(row.interval) for row in self.rows if row.interval]
        if scores:
            return decimals_of_intervals(scores, self.least_decimals)
        return decimals_of_values([self.scale * row.mean for row in self.rows], self.least_decimals)

    @property
    def difference_decimals(self) -> int:
        scores = [self._scaled(row.difference) for row in self.rows if row.difference]
        return decimals_of_intervals(scores, self.least_decimals)

    @property
    def seed_decimals(self) -> int:
        """Of the smallest and the largest seed: at least those of the means."""
        spans = [(self.scale * row.low_seed, self.scale * row.high_seed) for row in self.rows]
        return decimals_of_spans(spans, self.decimals)

    @property
    def title(self) -> str:
        return f"{self.metric} %" if self.is_percent else self.metric

    @property
    def titles(self) -> list[str]:
        mean = f"{self.title} [95 %]" if self.has_intervals else self.title
        beside = ["bits/byte"] * self.per_byte
        apart = ["difference [95 %]", "p (Holm)" if self.comparisons > 1 else "p"] * self.compared
        return [*self.rows[0].group.key_values, "seeds", mean, *beside, "by seed", *apart]

    @property
    def numeric(self) -> list[bool]:
        return [title not in self.rows[0].group.key_values for title in self.titles]

    @property
    def table(self) -> Table:
        return Table(self.titles, [self._cells(row) for row in self.rows], self.numeric, self.note)

    @property
    def unrounded(self) -> Table:
        """Every number for itself, with all its digits."""
        ends = ("low", "high")
        difference = ("difference", "difference_low", "difference_high", "p_value", "p_holm")
        numbers = (self.metric, *ends, "min_seed", "max_seed", *difference)
        return Table([*self.rows[0].group.key_values, "seeds", *numbers], [self._numbers(row) for row in self.rows])

    @property
    def note(self) -> str:
        """What the intervals cover, why some are missing, and how the groups were chosen."""
        unit = self.unit
        text = "Intervals resample held-out problems and seeds together; with few seeds their share is coarse."
        if is_of_rows(self.metric):
            text = "Intervals are over held-out rows, each with all of its tokens, and over seeds: two make them wide."
        if not self.has_intervals:
            text = f"No intervals: this metric has no value for each {unit}, or they were not kept."
        elif not all(row.interval for row in self.rows):
            text += f" A group without one lacks the {unit}s of some seeds."
        if self.compared:
            text += f" Differences to {' and '.join(self.against)} are paired by seed and {unit}. {self._p_values}"
        elif self.against:
            text += f" No differences: they are taken {unit} by {unit}, and the groups share none."
        if self.per_byte:
            text += f" Tokenizers differ, and nll is per token of each: --metric {PER_BYTE} compares them."
        return "\n".join([text, *self.remarks])

    @property
    def _p_values(self) -> str:
        """What they are of, and that they are corrected."""
        text = f"p: of no difference between these runs, by sign flips of {self.unit}s; the luck of seeds is in the"
        holm = f" Corrected for {self.comparisons} comparisons (Holm)." if self.comparisons > 1 else ""
        return f"{text} intervals alone.{holm}"

    def _cells(self, row: GroupRow) -> list[str]:
        mean = fixed(self.scale * row.mean, self.decimals)
        if row.interval:
            mean = bracketed(self._scaled(row.interval), self.decimals)
        apart = [MISSING, MISSING]
        if row.difference:
            difference = bracketed(self._scaled(row.difference), self.difference_decimals, "+")
            apart = [difference, f"{row.p_holm:.2g}"]
        bits = row.group.values(PER_BYTE)
        beside = [f"{sum(bits) / len(bits):.3f}" if bits else MISSING] * self.per_byte
        keys = row.group.key_values.values()
        return [*keys, row.group.seeds(self.metric), mean, *beside, self._by_seed(row), *apart * self.compared]

    def _by_seed(self, row: GroupRow) -> str:
        if len(row.group.runs) < 2:
            return MISSING
        low, high = (fixed(self.scale * end, self.seed_decimals) for end in (row.low_seed, row.high_seed))
        return f"{low} … {high}"

    def _numbers(self, row: GroupRow) -> list[str]:
        inside = [row.interval.low, row.interval.high] if row.interval else ["", ""]
        score = row.difference
        apart = [score.mean, score.low, score.high, row.p_value, row.p_holm] if score else [""] * 5
        count = len(row.group.values(self.metric))
        return list(
            map(str, [*row.group.key_values.values(), count, row.mean, *inside, row.low_seed, row.high_seed, *apart])
        )

    def _scaled(self, score: Score) -> Score:
        return Score(*(self.scale * value for value in (score.mean, score.low, score.high)))


def label_without(group: Group, without: Sequence[str]) -> str:
    """A group's values of all keys but `without`."""
    return ", ".join(value for key, value in group.key.items() if key not in without) or "all runs"


def best_first(grouped: Grouped) -> Grouped:
    """Rows from the better end of the metric to the worse; as they come where neither end is better."""
    sign = {"min": 1, "max": -1, None: 0}[direction(grouped.metric)]
    return replace(grouped, rows=tuple(sorted(grouped.rows, key=lambda row: sign * row.center)))


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


def grouped_rows(runs: Sequence[Run], grouping: Grouping) -> Grouped:
    """The runs as grouped, each group at its best where `best_of` is set."""
    baseline = baseline_values(grouping.keys, grouping.against)
    choice = choose(runs, grouping.keys, grouping.best_of, grouping.by, grouping.metric) if grouping.best_of else None
    groups = choice.groups if choice else group_runs(runs, grouping.keys)
    check_baseline(groups, baseline)
    table_rows = tuple(rows(groups, grouping.metric, baseline))
    remarks = (*(choice.remarks if choice else ()), *_mixed(groups))
    return best_first(Grouped(table_rows, grouping.metric, tuple(grouping.against), remarks))


def _mixed(groups: Sequence[Group]) -> Iterator[str]:
    """A remark for each group whose runs are not seeds of one configuration."""
    for group in groups:
        if keys := differing_but_seeds(group.runs):
            yield (
                f"The runs of {group.label} differ in more than their seed: {', '.join(keys[:3])}. Their mean is of "
                "unlike runs; name that in --group-by."
            )


def check_baseline(groups: Sequence[Group], baseline: Mapping[str, str]) -> None:
    """Raises QTargetError where no group has one of its values."""
    for key, value in baseline.items():
        values = sorted({group.key[key] for group in groups})
        if value not in values:
            raise QTargetError(f"--against {key}={value}: no group has that; {key} is {', '.join(values)}")


def baseline_values(keys: Sequence[str], against: Sequence[str]) -> dict[str, str]:
    """Of KEY=VALUE texts. Raises QTargetError for a key that is not grouped by."""
    chosen = dict(text.partition("=")[::2] for text in against)
    strange = sorted(set(chosen) - set(keys))
    if strange:
        raise QTargetError(f"--against names {', '.join(strange)}; it takes KEY=VALUE of --group-by {','.join(keys)}")
    return chosen
