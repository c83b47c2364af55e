"""The lens as pictures: all designs side by side, and one picture for each."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtarget.lens.curves import AXIS, DIAGONAL, QUANTITIES, STOPS, Curve, World, extent, panels
from qtarget.plot.drawing import draw_panel, picture, plain
from qtarget.plot.looks import GREY, Mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OVERLAID = 6  # up to this many designs share their plots; more get a panel each
ACROSS = 7  # panels in a line
PALE, SHADE = "#c9c9c9", 0.16
SIGNED, OVERSHOT = "#cc3311", "#d9a521"  # where Q has negative entries: of its own, because of a step size above 1


def draw_lens(curves: Sequence[Curve], world: World, path: Path) -> None:
    """Every design: overlaid plots and bars for a few, a panel each for many."""
    (draw_overlay if len(curves) <= OVERLAID else draw_multiples)(curves, world, path)


def draw_overlay(curves: Sequence[Curve], world: World, path: Path) -> None:
    """Six plots of all designs, and below them p and Q over the vocabulary for each."""
    with picture(path, (15.0, 13.0)) as figure:
        plots, bars = figure.subfigures(2, 1, squeeze=False, height_ratios=(2.6, 1.0)).flat
        for axes, panel in zip(plots.subplots(2, 3).flat, panels(curves), strict=True):
            draw_panel(axes, panel)
        handles = [_handle(curve.mark) for curve in curves]
        plots.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=11)
        p = STOPS["in between"]
        bars.suptitle(f"Target Q and policy p (grey) over the vocabulary at p(y) = {p:g}", x=0.01, ha="left", **BOLD)
        for axes, curve in zip(bars.subplots(1, len(curves), squeeze=False).flat, curves, strict=True):
            draw_bars(axes, curve, p, world)
            axes.set_title(plain(curve.name), fontsize=10, color=curve.mark.colour)


BOLD: dict[str, Any] = {"fontweight": "bold", "fontsize": 12}


def draw_multiples(curves: Sequence[Curve], world: World, path: Path) -> None:
    """A panel per design: its Q(y), the shaded gap to Q = p that is its gradient, and plain SFT in grey."""
    rows = math.ceil(len(curves) / ACROSS)
    with picture(path, (2.35 * ACROSS, 2.05 * rows + 1.1)) as figure:
        grid = figure.subplots(rows, ACROSS, squeeze=False)
        for axes in list(grid.flat)[len(curves) :]:
            axes.axis("off")
        for index, (axes, curve) in enumerate(zip(grid.flat, curves, strict=False)):
            draw_target(axes, curve)
            axes.set_title(plain(curve.name), loc="left", fontsize=9, fontweight="bold", color=curve.mark.colour)
            axes.tick_params(labelsize=7)
            if index % ACROSS == 0:
                axes.set_ylabel("Q(y)", fontsize=8)
            if index >= len(curves) - ACROSS:
                axes.set_xlabel("p(y)", fontsize=8)
        figure.suptitle("What each design teaches: the target Q(y) of the label over its probability p(y)", **BOLD)
        key = (
            "dotted: Q = p, nothing is taught · shaded: the gradient on the label · grey: plain SFT · "
            "red edge: Q has negative entries (yellow: because w > 1)"
        )
        figure.supxlabel(key, fontsize=10, color="#444444")


def draw_design(curve: Curve, world: World, path: Path) -> None:
    """One design: its target, its gradient, γ, w and trust, and bars for three values of p(y)."""
    with picture(path, (14.0, 8.6), arranged=False) as figure:  # a fixed frame takes half as long
        heading = textwrap.wrap(f"{curve.name}:  {curve.formula}", 118)
        figure.suptitle(plain("\n".join(heading)), x=0.012, y=0.985, ha="left", va="top", **BOLD)
        (target, pull, scalars), stops = figure.subplots(2, 3, gridspec_kw={"height_ratios": (1.35, 1.0)})
        figure.subplots_adjust(
            left=0.035, right=0.99, top=0.925 - 0.025 * len(heading), bottom=0.075, wspace=0.13, hspace=0.33
        )
        draw_target(target, curve, others=True)
        target.set_title("Target: the label and the others", loc="left", **BOLD)
        _draw_pull(pull, curve)
        _draw_scalars(scalars, curve)
        for axes, (word, p) in zip(stops, STOPS.items(), strict=True):
            draw_bars(axes, curve, p, world)
            axes.set_title(f"{word}: p(y) = {p:g}, Q(y) = {curve.at(p).target[0]:.3g}", loc="left", fontsize=10)
        if curve.notes:
            figure.supxlabel(plain(" · ".join(curve.notes)), y=0.012, fontsize=9, color="#555555")


def draw_target(axes: Axes, curve: Curve, *, others: bool = False) -> None:
    """Q(y), the shaded gap to the diagonal, SFT's in grey; a red edge where Q has negative entries."""
    p, target = _series(curve, lambda point: point.p), _series(curve, lambda point: point.target[0])
    axes.plot(p, [1.0] * len(p), color=PALE, linewidth=2.2)
    axes.plot(p, p, color=GREY, linestyle=":", linewidth=1.2)
    axes.fill_between(p, p, target, color=curve.mark.colour, alpha=SHADE, linewidth=0)
    axes.plot(p, target, color=curve.mark.colour, linewidth=1.9, label="Q(y)")
    shown = target
    if others:
        other_mass = _series(curve, lambda point: sum(point.target[1:]))
        axes.plot(p, other_mass, color=curve.mark.colour, linestyle="--", linewidth=1.5, label="all others together")
        axes.plot([], [], color=GREY, linestyle=":", label=DIAGONAL.label)
        axes.plot([], [], color=PALE, linewidth=2.2, label="Q(y) of plain SFT")
        shown = [*target, *other_mass]
        axes.legend(frameon=False, fontsize=8.5)
        axes.set_xlabel(AXIS)
    low, high = extent(shown)
    axes.set_ylim(low - 0.07 * (high - low), high + 0.07 * (high - low))
    for colour, overshooting in ((SIGNED, False), (OVERSHOT, True)):
        for start, end in curve.ranges(overshooting=overshooting):
            axes.axvspan(start, max(end, start + 0.01), ymax=0.025, color=colour, linewidth=0)
    _plain_frame(axes)


def _draw_pull(axes: Axes, curve: Curve) -> None:
    p = _series(curve, lambda point: point.p)
    axes.plot(p, [1 - value for value in p], color=PALE, linewidth=2.2, label="plain SFT, 1 − p(y)")
    axes.plot(p, _series(curve, lambda point: point.pull), color=curve.mark.colour, linewidth=1.9, label=curve.name)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_title("Gradient on the label's logit, −∂L/∂z(y)", loc="left", **BOLD)
    axes.set_xlabel(AXIS)
    axes.legend(frameon=False, fontsize=8.5)
    _plain_frame(axes)


def _draw_scalars(axes: Axes, curve: Curve) -> None:
    """γ, w and trust as the loss reports them."""
    p = _series(curve, lambda point: point.p)
    quantities = {quantity.key: quantity for quantity in QUANTITIES}
    styles = {"trust": "-", "reliance": "--", "weight": "-."}
    for (key, style), ink in zip(styles.items(), (curve.mark.colour, "#444444", "#999999"), strict=True):
        label = {"trust": "trust", "reliance": "reliance γ", "weight": "step size w"}[key]
        axes.plot(p, curve.values(quantities[key]), color=ink, linestyle=style, linewidth=1.8, label=label)
    low, high = extent(value for key in styles for value in curve.values(quantities[key]) if -2 <= value <= 6)
    axes.set_ylim(low - 0.07 * (high - low), high + 0.07 * (high - low))
    axes.set_title("Trust, reliance and step size", loc="left", **BOLD)
    axes.set_xlabel(AXIS)
    axes.legend(frameon=False, fontsize=8.5)
    _plain_frame(axes)


def draw_bars(axes: Axes, curve: Curve, p: float, world: World) -> None:
    """p in grey and Q in the design's colour, token by token."""
    point, positions = curve.at(p), range(len(world.tokens))
    axes.bar(positions, point.policy, width=0.86, color="#d4d4d4")
    axes.bar(positions, point.target, width=0.46, color=curve.mark.colour)
    axes.axhline(0, color="#777777", linewidth=0.8)
    axes.set_xticks(list(positions), list(world.tokens), fontsize=9)
    axes.tick_params(axis="x", length=0)
    low, high = extent([*point.target, *point.policy])
    axes.set_ylim(low - 0.05 * (low < 0), 1.05 * high)
    _plain_frame(axes)


def _series(curve: Curve, read: Any) -> list[float]:
    return [read(point) for point in curve.points]


def _plain_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e9e9e9", linewidth=0.8)
    axes.set_axisbelow(True)


def _handle(mark: Mark) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=mark.colour, linewidth=2.4, label=plain(mark.label))
