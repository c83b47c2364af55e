"""What finished runs say of a difference to come: pairs of designs on shared seeds and rows, and how these vary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from qtarget.compare.detectable import MeanSquares
from qtarget.compare.group_table import baseline_values, check_baseline
from qtarget.compare.groups import Group, group_runs, is_of_rows, kept_samples, on_shared_rows, row_values
from qtarget.compare.sweeps import usual_metric
from qtarget.errors import QTargetError
from qtarget.evaluate.ratios import Ratios
from qtarget.evaluate.row_losses import SIZES
from qtarget.evaluate.samples import HELDOUT, Sample, by_prompt, values_of
from qtarget.evaluate.scores import ROUNDING, Values
from qtarget.record.runs import Run, check_metric, finished, read_runs

USUAL_KEY = "target"
SMALLEST_STEP = 1 / 64
"""Values of rows that are closer than this are taken for continuous."""


@dataclass(frozen=True)
class Pair:
    """Two designs on the seeds and rows that both have. step: between neighbouring values of a row, or 0."""

    group: Group
    baseline: Group
    seeds: tuple[int, ...]
    rows: int
    left_out: int
    difference: float
    squares: MeanSquares
    step: float

    @property
    def label(self) -> str:
        return f"{self.group.label} − {self.baseline.label}"


@dataclass(frozen=True)
class Pilot:
    """pairs: those with as many seeds as any; passed: the others. runs: all that were read."""

    metric: str
    pairs: tuple[Pair, ...]
    passed: tuple[Pair, ...]
    runs: tuple[Run, ...]

    @property
    def squares(self) -> MeanSquares:
        """Means over the pairs. Pairs that share a design are correlated, at ½ where designs vary alike: all pairs of K
        designs have the degrees of freedom of K − 1.
        """
        first, *_ = each = [pair.squares for pair in self.pairs]
        shared = sum(_correlation(one, other) ** 2 for one in self.pairs for other in self.pairs)
        rows, of_seeds, of_rows, rest = (
            float(np.mean([getattr(one, name) for one in each])) for name in ("rows", "of_seeds", "of_rows", "rest")
        )
        return MeanSquares(first.seeds, rows, of_seeds, of_rows, rest, len(each) ** 2 / shared)

    @property
    def step(self) -> float:
        return min(pair.step for pair in self.pairs)


def _correlation(one: Pair, other: Pair) -> float:
    """Of their mean squares' square roots, where designs vary alike."""
    same = sum(mine is theirs for mine in (one.group, one.baseline) for theirs in (other.group, other.baseline))
    return (0.0, 0.5, 1.0)[same]


def read_pilot(
    paths: Sequence[str], metric: str | None = None, keys: Sequence[str] = (), against: Sequence[str] = ()
) -> Pilot:
    """The pairs of designs below `paths`, by their values row by row.

    metric: as it is logged, or without test/. keys: as of --group-by; by default `target`, of designs alone. against:
    KEY=VALUE texts of the baseline; without them every two designs are a pair. Raises QTargetError where no pair is
    left, with what the runs lack.
    """
    runs = read_runs(paths)
    usable = [run for run in finished(runs) if keys or run.role == "design"]
    if not usable:
        raise QTargetError(
            f"no finished run of a design below {', '.join(map(str, paths))}: a pilot takes at least two designs, "
            "better with three seeds each: qtarget train -m target=sft,dft seed=0,1,2 experiment_name=pilot"
        )
    metric = _named_metric(usable, metric)
    groups = group_runs(usable, keys or [USUAL_KEY])
    baseline = baseline_values(keys or [USUAL_KEY], against)
    check_baseline(groups, baseline)
    pairs = [_pair(one, other, metric) for one, other in _pairs(groups, baseline)]
    most = max(len(pair.seeds) for pair in pairs)
    used, passed = ([pair for pair in pairs if (len(pair.seeds) == most) is whole] for whole in (True, False))
    pilot = Pilot(metric, tuple(used), tuple(passed), tuple(runs))
    if max(pilot.squares.of_rows, pilot.squares.of_seeds) < ROUNDING**2:
        raise QTargetError(
            f"{pilot.pairs[0].label}: all rows differ by the same in {metric}, so nothing varies and no power can be "
            "reckoned. Take another --metric, such as nll, or a pilot of designs that answer differently"
        )
    return pilot


def _named_metric(runs: Sequence[Run], metric: str | None) -> str:
    """As it is logged. Raises QTargetError where no run has it, or none row by row."""
    full = metric or usual_metric(runs)
    full = full if "/" in full else f"test/{full}"
    by_row = sorted({name for run in runs for name in _metrics_by_row(run)})
    kept = ", ".join(by_row) or "none: evaluate the runs with this build"
    if full not in {name for run in runs for name in run.metrics}:
        check_metric(runs, full)
    if full not in by_row:
        raise QTargetError(f"{full} is not kept row by row, which its variance is taken from; by row there is {kept}")
    return full


def _metrics_by_row(run: Run) -> list[str]:
    """Those that a run has kept for each row or problem."""
    sources: dict[str, list[Sample]] = {}
    for sample in kept_samples(run):
        sources.setdefault("test" if sample.source == HELDOUT else sample.source, []).append(sample)
    judged = [f"{source}/{name}" for source, kept in sources.items() for name in values_of(by_prompt(kept))]
    return [*judged, *(f"test/{name}" for name in SIZES if row_values(run, f"test/{name}"))]


def _pairs(groups: Sequence[Group], baseline: dict[str, str]) -> list[tuple[Group, Group]]:
    """Each group with its baseline; without one every two of a single key's."""
    if len(groups) < 2:
        (only,) = groups
        key, value = next(iter(only.key.items()))
        raise QTargetError(
            f"the pilot holds one design, {key}={value}: what varies is the difference of two. Train another one on "
            f"the same seeds and rows, such as qtarget train -m {key}={value},dft seed=0,1,2"
        )
    if not baseline and len(groups[0].key) > 1:
        raise QTargetError(
            f"--group-by {','.join(groups[0].key)}: say which groups are compared, as with qtarget compare: "
            f"--against {next(f'{key}={value}' for key, value in groups[0].key.items())}"
        )
    if not baseline:
        return [(other, one) for one, other in combinations(groups, 2)]
    marked = [(group, {**group.key, **baseline}) for group in groups]
    pairs = [(group, other) for group, key in marked for other in groups if other.key == key and other is not group]
    if not pairs:
        raise QTargetError(f"no group agrees with {', '.join(groups[0].key)} of a baseline in its other keys")
    return pairs


def _pair(group: Group, baseline: Group, metric: str) -> Pair:
    ours, theirs = ({run.seed: run for run in side.runs if run.seed is not None} for side in (group, baseline))
    seeds = tuple(sorted(ours.keys() & theirs.keys()))
    if not seeds:
        raise QTargetError(
            f"{group.label} has the seeds {_listed(ours)}, {baseline.label} {_listed(theirs)}: none in common, and "
            "differences are paired by seed. Train both with the same seeds"
        )
    kept = [row_values(side[seed], metric) for side in (ours, theirs) for seed in seeds]
    for run, values in zip([side[seed] for side in (ours, theirs) for seed in seeds], kept, strict=True):
        if not values:
            raise QTargetError(
                f"{run.label} ({run.short_path}) keeps no finite {metric} row by row, as a run that diverged or that "
                "another build evaluated: leave its folder out, or evaluate it again"
            )
    both, most = on_shared_rows(kept), max(map(len, kept))
    if both is None or both.totals.shape[1] < 2:
        raise QTargetError(
            f"the runs of {group.label} and {baseline.label} share {0 if both is None else 1} rows of up to {most}: "
            "differences are paired row by row. Evaluate all on the same held-out rows (data.source.heldout, or the "
            "same data.seed and data.heldout_rows)"
        )
    mine, others = both[: len(seeds)], both[len(seeds) :]
    squares, difference = _squares(mine, others, is_of_rows(metric))
    rows = both.totals.shape[1]
    step = 0.0 if is_of_rows(metric) else _step(both.totals)
    return Pair(group, baseline, seeds, rows, most - rows, difference, squares, step)


def _squares(ours: Ratios, theirs: Ratios, of_ratios: bool) -> tuple[MeanSquares, float]:
    """As the intervals of compare take them; both [S, R]."""
    change = ours.totals - theirs.totals
    each = ours.each - theirs.each if of_ratios else change.mean(1)
    pulls = ours.pulls - theirs.pulls if of_ratios else change - change.mean(1, keepdims=True)
    seeds, rows = pulls.shape
    rest = ((pulls - pulls.mean(0)) ** 2).sum() / max(1, (seeds - 1) * (rows - 1))
    of_seeds = each.var(ddof=1) if seeds > 1 else 0.0
    return MeanSquares(seeds, rows, float(of_seeds), float(pulls.mean(0).var(ddof=1)), float(rest)), float(each.mean())


def _step(values: Values) -> float:
    apart = np.diff(np.unique(values))
    apart = apart[apart > ROUNDING]
    return float(apart.min()) if len(apart) and apart.min() >= SMALLEST_STEP else 0.0


def _listed(seeds: dict[int, Run]) -> str:
    return ", ".join(map(str, sorted(seeds))) or "none"
