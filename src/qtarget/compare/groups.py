"""Runs that differ in their seed alone, taken together: means with 95 % intervals, paired differences, answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from qtarget.errors import QTargetError
from qtarget.evaluate.ratios import Ratios, ratio_difference, ratio_over_seeds
from qtarget.evaluate.row_losses import FILE as ROWS_FILE
from qtarget.evaluate.row_losses import SIZES, by_row, read_row_losses
from qtarget.evaluate.samples import FILE, HELDOUT, Sample, by_problem, read_samples
from qtarget.evaluate.scores import PairedDifference, Score, difference_over_seeds, holm, over_seeds
from qtarget.record.runs import Run, check_metric, differing_but_seeds, finished

MOST_PROBLEMS = 12
"""Problems on a page."""
MOST_CHARACTERS = 600
"""Characters of a text on a page."""

Key = tuple[str, str]


@dataclass(frozen=True)
class ComparedProblem:
    """answers: (run, its first answer, whether that is right) for the runs that were asked."""

    prompt: str
    expected: str
    answers: tuple[tuple[Run, str, bool], ...]

    @property
    def solved(self) -> int:
        return sum(correct for _, _, correct in self.answers)


def problems(runs: Sequence[Run], shown: int = MOST_PROBLEMS) -> list[ComparedProblem]:
    """At most `shown`; the closer to half of the runs solve a problem, the earlier it stands."""
    answered = [(run, _first_answers(run)) for run in runs]
    keys = dict.fromkeys(key for _, answers in answered for key in answers)
    compared = [_problem([(run, answers[key]) for run, answers in answered if key in answers]) for key in keys]
    return sorted(compared, key=lambda problem: abs(2 * problem.solved - len(problem.answers)))[:shown]


def kept_samples(run: Run) -> list[Sample]:
    """The judged answers of a run; none where it asked nothing, or another version wrote them."""
    path = run.folder / FILE
    try:
        return read_samples(path) if path.is_file() else []
    except QTargetError:
        return []


def _problem(answered: Sequence[tuple[Run, Sample]]) -> ComparedProblem:
    """answered: each run with its first sample of one problem."""
    _, first = answered[0]
    answers = tuple((run, _short(sample.answer), sample.correct) for run, sample in answered)
    return ComparedProblem(_short(first.prompt), _short(first.expected), answers)


def _first_answers(run: Run) -> dict[Key, Sample]:
    """(source, prompt) → the first sample."""
    first: dict[Key, Sample] = {}
    for sample in kept_samples(run):
        first.setdefault((sample.source, sample.prompt), sample)
    return first


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"


HELDOUT_METRICS = "test"
"""What metrics of a run's own held-out rows begin with; those of a benchmark begin with its name."""

Measured = Mapping[Any, tuple[float, float]]
"""`Problem` or `Row` → (total, size): the metric is Σ totals / Σ sizes, each size 1 where all count the same."""


@dataclass(frozen=True)
class Group:
    """Finished runs that agree in the keys grouped by; at most one a seed. chosen: what else they agree in, because
    it was the best of what was tried.
    """

    key: Mapping[str, str]
    runs: tuple[Run, ...]
    chosen: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return ", ".join(self.key.values())

    @property
    def key_values(self) -> dict[str, str]:
        """All that the group agrees in."""
        return {**self.key, **self.chosen}

    def seeds(self, metric: str) -> str:
        """How many runs; and where some of them lack the metric, as one that diverged does, how many have it."""
        have, all_of_them = len(self.values(metric)), len(self.runs)
        return str(have) if have == all_of_them else f"{have} of {all_of_them}"

    def values(self, metric: str) -> list[float]:
        """The metric of every run, in the order of their seeds."""
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]


@dataclass(frozen=True)
class GroupRow:
    """One line of the table: a group's mean with its interval, the range over seeds, and what sets it apart.

    p_value: of no difference; p_holm: the same, corrected for all differences of the table.
    """

    group: Group
    mean: float
    interval: Score | None
    low_seed: float
    high_seed: float
    difference: Score | None = None
    p_value: float | None = None
    p_holm: float | None = None

    @property
    def center(self) -> float:
        """The value that is shown: the interval's mean is over what all seeds have measured."""
        return self.interval.mean if self.interval else self.mean


def group_runs(runs: Sequence[Run], keys: Sequence[str]) -> list[Group]:
    """Finished runs by the values of `keys`, in order of first appearance.

    Raises QTargetError for an unknown key, and where two runs of a group share a seed: something else tells them apart.
    """
    by_values: dict[tuple[str, ...], list[Run]] = {}
    for run in finished(runs):
        by_values.setdefault(tuple(_value(run, key) for key in keys), []).append(run)
    for members in by_values.values():
        _check_seeds(members)
        members.sort(key=lambda run: run.seed or 0)
    return [Group(dict(zip(keys, values, strict=True)), tuple(members)) for values, members in by_values.items()]


def rows(groups: Sequence[Group], metric: str, against: Mapping[str, str] | None = None) -> list[GroupRow]:
    """A row per group that has the metric; `against` names the values of the keys that mark the baseline.

    A group is set against the one that has those values and agrees in all other keys.
    """
    check_metric([run for group in groups for run in group.runs], metric)
    shown = [group for group in groups if group.values(metric)]
    measured = {run.folder: row_values(run, metric) for group in groups for run in group.runs}
    return _corrected([_row(group, metric, measured, _baseline(group, groups, against)) for group in shown])


def _corrected(made: Sequence[GroupRow]) -> list[GroupRow]:
    p_values = [row.p_value for row in made if row.p_value is not None]
    corrected = iter(holm(p_values))
    return [row if row.p_value is None else replace(row, p_holm=next(corrected)) for row in made]


def is_of_rows(metric: str) -> bool:
    """Whether a metric is a sum over held-out rows by another, in nats or bits; else its values are shares."""
    source, _, name = metric.rpartition("/")
    return source == HELDOUT_METRICS and name in SIZES


def _row(group: Group, metric: str, measured: Mapping[Path, Measured], baseline: Group | None) -> GroupRow:
    values = group.values(metric)
    shared = on_shared_rows([measured[run.folder] for run in group.runs])
    difference = _difference(group, metric, baseline, measured) if baseline and baseline is not group else None
    interval = _interval(metric, shared) if shared and len(values) == len(group.runs) else None
    apart = (difference.score, difference.p_value) if difference else (None, None)
    return GroupRow(group, float(np.mean(values)), interval, min(values), max(values), *apart)


def _interval(metric: str, shared: Ratios) -> Score | None:
    return ratio_over_seeds(shared) if is_of_rows(metric) else over_seeds(shared.totals)


def _baseline(group: Group, groups: Sequence[Group], against: Mapping[str, str] | None) -> Group | None:
    if not against:
        return None
    wanted = {**group.key, **against}
    return next((other for other in groups if other.key == wanted), None)


def _difference(
    group: Group, metric: str, baseline: Group, measured: Mapping[Path, Measured]
) -> PairedDifference | None:
    """Mean difference over the seeds and problems, or rows, that both have; None where they share none."""
    ours, theirs = ({run.seed: run for run in side.runs} for side in (group, baseline))
    seeds = sorted(seed for seed in ours.keys() & theirs.keys() if seed is not None)
    both = on_shared_rows([measured[side[seed].folder] for side in (ours, theirs) for seed in seeds])
    if both is None:
        return None
    mine, others = both[: len(seeds)], both[len(seeds) :]
    return ratio_difference(mine, others) if is_of_rows(metric) else difference_over_seeds(mine.totals - others.totals)


def on_shared_rows(runs: Sequence[Measured]) -> Ratios | None:
    """What runs measured of the problems, or rows, that all have; None where there is none."""
    shared = sorted(set.intersection(*map(set, runs))) if runs else []
    values = np.array([[measured[key] for key in shared] for measured in runs])
    return Ratios(values[..., 0], values[..., 1]) if shared else None


def row_values(run: Run, metric: str) -> Measured:
    """A metric of a run by problem or row; none where it keeps none, or one that is not finite."""
    source, _, name = metric.rpartition("/")
    if is_of_rows(metric):
        return _of_rows(run.folder, name)
    wanted = HELDOUT if source == HELDOUT_METRICS else source
    samples = [sample for sample in kept_samples(run) if sample.source == wanted]
    try:
        return {problem: (value, 1.0) for problem, value in by_problem(samples, name).items()} if samples else {}
    except QTargetError:
        return {}


def kept_interval(folder: Path, metric: str) -> Score | None:
    """Of a run by itself, over the held-out rows whose nll it has kept; None of a metric that is not of rows."""
    path = folder / ROWS_FILE
    if not is_of_rows(metric) or not path.is_file():
        return None
    return _interval_of_file(folder, metric, path.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _interval_of_file(folder: Path, metric: str, _written: int) -> Score | None:
    """A bootstrap takes a fifth of a second, and a page that is watched asks for it again and again."""
    rows = on_shared_rows([_of_rows(folder, metric.rpartition("/")[2])])
    return ratio_over_seeds(rows) if rows else None


def _of_rows(folder: Path, name: str) -> Measured:
    """Of the held-out rows that have something of what the metric is divided by; none where one is not finite."""
    path = folder / ROWS_FILE
    try:
        rows = by_row(read_row_losses(path), name) if path.is_file() else {}
    except QTargetError:
        return {}
    kept = {row: value for row, value in rows.items() if value[1]}
    return kept if np.isfinite([total for total, _ in kept.values()]).all() else {}


def _value(run: Run, key: str) -> str:
    """What a run has under a key: a group's option, a field of the record, or a key of its configuration."""
    placed = {group.rpartition("@")[2]: option for group, option in run.choices.items()}
    key_values = {**run.config, "name": run.name, "role": run.role, "experiment": run.experiment, **placed}
    if key not in key_values:
        raise QTargetError(
            f"{run.label} ({run.short_path}) has nothing under {key!r} to group by; name, role, experiment, a group "
            f"such as {', '.join(sorted(placed)) or 'target'}, or a dotted key of config.yaml, such as data.noise.rate"
        )
    return str(key_values[key])


def _check_seeds(members: Iterable[Run]) -> None:
    seen: dict[int | None, Run] = {}
    for run in members:
        if run.seed in seen:
            apart = ", ".join(differing_but_seeds([seen[run.seed], run])[:5]) or "nothing that the record shows"
            raise QTargetError(
                f"{seen[run.seed].short_path} and {run.short_path} fall into one group and share the seed {run.seed}; "
                f"they differ in {apart}: add that to --group-by"
            )
        seen[run.seed] = run
