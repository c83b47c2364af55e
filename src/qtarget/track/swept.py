"""Runs that differ in their configuration's numbers: what was swept, and the metric over it.

`sweep.json` beside the runs says what was swept and what each point's value is; without one, the keys are those whose
numbers differ between the runs, and the value is a metric of their closing evaluation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qtarget.errors import QTargetError
from qtarget.track.numbers import number, numeric
from qtarget.track.runs import Run, check_held, describes_only, differing_keys, finished, without_places
from qtarget.track.sweep import better_end

BOOK = "sweep.json"
"""What `qtarget sweep` writes beside its runs."""
MOST_KEYS = 6
"""Plots of one key each; those with the most values come first."""
LOWER = {"min": True, "max": False, None: None}
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
    """numbers, words: keys that differ between points, numeric ones and others, those with the most values first.

    lower_is_better: None for a metric of which neither end is.
    """

    metric: str
    lower_is_better: bool | None
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
    drawn = _designs(runs)
    name, given = metric or usual_metric(drawn), _given(drawn, book)
    if metric and finished(runs):
        check_held(drawn, metric)
    points = [Point(run, given[run.folder], run.metrics[name]) for run in drawn if _has(run, name)]
    return _swept(name, LOWER[better_end(name)], points)


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
        return _checked(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise QTargetError(f"{path} is not what qtarget sweep writes ({error}): move it elsewhere") from error


def _checked(book: Any) -> dict[str, Any]:
    points, metric = (book.get(key) for key in ("points", "metric")) if isinstance(book, dict) else (None, None)
    if not isinstance(points, list) or not isinstance(metric, dict | None):
        raise ValueError("no mapping with points and a metric")
    return dict(book)


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
    """Finished runs of a design: starts, teachers and controls differ from them on purpose, evaluations repeat them."""
    designs = [run for run in finished(runs) if run.role == "design"]
    return [run for run in designs if run.task == "train"] or designs


def _has(run: Run, metric: str) -> bool:
    return math.isfinite(run.metrics.get(metric, math.nan))


def _given(runs: Sequence[Run], book: Mapping[str, Any]) -> dict[Path, dict[str, str]]:
    """What the sweep gave each run; without one, its options, and the numbers of its configuration that differ."""
    told = {Path(point["folder"]).name: point["values"] for point in book.get("points", ())}
    if told:
        return {run.folder: _texts(told.get(run.folder.name, {})) for run in runs}
    keys = differing_keys(runs)
    return {run.folder: _numbers(run, keys) | _options(run) for run in runs}


def _numbers(run: Run, keys: Sequence[str]) -> dict[str, str]:
    return {key: run.config[key] for key in keys if number(run.config.get(key, "")) is not None}


def _options(run: Run) -> dict[str, str]:
    return {group: option for group, option in run.choices.items() if not describes_only(group)}


def _swept(metric: str, lower_is_better: bool | None, points: Sequence[Point]) -> Swept | None:
    found = Swept(metric, lower_is_better, tuple(points), (), ())
    keys = _varied(found)
    numbers = tuple(key for key in keys if numeric(found.column(key)))
    words = tuple(key for key in keys if key not in numbers)
    return replace(found, numbers=numbers[:MOST_KEYS], words=words) if numbers else None


def _varied(found: Swept) -> list[str]:
    """Keys with several values, but for seeds; of keys that have the same values throughout, the first."""
    keys = sorted({key for point in found.points for key in point.values if key.rpartition(".")[2] != "seed"})
    alike: dict[tuple[str | None, ...], str] = {}
    for key in keys:
        if len(set(found.column(key))) > 1:
            alike.setdefault(tuple(point.values.get(key) for point in found.points), key)
    return sorted(alike.values(), key=lambda key: (-len(set(found.column(key))), key))
