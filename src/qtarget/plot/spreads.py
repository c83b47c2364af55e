"""Plots of what is spread over tokens: γ, w and p(y) at the end of training, and the reliability curve of the test."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from qtarget.errors import QTargetError
from qtarget.plot.figures import Line, Panel, RunGroup, band_in_words
from qtarget.plot.looks import GREY, Mark
from qtarget.record.record import HISTOGRAMS, stored_result
from qtarget.record.runs import Run, logged

SPREAD = {"histogram/reliance": "γ", "histogram/weight": "w", "histogram/p": "p(y)"}
DIAGONAL = Mark(-1, "as often as it is sure", GREY, 0, "dotted")

Curve = tuple[tuple[float, ...], tuple[float, ...]]
"""x and y of one run."""


def spread_panels(groups: Sequence[RunGroup]) -> tuple[Panel, ...]:
    """Those of which a run has kept something."""
    last = {run.folder: _last_histograms(run) for group in groups for run in group.runs}
    plots = [_histogram(index, name, groups, last) for index, name in enumerate(SPREAD)]
    return tuple(plot for plot in (*plots, _reliability(groups)) if plot.lines)


def _last_histograms(run: Run) -> Mapping[str, Any]:
    lines = list(logged(run.folder / HISTOGRAMS))
    return lines[-1] if lines else {}


def _histogram(index: int, name: str, groups: Sequence[RunGroup], last: Mapping[Any, Mapping[str, Any]]) -> Panel:
    """Shares of the tokens, in percent, at the middles of the bins."""
    symbol = SPREAD[name]
    curves = [[_shares(last[run.folder][name]) for run in group.runs if name in last[run.folder]] for group in groups]
    lines = tuple(line for group, own in zip(groups, curves, strict=True) if (line := _mean(group, own, name, symbol)))
    title = f"{symbol} at the end of training"
    caption = (
        f"How {symbol} is spread over the tokens trained on between the last two evaluations, in bins of equal width; "
        f"what lies outside is counted in the first or the last.{band_in_words(lines)}"
    )
    return Panel(f"spread-{index}", title, symbol, "share of tokens (%)", caption, lines=lines)


def _shares(histogram: Mapping[str, Any]) -> Curve:
    counts, low = histogram["counts"], histogram["low"]
    width = (histogram["high"] - low) / len(counts)
    middles = tuple(low + width * (place + 0.5) for place in range(len(counts)))
    return middles, tuple(100 * count / sum(counts) for count in counts)


def _reliability(groups: Sequence[RunGroup]) -> Panel:
    """How often the likeliest token is right, over how sure the policy is of it; both in percent."""
    curves = [[curve for run in group.runs for curve in _kept_reliability(run)] for group in groups]
    lines = tuple(
        line for group, own in zip(groups, curves, strict=True) if (line := _mean(group, own, "accuracy", "confidence"))
    )
    caption = (
        "Held-out tokens by the probability of the likeliest one: how often that is right. Below the dotted line a "
        f"policy is surer than it is right.{band_in_words(lines)}"
    )
    diagonal = (Line(DIAGONAL, "accuracy", (0.0, 100.0), (0.0, 100.0), at="confidence"),) * bool(lines)
    span = (0.0, 100.0)
    title, x_title = "Calibration", "confidence (%)"
    return Panel(
        "calibration", title, x_title, "accuracy (%)", caption, lines=(*lines, *diagonal), span=span, x_span=span
    )


def _kept_reliability(run: Run) -> Iterator[Curve]:
    """By the middles of the bins, so that seeds share them; NaN where a bin holds no token."""
    kept: list[Mapping[str, Any]] = []
    with suppress(QTargetError):  # a record that can't be read says so elsewhere
        kept = (stored_result(run.folder) or {}).get("calibration") or []
    if any(one["tokens"] for one in kept):
        middles = tuple(50 * (one["low"] + one["high"]) for one in kept)
        yield middles, tuple(math.nan if one["accuracy"] is None else 100 * one["accuracy"] for one in kept)


def _mean(group: RunGroup, curves: Sequence[Curve], metric: str, at: str) -> Line | None:
    """The mean over the runs that have the bins of the first, with a band from the smallest to the largest."""
    if not curves:
        return None
    x = curves[0][0]
    values = [y for own_x, y in curves if own_x == x]
    if len(values) == 1:
        return Line(group.mark, metric, x, values[0], at=at)
    points = [list(filter(math.isfinite, point)) or [math.nan] for point in zip(*values, strict=True)]
    return Line(
        group.mark,
        metric,
        x,
        tuple(map(statistics.fmean, points)),
        at=at,
        lows=tuple(map(min, points)),
        highs=tuple(map(max, points)),
        band=True,
        members=tuple(Line(group.mark, metric, x, own, at=at) for own in values),
    )
