"""What was swept, and the metric over it: tables and plots of runs that differ in their configuration's numbers.

`sweep.json` beside the runs says what was swept, and the value of each point. Without one, the keys are those whose
numbers differ between the runs, and the value is a metric of their closing evaluation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from qtarget.compare.columns import number, numeric
from qtarget.errors import QTargetError
from qtarget.measures import direction
from qtarget.plot.drawing import draw_panel, picture
from qtarget.plot.figures import Heat, Line, Panel, wants_log_axis
from qtarget.plot.looks import COLOURS, Mark, distinct, marks
from qtarget.record.runs import (
    SETTLED,
    Run,
    check_metric,
    describes_only,
    differing_keys,
    finished,
    read_runs,
    without_absolute_paths,
)

SWEEP_MANIFEST = "sweep.json"
"""What `qtarget sweep` writes beside its runs; named here, as comparing can't import from sweeping."""
MOST_KEYS = 6
"""Plots of one key each; those with the most values come first."""
LOWER = {"min": True, "max": False, None: None}
METRICS = ("test/accuracy", "test/nll")
"""What runs without a sweep are compared by: the first that they hold."""


@dataclass(frozen=True)
class SweptRun:
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
    points: tuple[SweptRun, ...]
    numbers: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def is_percent(self) -> bool:
        """Accuracy is in percent wherever it is shown."""
        return self.metric.endswith("/accuracy")

    @property
    def title(self) -> str:
        return f"{self.metric} %" if self.is_percent else self.metric

    @property
    def scale(self) -> float:
        return 100.0 if self.is_percent else 1.0

    def column(self, key: str) -> list[str]:
        """The values of a key, of those points that have it."""
        return [point.values[key] for point in self.points if key in point.values]


def read_swept(runs: Sequence[Run], metric: str | None = None) -> Swept | None:
    """What was swept by `runs`; None where they differ in no number. metric: in place of the sweep's own.

    Raises QTargetError where no run holds a metric that was asked for.
    """
    manifest = _read_manifest(runs)
    own = manifest.get("metric")
    if own and metric in (None, own["name"]):
        return _swept(own["name"], not own["maximize"], _manifest_points(runs, manifest))
    designs = _designs(runs)
    name, values = metric or usual_metric(designs), _swept_values(designs, manifest)
    if metric and finished(runs):
        check_metric(designs, metric)
    points = [
        SweptRun(run, values[run.folder], run.metrics[name])
        for run in designs
        if math.isfinite(run.metrics.get(name, math.nan))
    ]
    return _swept(name, LOWER[direction(name)], points)


def usual_metric(runs: Sequence[Run]) -> str:
    """The first of METRICS that a finished run holds."""
    measured = {name for run in finished(runs) for name in run.metrics}
    return next((name for name in METRICS if name in measured), METRICS[0])


def _read_manifest(runs: Sequence[Run]) -> dict[str, Any]:
    """The sweep that all runs belong to, or nothing. Raises QTargetError for a file that is something else."""
    folders = {run.folder.parent for run in runs}
    path = folders.pop() / SWEEP_MANIFEST
    if folders or not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        _check_manifest(manifest)
    except ValueError as error:
        raise QTargetError(f"{path} is not what qtarget sweep writes ({error}): move it elsewhere") from error
    return dict(manifest)


def _check_manifest(manifest: Any) -> None:
    is_mapping = isinstance(manifest, dict) and isinstance(manifest.get("points"), list)
    if not is_mapping or not isinstance(manifest.get("metric"), dict | None):
        raise ValueError("no mapping with points and a metric")


def _manifest_points(runs: Sequence[Run], manifest: Mapping[str, Any]) -> list[SweptRun]:
    """The points of a sweep that have a value, those stopped early too; none of runs that are only listed."""
    by_folder = {Path(point["folder"]).name: point for point in manifest["points"]}
    shown = [run for run in runs if run.folder.name in by_folder and not run.only_listed]
    recorded = [(run, by_folder[run.folder.name]) for run in shown]
    return [
        SweptRun(run, _texts(point["values"]), float(point["value"]))
        for run, point in recorded
        if point["value"] is not None and math.isfinite(point["value"])
    ]


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: without_absolute_paths(str(value)) for key, value in values.items()}


def _designs(runs: Sequence[Run]) -> list[Run]:
    """Finished runs of a design: starts, teachers and controls differ from them on purpose, evaluations repeat them."""
    designs = [run for run in finished(runs) if run.role == "design"]
    return [run for run in designs if run.task == "train"] or designs


def _swept_values(runs: Sequence[Run], manifest: Mapping[str, Any]) -> dict[Path, dict[str, str]]:
    """What the sweep set in each run; without one, its options, and the numbers of its configuration that differ."""
    by_folder = {Path(point["folder"]).name: point["values"] for point in manifest.get("points", ())}
    if by_folder:
        return {run.folder: _texts(by_folder.get(run.folder.name, {})) for run in runs}
    keys = differing_keys(runs)
    return {run.folder: _numbers_and_options(run, keys) for run in runs}


def _numbers_and_options(run: Run, keys: Sequence[str]) -> dict[str, str]:
    numbers = {key: run.config[key] for key in keys if number(run.config.get(key, "")) is not None}
    return numbers | {group: option for group, option in run.choices.items() if not describes_only(group)}


def _swept(metric: str, lower_is_better: bool | None, points: Sequence[SweptRun]) -> Swept | None:
    swept = Swept(metric, lower_is_better, tuple(points), (), ())
    keys = _varied(swept)
    numbers = tuple(key for key in keys if numeric(swept.column(key)))
    words = tuple(key for key in keys if key not in numbers)
    return replace(swept, numbers=numbers[:MOST_KEYS], words=words) if numbers else None


def _varied(swept: Swept) -> list[str]:
    """Keys with several values, but for seeds; of keys that have the same values throughout, the first."""
    keys = sorted({key for point in swept.points for key in point.values if key.rpartition(".")[2] != "seed"})
    alike: dict[tuple[str | None, ...], str] = {}
    for key in keys:
        if len(set(swept.column(key))) > 1:
            alike.setdefault(tuple(point.values.get(key) for point in swept.points), key)
    return sorted(alike.values(), key=lambda key: (-len(set(swept.column(key))), key))


MOST_VALUES = 7
"""Numbers that stand on their own along a heatmap; more are cut into BINS."""
BINS = 5
MOST_PAIRS = 10
PLOT_INCHES = (4.6, 3.6)
BEST_COLOUR = COLOURS[1]


@dataclass(frozen=True)
class Cut:
    """The values of one key along a side of a heatmap. index_of: which of `names` a text belongs to."""

    names: tuple[str, ...]
    index_of: Callable[[str], int]


def point_marks(swept: Swept, first_index: int) -> list[tuple[SweptRun, Mark]]:
    """Points that agree in all that is no number look alike. first_index: of the first mark."""
    names = [", ".join(point.values[key] for key in swept.words if key in point.values) for point in swept.points]
    designs = [point.values.get("target", name) for point, name in zip(swept.points, names, strict=True)]
    pairs = [(design, name or "all runs") for design, name in zip(designs, names, strict=True)]
    ordered = sorted(set(pairs))
    mark_of = dict(zip(ordered, marks(ordered, first_index), strict=True))
    return [(point, mark_of[pair]) for point, pair in zip(swept.points, pairs, strict=True)]


def scatter_panels(swept: Swept, first_index: int) -> tuple[Panel, ...]:
    """One plot per swept number."""
    styled = point_marks(swept, first_index)
    return tuple(_scatter(swept, styled, key, index) for index, key in enumerate(swept.numbers))


def _scatter(swept: Swept, styled: Sequence[tuple[SweptRun, Mark]], key: str, index: int) -> Panel:
    plotted = [(point, mark) for point, mark in styled if key in point.values]
    lines = tuple(
        _line(swept, plotted, mark, key, faint)
        for mark in distinct(mark for _, mark in plotted)
        for faint in (False, True)
    )
    drawn = tuple(line for line in lines if line.steps)
    caption = f"One dot a run: {_swept_in_words(swept)}." + (
        " Pale: not finished." if any(line.faint for line in drawn) else ""
    )
    if without := len(swept.points) - len(plotted):
        caption += f" {without} more have no number here."
    log = wants_log_axis([step for line in drawn for step in line.steps])
    title = f"{swept.metric} over {key}"
    return Panel(f"scatter-{index}", title, key, swept.title, caption, lines=drawn, x_log=log, x_near=True)


def _line(swept: Swept, styled: Sequence[tuple[SweptRun, Mark]], mark: Mark, key: str, faint: bool) -> Line:
    """The points of one mark: those that finished, or (faint) those that did not."""
    points = [point for point, own in styled if own == mark and (point.run.status != "finished") == faint]
    points.sort(key=lambda point: (float(point.values[key]), point.run.short_path))
    return Line(
        mark,
        swept.metric,
        tuple(float(point.values[key]) for point in points),
        tuple(swept.scale * point.value for point in points),
        faint=faint,
        at=key,
        texts=tuple(f"{point.run.display_name} ({point.run.short_path})" for point in points),
        joined=False,
    )


def _swept_in_words(swept: Swept) -> str:
    if swept.lower_is_better is None:
        return swept.metric
    return f"{swept.metric}, of which {'lower' if swept.lower_is_better else 'higher'} is better"


# Two keys at a time


def heat_panels(swept: Swept) -> tuple[Panel, ...]:
    """The best value by two keys: a plot for every pair of keys, the most varied first.

    There is none for a single key, nor for a metric of which neither end is the better one.
    """
    if swept.lower_is_better is None:
        return ()
    keys = sorted((*swept.numbers, *swept.words), key=lambda key: -len(set(swept.column(key))))
    pairs = list(combinations(keys, 2))[:MOST_PAIRS]
    return tuple(_heat(swept, *pair, index) for index, pair in enumerate(pairs))


def _heat(swept: Swept, across: str, up: str, index: int) -> Panel:
    columns, rows = cut(swept.column(across)), cut(swept.column(up))
    cells: dict[tuple[int, int], list[float]] = {}
    for point in swept.points:
        if point.run.status in SETTLED and across in point.values and up in point.values:
            cell = rows.index_of(point.values[up]), columns.index_of(point.values[across])
            cells.setdefault(cell, []).append(swept.scale * point.value)
    best = {cell: (min if swept.lower_is_better else max)(values) for cell, values in cells.items()}
    width, height = len(columns.names), len(rows.names)
    table = tuple(tuple(best.get((row, column)) for column in range(width)) for row in range(height))
    heat = Heat(columns.names, rows.names, table, bool(swept.lower_is_better))
    end = "lowest" if swept.lower_is_better else "highest"
    caption = (
        f"Each cell is the best of its runs, the {end} {swept.metric}; yellow is better. A cell with more runs has had "
        "more luck; an empty one was not tried."
    )
    return Panel(
        f"heat-{index}", f"{across} × {up}", across, up, caption, heat=heat, number=".3g", unit=" %" * swept.is_percent
    )


def cut(values: Sequence[str]) -> Cut:
    """Values along a side: numbers in their order, many of them in spans of equal width; words by the alphabet."""
    if any(number(value) is None for value in values):
        names = tuple(sorted(set(values)))
        return Cut(names, names.index)
    known = sorted({float(value) for value in values})
    if len(known) <= MOST_VALUES:
        return Cut(_names(known, least=6), lambda value: known.index(float(value)))
    return _spans(known)


def _spans(known: Sequence[float]) -> Cut:
    """BINS spans of equal width, of equal ratio where a logarithmic axis shows the values better."""
    into, back = (math.log, math.exp) if wants_log_axis(known) else (float, float)
    low, high = into(known[0]), into(known[-1])
    edges = _names([back(low + (high - low) * index / BINS) for index in range(BINS + 1)])
    names = tuple(f"{left} … {right}" for left, right in pairwise(edges))
    return Cut(names, lambda value: min(BINS - 1, int(BINS * (into(float(value)) - low) / (high - low))))


def _names(numbers: Sequence[float], least: int = 2) -> tuple[str, ...]:
    """As few digits as tell them apart, `least` at least."""
    candidates = (tuple(f"{value:.{digits}g}" for value in numbers) for digits in range(least, 18))
    return next(names for names in candidates if len(set(names)) == len(numbers))


# In a picture


def draw_sweep(folder: str | Path, path: str | Path) -> SweptRun:
    """Draw the sweep in `folder` (outputs/NAME), a plot a number that varied, into a PNG at `path`; a star marks the
    best point, which is returned. Raises QTargetError where no run is found, or none has a value yet.
    """
    swept = read_swept(read_runs([folder]))
    if swept is None:
        raise QTargetError(f"{folder} holds no runs that differ in a number and have a value: see `qtarget sweep`")
    settled = [point for point in swept.points if point.run.status in SETTLED] or list(swept.points)
    best = (min if swept.lower_is_better else max)(settled, key=lambda point: point.value)
    panels = scatter_panels(swept, 0)
    with picture(Path(path), (PLOT_INCHES[0] * len(panels), PLOT_INCHES[1])) as figure:
        plots = figure.subplots(1, len(panels), squeeze=False).flat
        for axes, panel, key in zip(plots, panels, swept.numbers, strict=True):
            draw_panel(axes, panel)
            if not panel.x_log:
                axes.locator_params(axis="x", nbins=5)
            axes.plot(float(best.values[key]), swept.scale * best.value, "*", markersize=14, color=BEST_COLOUR)
    return best
