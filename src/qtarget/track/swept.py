"""Runs that differ in their configuration's numbers: what was swept, and the metric over it.

`sweep.json` beside the runs says what was swept and what each point's value is; without one, the keys are those whose
numbers differ between the runs, and the value is a metric of their closing evaluation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtarget.errors import QTargetError
from qtarget.track.numbers import number, numeric
from qtarget.track.runs import Run, check_held, differing_keys, finished, without_places
from qtarget.track.sweep import better_end

BOOK = "sweep.json"
"""What `qtarget sweep` writes beside its runs."""
MOST_KEYS = 6
"""Plots of one key each; those with the most values come first."""
METRICS = ("test/accuracy", "test/nll")
"""What runs without a sweep are compared by: the first that they hold."""


@dataclass(frozen=True)
class Point:
    """A run, its values of the keys swept, and what it reached."""

    run: Run
    values: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Swept:
    """numbers, words: keys that differ between points, numeric ones and others, those with the most values first."""

    metric: str
    lower_is_better: bool
    points: tuple[Point, ...]
    numbers: tuple[str, ...]
    words: tuple[str, ...]

    def column(self, key: str) -> list[str]:
        """The values of a key, of those points that have it."""
        return [point.values[key] for point in self.points if key in point.values]


def read_swept(runs: Sequence[Run], metric: str | None = None) -> Swept | None:
    """What was swept by `runs`; None where they differ in no number. metric: in place of the sweep's own.

    Raises QTargetError where no run holds a metric that was asked for.
    """
    book = _book(runs)
    if book and book.get("metric") and metric in (None, book["metric"]["name"]):
        told = book["metric"]
        return _swept(told["name"], not told["maximize"], _told_points(runs, book))
    name = metric or usual_metric(runs)
    if metric:
        check_held(runs, metric)
    points = [Point(run, _differing(run, runs, book), run.metrics[name]) for run in _designs(runs) if _has(run, name)]
    return _swept(name, better_end(name) == "min", points)


def usual_metric(runs: Sequence[Run]) -> str:
    """The first of METRICS that a finished run holds."""
    held = {name for run in finished(runs) for name in run.metrics}
    return next((name for name in METRICS if name in held), METRICS[0])


def _book(runs: Sequence[Run]) -> dict[str, Any]:
    """The sweep that all runs belong to, or nothing. Raises QTargetError for a file that is something else."""
    folders = {run.folder.parent for run in runs}
    path = folders.pop() / BOOK
    if folders or not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise QTargetError(f"{path} is not what qtarget sweep writes ({error}): move it elsewhere") from error


def _told_points(runs: Sequence[Run], book: Mapping[str, Any]) -> list[Point]:
    """The points of a sweep that have a value, those stopped early too."""
    told = {Path(point["folder"]).name: point for point in book["points"]}
    known = [(run, told[run.folder.name]) for run in runs if run.folder.name in told]
    return [
        Point(run, _texts(point["values"]), float(point["value"]))
        for run, point in known
        if point["value"] is not None and math.isfinite(point["value"])
    ]


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: without_places(str(value)) for key, value in values.items()}


def _designs(runs: Sequence[Run]) -> list[Run]:
    """Finished runs of a design: starts, teachers and controls differ from them on purpose."""
    return [run for run in finished(runs) if run.role == "design"]


def _has(run: Run, metric: str) -> bool:
    return math.isfinite(run.metrics.get(metric, math.nan))


def _differing(run: Run, runs: Sequence[Run], book: Mapping[str, Any]) -> dict[str, str]:
    """What the sweep gave the run; without one, its options, and the numbers of its configuration that differ."""
    told = {Path(point["folder"]).name: point["values"] for point in book.get("points", ())}
    if told:
        return _texts(told.get(run.folder.name, {}))
    config = {key: run.config[key] for key in differing_keys(_designs(runs)) if key in run.config}
    return {key: value for key, value in config.items() if number(value) is not None} | dict(run.choices)


def _swept(metric: str, lower_is_better: bool, points: Sequence[Point]) -> Swept | None:
    found = Swept(metric, lower_is_better, tuple(points), (), ())
    keys = _varied(found)
    numbers = tuple(key for key in keys if numeric(found.column(key)))
    words = tuple(key for key in keys if key not in numbers)
    return Swept(metric, lower_is_better, found.points, numbers[:MOST_KEYS], words) if numbers else None


def _varied(found: Swept) -> list[str]:
    """Keys with several values, but for seeds; of keys that change together, the first."""
    keys = sorted({key for point in found.points for key in point.values if key.rpartition(".")[2] != "seed"})
    alike: dict[tuple[int, ...], str] = {}
    for key in keys:
        alike.setdefault(_partition([point.values.get(key, "") for point in found.points]), key)
    several = [key for key in alike.values() if len(set(found.column(key))) > 1]
    return sorted(several, key=lambda key: (-len(set(found.column(key))), key))


def _partition(values: Sequence[str]) -> tuple[int, ...]:
    """The same for columns that tell the same points apart."""
    place = {value: index for index, value in enumerate(dict.fromkeys(values))}
    return tuple(place[value] for value in values)
