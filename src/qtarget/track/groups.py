"""Runs that differ in their seed alone, taken together: means with 95 % intervals, and paired differences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qtarget.errors import QTargetError
from qtarget.evaluate.resample import Interval, interval
from qtarget.track.runs import Run, differing_keys, finished

_OF_VERDICTS = re.compile(r"(?P<source>.+)/(accuracy|avg@\d+|(?P<score>score))")
HELDOUT = "test"
"""What metrics call a run's own held-out rows; benchmarks go by their names."""


@dataclass(frozen=True)
class Verdicts:
    """What of samples.jsonl a metric is the mean of: the answers to one source's problems, a field of each."""

    source: str
    field: str


def verdicts(metric: str) -> Verdicts | None:
    """None: the metric is no mean over answers."""
    found = _OF_VERDICTS.fullmatch(metric)
    if not found:
        return None
    source = "heldout" if found["source"] == HELDOUT else found["source"]
    return Verdicts(source, "score" if found["score"] else "correct")


@dataclass(frozen=True)
class Group:
    """Finished runs that agree in the keys grouped by; at most one a seed."""

    key: Mapping[str, str]
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        return ", ".join(self.key.values())

    def values(self, metric: str) -> list[float]:
        """The metric of every run, in the order of their seeds."""
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]


@dataclass(frozen=True)
class Row:
    """One line of the table: a group's mean with its interval, the range over seeds, and what sets it apart."""

    group: Group
    mean: float
    interval: Interval | None
    low_seed: float
    high_seed: float
    difference: Interval | None = None


def group_runs(runs: Sequence[Run], keys: Sequence[str]) -> list[Group]:
    """Finished runs by the values of `keys`, in order of first appearance. Raises QTargetError for an unknown key, and
    where two runs of a group share a seed: then something else tells them apart.
    """
    held: dict[tuple[str, ...], list[Run]] = {}
    for run in finished(runs):
        held.setdefault(tuple(_value(run, key) for key in keys), []).append(run)
    for members in held.values():
        _check_seeds(members)
    by_seed = {values: sorted(members, key=lambda run: run.seed or 0) for values, members in held.items()}
    return [Group(dict(zip(keys, values, strict=True)), tuple(members)) for values, members in by_seed.items()]


def rows(groups: Sequence[Group], metric: str, against: Mapping[str, str] | None = None) -> list[Row]:
    """A row per group that has the metric; `against` names the values of the keys that mark the baseline.

    A group is set against the one that has those values and agrees in all other keys.
    """
    known = sorted({name for group in groups for run in group.runs for name in run.metrics})
    if metric not in known:
        raise QTargetError(f"no finished run holds the metric {metric!r}; they hold {', '.join(known)}")
    return [_row(group, metric, _baseline(group, groups, against)) for group in groups if group.values(metric)]


def _row(group: Group, metric: str, baseline: Group | None) -> Row:
    values = group.values(metric)
    scores = _scores(group, metric)
    difference = _difference(group, baseline, metric) if baseline and baseline is not group else None
    mean = float(np.mean(values))
    return Row(group, mean, interval(scores) if scores is not None else None, min(values), max(values), difference)


def _baseline(group: Group, groups: Sequence[Group], against: Mapping[str, str] | None) -> Group | None:
    if not against:
        return None
    wanted = {**group.key, **against}
    return next((other for other in groups if other.key == wanted), None)


def _difference(group: Group, baseline: Group, metric: str) -> Interval | None:
    """Mean difference over the seeds and problems that both have."""
    ours, theirs = ({run.seed: run for run in side.runs} for side in (group, baseline))
    seeds = sorted(seed for seed in ours.keys() & theirs.keys() if seed is not None)
    judged = verdicts(metric)
    if judged is None or not seeds:
        return None
    pairs = [(_by_problem(ours[seed], judged), _by_problem(theirs[seed], judged)) for seed in seeds]
    shared = sorted(set.intersection(*(set(side) for pair in pairs for side in pair)))
    if not shared:
        return None
    return interval(np.array([[mine[row] - other[row] for row in shared] for mine, other in pairs]))


def _scores(group: Group, metric: str) -> np.ndarray | None:
    """[seeds, problems], or None where the metric is no mean over problems or the answers weren't kept."""
    judged = verdicts(metric)
    if judged is None:
        return None
    held = [_by_problem(run, judged) for run in group.runs]
    shared = sorted(set.intersection(*map(set, held)))
    return np.array([[scores[row] for row in shared] for scores in held]) if shared else None


def _by_problem(run: Run, judged: Verdicts) -> dict[int, float]:
    """Row of the source → the mean over its answers."""
    path = run.folder / "samples.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    held: dict[int, list[float]] = {}
    for sample in map(json.loads, lines):
        if sample.get("source", "heldout") == judged.source:
            held.setdefault(int(sample["row"]), []).append(float(sample[judged.field]))
    return {row: sum(scores) / len(scores) for row, scores in held.items()}


def _value(run: Run, key: str) -> str:
    """What a run has under a key: a group's option, a field of the record, or a key of its configuration."""
    placed = {group.rpartition("@")[2]: option for group, option in run.choices.items()}
    told = {"name": run.name, "role": run.role, "experiment": run.experiment, **run.config, **placed}
    if key not in told:
        raise QTargetError(
            f"{run.label} ({run.place}) has nothing under {key!r} to group by; name, role, experiment, a group such as "
            f"{', '.join(sorted(placed)) or 'target'}, or a dotted key of config.yaml, such as data.noise.rate"
        )
    return str(told[key])


def _check_seeds(members: Iterable[Run]) -> None:
    seen: dict[int | None, Run] = {}
    for run in members:
        if run.seed in seen:
            apart = ", ".join(differing_keys([seen[run.seed], run])[:5]) or "nothing that the record shows"
            raise QTargetError(
                f"{seen[run.seed].place} and {run.place} fall into one group and share the seed {run.seed}; they "
                f"differ in {apart}: add that to --group-by"
            )
        seen[run.seed] = run
