"""The plots of a comparison as data: made once, drawn on the page by charts.js and in the picture by drawing.py.

Runs that differ in their seed alone are one line: the mean, with a band from the smallest seed to the largest.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qtarget.measures import MEASURES
from qtarget.plot.looks import Mark
from qtarget.record.runs import Run

FAINT = 0.45  # opacity of lines that are noisier than what stands beside them
MOST_POINTS = 100  # of one line: longer ones are averaged over equal spans of steps
DECADES = 1.4
"""From this ratio of largest to smallest on, in powers of ten, values stand on a logarithmic axis."""


@dataclass(frozen=True)
class Dot:
    """One value with its interval; the ends equal the value where no interval is known."""

    mark: Mark
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One metric of one run over optimizer steps, or of one design over what `at` names.

    lows, highs: the interval of every value, where it is known, as bars or (band) as one area. texts: what hovering
    says of every point. joined: drawn as a line, not as points alone. other_x: the points' places on other x axes.
    members: the runs that this is the mean of, shown on hovering.
    """

    mark: Mark
    metric: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    pointed: bool = False
    faint: bool = False
    dash: str = ""  # else the mark's
    at: str = "step"
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()
    band: bool = False
    texts: tuple[str, ...] = ()
    joined: bool = True
    other_x: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    members: tuple[Line, ...] = ()

    @property
    def marked(self) -> bool:
        """Whether its points carry markers; a line of one point would be invisible without."""
        return self.pointed or not self.joined or len(self.steps) == 1


@dataclass(frozen=True)
class Heat:
    """One value per row and column, None where nothing ran; rows stand from the bottom up."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    lower_is_better: bool


@dataclass(frozen=True)
class Panel:
    """One plot. `reference`: where the dotted line stands. `span`, `x_span`: what is in view; by default all.

    number: how hovering writes a value of a dot, in Python's format; unit: what stands behind it. x_choices: what x may
    be beside the step, of the lines' `other_x`.
    """

    key: str
    title: str
    x_title: str
    y_title: str
    caption: str
    dots: tuple[Dot, ...] = ()
    lines: tuple[Line, ...] = ()
    reference: float | None = None
    span: tuple[float, float] | None = None
    x_span: tuple[float, float] | None = None
    heat: Heat | None = None
    x_log: bool = False
    y_log: bool = False
    x_choices: tuple[str, ...] = ()
    x_near: bool = False  # the x axis begins where the points do, not at 0
    number: str = ".1f"
    unit: str = " %"


def wants_log_axis(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows the values better."""
    return bool(values) and min(values) > 0 and math.log10(max(values) / min(values)) >= DECADES


# The data


@dataclass(frozen=True)
class RunGroup:
    """Runs that are one line: those of a design that differ in their seed alone."""

    mark: Mark
    runs: tuple[Run, ...]

    @property
    def untrained(self) -> bool:
        return all(run.role == "base" for run in self.runs)


def panels(groups: Sequence[RunGroup]) -> tuple[Panel, ...]:
    """The plots of a comparison that have something to show."""
    plots = (accuracy_panel(groups), progress_panel(groups), nll_panel(groups), trust_panel(groups))
    return tuple(plot for plot in plots if plot.dots or plot.lines)


def accuracy_panel(groups: Sequence[RunGroup]) -> Panel:
    """Held-out accuracy; the dotted line is the model before training."""
    dots = tuple(dot for group in groups if (dot := _dot(group)))
    untrained = {group.mark.index for group in groups if group.untrained}
    base = next((dot.value for dot in dots if dot.mark.index in untrained), None)
    caption = "Each dot is the share of held-out problems solved. The bar of a single run is its 95 % interval"
    if any(len(group.runs) > 1 for group in groups):
        caption += "; that of a mean over seeds reaches from the smallest seed to the largest"
    caption += ". Where a dot lies inside another's bar, the two are not told apart."
    if base is not None:
        caption += " The dotted line is the model before training."
    return Panel("accuracy", "Held-out accuracy", "accuracy (%)", "", caption, dots=dots, reference=base)


def progress_panel(groups: Sequence[RunGroup]) -> Panel:
    """Validation accuracy over training."""
    lines = _lines(groups, "val/accuracy", scale=100.0, pointed=True)
    caption = (
        "Accuracy on the validation problems while training goes on. Compare where the lines settle, not single points"
    )
    width = _half_interval([run for group in groups for run in group.runs])
    caption += f": one point is uncertain by about ±{width:.0f} percentage points." if width else "."
    return _over_training(
        "progress", "Validation accuracy over training", "accuracy (%)", caption + band_in_words(lines), lines
    )


def nll_panel(groups: Sequence[RunGroup]) -> Panel:
    """Negative log-likelihood of the labels, training and validation."""
    lines = _lines(groups, "train/nll", faint=True) + _lines(groups, "val/nll", pointed=True)
    caption = (
        "Pale: training tokens; strong: validation tokens. This is the plain −log p of the label, so lines over the "
        "same rows can be compared whatever the design; the values of the designs' own objectives cannot. "
        "Lower is not always better: a design that refuses wrong labels keeps a higher training nll."
    )
    return _over_training("nll", "nll over training", "nats per token", caption + band_in_words(lines), lines)


def trust_panel(groups: Sequence[RunGroup]) -> Panel:
    """Trust on clean and on wrong tokens; one line where the data were not split into the two."""
    clean = _lines(groups, "target/trust_clean")
    wrong = _lines(groups, "target/trust_noisy", faint=True)
    reading = "Strong: clean tokens; pale: wrong tokens. A design that tells them apart keeps a gap between the two."
    if not clean and not wrong:
        clean, reading = _lines(groups, "target/trust"), "Tokens are not split into clean and wrong here."
    caption = f"Trust is how hard the label is pulled relative to plain SFT, which stays at 1 (dotted). {reading}"
    caption += band_in_words(clean + wrong)
    return _over_training("trust", "Trust in the label", "trust (plain SFT = 1)", caption, clean + wrong, reference=1.0)


CLOCKS = {"tokens": "train/tokens", "supervised": "train/supervised_tokens", "seconds": "time"}
"""What curves can stand over beside the step, and what it is called in a line of the record."""
SHOWN_ELSEWHERE = (
    *("val/accuracy", "train/nll", "val/nll", "target/trust_clean", "target/trust_noisy"),
    *CLOCKS.values(),
)
ENDS = ("_low", "_high")
"""Of intervals."""


def metric_panels(groups: Sequence[RunGroup]) -> tuple[Panel, ...]:
    """One plot for every other metric that was recorded during training, for a list to choose from."""
    runs = [run for group in groups for run in group.runs]
    recorded = dict.fromkeys(key for run in runs for row in run.history for key in row)
    names = [name for name in recorded if "/" in name and name not in SHOWN_ELSEWHERE and not name.endswith(ENDS)]
    drawn = ((name, _lines(groups, name, pointed=name.startswith("val/"))) for name in sorted(names))
    return tuple(_metric_panel(index, name, lines) for index, (name, lines) in enumerate(drawn) if lines)


def _metric_panel(index: int, name: str, lines: tuple[Line, ...]) -> Panel:
    about = {measure.logged: f"{measure.about[0].upper()}{measure.about[1:]}." for measure in MEASURES}
    caption = about.get(name.removesuffix("_clean").removesuffix("_noisy"), "As it was recorded during training.")
    return _over_training(f"metric-{index}", name, name, caption + band_in_words(lines), lines)


def _over_training(key: str, title: str, y_title: str, caption: str, lines: tuple[Line, ...], **style: Any) -> Panel:
    log = wants_log_axis([value for line in lines for value in line.values]) and style.get("reference") is None
    choices = tuple(name for name in CLOCKS if lines and all(name in line.other_x for line in lines))
    return Panel(key, title, "step", y_title, caption, lines=lines, y_log=log, x_choices=choices, **style)


def band_in_words(lines: Sequence[Line]) -> str:
    return " Means over seeds; the band reaches from the smallest seed to the largest." * any(
        line.band for line in lines
    )


def _dot(group: RunGroup) -> Dot | None:
    runs = [run for run in group.runs if run.status == "finished"]
    values = [run.metrics.get("test/accuracy", math.nan) for run in runs]
    low, high = (min, max) if len(runs) > 1 else (partial(_end, runs, "low"), partial(_end, runs, "high"))
    if not runs or not all(map(math.isfinite, (*values, low(values), high(values)))):
        return None
    return Dot(group.mark, 100 * statistics.fmean(values), 100 * low(values), 100 * high(values))


def _end(runs: Sequence[Run], end: str, values: Sequence[float]) -> float:
    """Of a single run's interval; the value itself where there is none."""
    return runs[0].metrics.get(f"test/accuracy_{end}", values[0])


# Lines over training


def _lines(groups: Sequence[RunGroup], metric: str, scale: float = 1.0, **style: Any) -> tuple[Line, ...]:
    return tuple(line for group in groups if (line := _mean_line(group, metric, scale, style)))


def _mean_line(group: RunGroup, metric: str, scale: float, style: Mapping[str, Any]) -> Line | None:
    """The mean over the steps that all runs have; of a single run, its own values."""
    histories = [_by_step(run.history, metric) for run in group.runs]
    histories = [history for history in histories if history]
    steps = sorted(set.intersection(*map(set, histories))) if histories else []
    if not steps:
        return None
    table = [_table_row(step, scale, [history[step] for history in histories]) for step in steps]
    x, *columns = zip(*_thinned(table), strict=True)
    clock = {name: column for name, column in zip(CLOCKS, columns, strict=False) if all(map(math.isfinite, column))}
    values = columns[len(CLOCKS) :]
    if len(values) == 1:
        return Line(group.mark, metric, x, values[0], other_x=clock, **style)
    points = list(zip(*values, strict=True))
    members = tuple(Line(group.mark, metric, x, own, other_x=clock) for own in values)
    return Line(
        group.mark,
        metric,
        x,
        tuple(map(statistics.fmean, points)),
        lows=tuple(map(min, points)),
        highs=tuple(map(max, points)),
        band=True,
        other_x=clock,
        members=members,
        **style,
    )


def _table_row(step: float, scale: float, rows: Sequence[Sequence[float]]) -> list[float]:
    """The step, the means of its CLOCKS, and every run's value. rows: of the runs, their clocks and the value."""
    clocks = (statistics.fmean(row[index] for row in rows) for index in range(len(CLOCKS)))
    return [step, *clocks, *(scale * row[-1] for row in rows)]


def _by_step(history: Sequence[Mapping[str, float]], metric: str) -> dict[float, tuple[float, ...]]:
    """Step → its CLOCKS, NaN where one is not known, and the value."""
    return {
        row["step"]: (*(row.get(name, math.nan) for name in CLOCKS.values()), row[metric])
        for row in history
        if math.isfinite(row.get(metric, math.nan))
    }


def _thinned(table: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """At most MOST_POINTS rows, each the mean over equally many."""
    span = math.ceil(len(table) / MOST_POINTS)
    if span <= 1:
        return [tuple(row) for row in table]
    parts: Iterator[Sequence[Sequence[float]]] = (table[start : start + span] for start in range(0, len(table), span))
    return [tuple(map(statistics.fmean, zip(*part, strict=True))) for part in parts]


def _half_interval(runs: Sequence[Run]) -> float | None:
    """Half the usual width of a validation interval, in percentage points."""
    low, high = "val/accuracy_low", "val/accuracy_high"
    widths = [row[high] - row[low] for run in runs for row in run.history if low in row and high in row]
    return 50 * statistics.median(widths) if widths else None
