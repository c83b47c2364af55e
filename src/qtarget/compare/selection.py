"""Each group at its best: of values that were tried for all, such as learning rates, the one validation prefers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose

import numpy as np

from qtarget.compare.columns import number, numeric
from qtarget.compare.groups import Group, group_runs
from qtarget.errors import QTargetError
from qtarget.measures import validation_direction
from qtarget.record.runs import Run, finished, is_seed

TUNED = ("optim", "target", "trainer", "model")
"""What keys begin with whose best value is chosen; those of data are what designs are compared at."""


def choice_hint(points: Sequence[Mapping[str, str]], test_on: str, eval_every: int) -> str | None:
    """What --best-of would lack of jobs that differ in a number of the training; None where it lacks nothing.

    points: key → value of each job. test_on, eval_every: of eval and trainer.
    """
    keys = [key for key in dict.fromkeys(key for point in points for key in point) if key.partition(".")[0] in TUNED]
    tuned = [key for key in keys if not is_seed(key) and numeric([point.get(key, "") for point in points])]
    missing = ["eval.test_on=rest"] * (test_on == "all") + ["trainer.eval_every above 0"] * (eval_every == 0)
    if not tuned or not missing:
        return None
    return f"{', '.join(tuned)}: to have compare --best-of choose by validation afterwards, add {' and '.join(missing)}"


@dataclass(frozen=True)
class Selection:
    """Of each group the runs of one candidate; remarks: how it was chosen, what was passed over, what to try."""

    groups: tuple[Group, ...]
    remarks: tuple[str, ...]


def usual_validation(runs: Sequence[Run]) -> str:
    """What is chosen by: val/accuracy, or val/nll where nothing was answered during training."""
    measured = {name for run in runs for point in run.history for name in point}
    return next((name for name in ("val/accuracy", "val/nll") if name in measured), "val/accuracy")


def choose(runs: Sequence[Run], keys: Sequence[str], swept: Sequence[str], by: str, metric: str) -> Selection:
    """Groups by `keys`; in each, of the candidates that differ in `swept`, the one with the best mean over seeds of
    `by` at the end of training.

    A candidate is all seeds of a value, or none: one that lacks a seed that another has, or its number, is passed over.
    Ties go to the value that comes first, numbers rising. metric: what will be compared. Raises QTargetError where `by`
    is no validation metric with a better end, where its rows are among those of `metric`, and where no candidate is
    left.
    """
    _check(runs, keys, swept, by, metric)
    by_key: dict[tuple[str, ...], list[Group]] = {}
    for candidate in group_runs(runs, [*keys, *swept]):
        by_key.setdefault(tuple(candidate.key[key] for key in keys), []).append(candidate)
    chosen = [_best(candidates, keys, swept, by) for candidates in by_key.values()]
    how = f"{', '.join(swept)}: for each group the best by the mean of {by} at the end of training."
    return Selection(
        tuple(group for group, _ in chosen), (how, *(remark for _, remarks in chosen for remark in remarks))
    )


def _check(runs: Sequence[Run], keys: Sequence[str], swept: Sequence[str], by: str, metric: str) -> None:
    if twice := [key for key in swept if key in keys]:
        raise QTargetError(f"{', '.join(twice)} can't both tell groups apart and be chosen: leave it out of --group-by")
    if validation_direction(by) is None:
        raise QTargetError(
            f"--by {by}: {', '.join(swept)} is chosen by a validation metric with a better end, such as val/accuracy, "
            "val/score, val/avg@8 or val/nll; what is compared must not choose"
        )
    shared = [run for run in finished(runs) if run.config.get("eval.test_on", "all") == "all"]
    if shared:
        raise QTargetError(
            f"{shared[0].label} ({shared[0].short_path}) may test on its validation rows too, so {metric} is no fair "
            f"judge of what {by} chose: train with eval.test_on=rest, which keeps test rows and benchmarks apart from "
            "them"
        )


def _best(candidates: Sequence[Group], keys: Sequence[str], swept: Sequence[str], by: str) -> tuple[Group, list[str]]:
    ranked = sorted(candidates, key=lambda group: _rising(group, swept))
    seeds = {run.seed for group in ranked for run in group.runs}
    whole = [group for group in ranked if _complete(group, seeds, by)]
    if not whole:
        raise QTargetError(
            f"{_named(ranked[0], keys)}: of no {', '.join(swept)} have all of the {len(seeds)} seeds a last {by}. Runs "
            "need a validation at their last step (trainer.eval_every above 0), and all seeds of a value to be finished"
        )
    sign = 1 if validation_direction(by) == "max" else -1
    best = max(whole, key=lambda group: sign * validated(group, by))
    remarks = [f"{_named(group, keys)}: {_named(group, swept)} passed over" for group in ranked if group not in whole]
    remarks += _tie(best, whole, keys, swept, by)
    if best in (ranked[0], ranked[-1]) and len(swept) == 1 and numeric([group.key[swept[0]] for group in ranked]):
        remarks.append(f"{_named(best, keys)}: {_named(best, swept)} is the end of what was tried, try beyond")
    return Group({key: best.key[key] for key in keys}, best.runs, {key: best.key[key] for key in swept}), remarks


def _tie(best: Group, whole: Sequence[Group], keys: Sequence[str], swept: Sequence[str], by: str) -> list[str]:
    """What else validation would have taken as gladly."""
    value = validated(best, by)
    equals = [group for group in whole if group is not best and isclose(validated(group, by), value)]
    if not equals:
        return []
    others = " and ".join(_named(group, swept) for group in equals)
    return [f"{_named(best, keys)}: {_named(best, swept)} ties with {others} at {by} {value:.4g}; the first is shown"]


def _complete(group: Group, seeds: set[int | None], by: str) -> bool:
    return {run.seed for run in group.runs} == seeds and all(_last(run, by) is not None for run in group.runs)


def validated(group: Group, by: str) -> float:
    """The mean over seeds of a validation metric at the end of training."""
    return float(np.mean([_last(run, by) for run in group.runs]))


def _last(run: Run, by: str) -> float | None:
    """The metric at the last step of training, the weights that are tested; None where it wasn't measured there."""
    value = run.history[-1].get(by) if run.history else None
    return value if value is not None and np.isfinite(value) else None


def _named(group: Group, keys: Sequence[str]) -> str:
    return ", ".join(f"{key}={group.key[key]}" for key in keys)


def _rising(group: Group, swept: Sequence[str]) -> list[tuple[float, str]]:
    return [(number(group.key[key]) or 0.0, group.key[key]) for key in swept]
