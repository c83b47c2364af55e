"""The four plots of a comparison as data: made once, drawn for the page and for the picture by drawing.py.

A run keeps one colour and one marker in every plot of both. The colours start from Paul Tol's vibrant set: told apart
by colour-blind readers, with the markers' help, and readable on white and on near-black.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qtarget.record.runs import Run, finished, unfinished

GREY = "#8a8a8a"  # runs without training of their own
COLOURS = ("#0077bb", "#ee7733", "#009988", "#cc3311", "#2fa8dc", "#ee3377", "#aa4499", "#999933", "#7766cc", "#d9a521")
SYMBOLS = (("circle", "o"), ("square", "s"), ("diamond", "D"), ("triangle-up", "^"), ("triangle-down", "v"))
FAINT = 0.45  # opacity of lines that are noisier than what stands beside them
MOST_POINTS = 150  # of one line: longer ones are averaged over equal spans of steps


@dataclass(frozen=True)
class Mark:
    """How one thing looks in every plot of a page: a run, a design, or what else a curve stands for.

    index: no other mark of the page has it; the page shows and hides by it. symbol: counts into SYMBOLS.
    """

    index: int
    label: str
    colour: str
    symbol: int


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
    dash: str = "solid"
    pointed: bool = False
    faint: bool = False
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

    number: how hovering writes a value of a dot, in Python's format; unit: what stands behind it. x_choices: the reader
    chooses what x is, of the lines' `other_x`.
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
    x_choices: bool = False
    x_near: bool = False  # the x axis begins where the points do, not at 0
    number: str = ".1f"
    unit: str = " %"


def distinct(marks: Iterable[Mark]) -> tuple[Mark, ...]:
    """Each once, in their order."""
    return tuple(sorted(set(marks), key=lambda mark: mark.index))


# The data


def marks(runs: Sequence[Run]) -> list[tuple[Run, Mark]]:
    """What is plotted and how it looks: the rows of the table, then unfinished runs that left numbers."""
    plotted = finished(runs) + [run for run in unfinished(runs) if run.history]
    styled, coloured = [], 0
    for index, run in enumerate(plotted):
        is_untrained = run.role == "base"
        colour, symbol = look(coloured)
        styled.append((run, Mark(index, run.display_name, GREY if is_untrained else colour, symbol)))
        coloured += not is_untrained
    return styled


def look(count: int) -> tuple[str, int]:
    """Colour and symbol of what comes after `count` others; no two alike among the first 50."""
    turn, index = divmod(count, len(COLOURS))  # each turn through the colours starts at another marker
    return COLOURS[index], (index + turn) % len(SYMBOLS)


def panels(runs: Sequence[Run]) -> tuple[Panel, ...]:
    """The four plots of a comparison."""
    styled = marks(runs)
    return (accuracy_panel(styled), progress_panel(styled), nll_panel(styled), trust_panel(styled))


def accuracy_panel(styled: Sequence[tuple[Run, Mark]]) -> Panel:
    """Held-out accuracy per run, with its interval; the dotted line is the model before training."""
    dots = tuple(dot for run, mark in styled if (dot := _dot(run, mark)))
    untrained = {mark.index for run, mark in styled if run.role == "base"}
    base = next((dot.value for dot in dots if dot.mark.index in untrained), None)
    caption = (
        "Each dot is the share of held-out problems solved, the bar its 95 % interval. Where a dot lies inside another "
        "run's bar, these runs do not tell the two apart."
    )
    if base is not None:
        caption += " The dotted line is the model before training."
    return Panel("accuracy", "Held-out accuracy", "accuracy (%)", "", caption, dots=dots, reference=base)


def progress_panel(styled: Sequence[tuple[Run, Mark]]) -> Panel:
    """Validation accuracy over training."""
    lines = _lines(styled, "val/accuracy", scale=100.0, pointed=True)
    caption = (
        "Accuracy on the validation problems while training goes on. Compare where the lines settle, not single points"
    )
    half_width = _half_interval(styled)
    caption += f": one point is uncertain by about ±{half_width:.0f} percentage points." if half_width else "."
    return Panel("progress", "Validation accuracy over training", "step", "accuracy (%)", caption, lines=lines)


def nll_panel(styled: Sequence[tuple[Run, Mark]]) -> Panel:
    """Negative log-likelihood of the labels, training and validation."""
    lines = _lines(styled, "train/nll", faint=True) + _lines(styled, "val/nll", dash="dashed", pointed=True)
    caption = (
        "Solid and pale: training tokens; dashed: validation tokens. This is the plain −log p of the label, so lines "
        "over the same rows can be compared whatever the design; the values of the designs' own objectives cannot. "
        "Lower is not always better: a design that refuses wrong labels keeps a higher training nll."
    )
    return Panel("nll", "nll over training", "step", "nats per token", caption, lines=lines)


def trust_panel(styled: Sequence[tuple[Run, Mark]]) -> Panel:
    """Trust on clean and on wrong tokens; one line per run where the data were not split into the two."""
    clean = _lines(styled, "target/trust_clean")
    wrong = _lines(styled, "target/trust_noisy", dash="dashed")
    reading = "Solid: clean tokens; dashed: wrong tokens. A design that tells them apart keeps a gap between the two."
    if not clean and not wrong:
        clean, reading = _lines(styled, "target/trust"), "Tokens are not split into clean and wrong here."
    caption = f"Trust is how hard the label is pulled relative to plain SFT, which stays at 1 (dotted). {reading}"
    return Panel(
        "trust", "Trust in the label", "step", "trust (plain SFT = 1)", caption, lines=clean + wrong, reference=1.0
    )


def _dot(run: Run, mark: Mark) -> Dot | None:
    value = run.metrics.get("test/accuracy", math.nan)
    low, high = (run.metrics.get(f"test/accuracy_{end}", value) for end in ("low", "high"))
    if run.status != "finished" or not all(map(math.isfinite, (value, low, high))):
        return None
    return Dot(mark, 100 * value, 100 * low, 100 * high)


def _lines(styled: Sequence[tuple[Run, Mark]], metric: str, scale: float = 1.0, **style: Any) -> tuple[Line, ...]:
    series = ((mark, _points(run.history, metric)) for run, mark in styled)
    return tuple(
        Line(mark, metric, tuple(x for x, _ in points), tuple(scale * y for _, y in points), **style)
        for mark, points in series
        if points
    )


def _points(history: Sequence[Mapping[str, float]], metric: str) -> list[tuple[float, float]]:
    points = [(row["step"], row[metric]) for row in history if math.isfinite(row.get(metric, math.nan))]
    span = math.ceil(len(points) / MOST_POINTS)
    if span <= 1:
        return points
    parts = (points[start : start + span] for start in range(0, len(points), span))
    return [(statistics.fmean(x for x, _ in part), statistics.fmean(y for _, y in part)) for part in parts]


def _half_interval(styled: Sequence[tuple[Run, Mark]]) -> float | None:
    """Half the usual width of a validation interval, in percentage points."""
    low, high = "val/accuracy_low", "val/accuracy_high"
    widths = [row[high] - row[low] for run, _ in styled for row in run.history if low in row and high in row]
    return 50 * statistics.median(widths) if widths else None
