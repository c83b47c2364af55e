"""The plots of a comparison as a picture, drawn by matplotlib."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtarget.plot.figures import FAINT, Dot, Line, Panel
from qtarget.plot.looks import GREY, SYMBOLS, Mark, distinct

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PNG_WIDTH, PNG_ROW, PNG_DPI = 14.0, 5.2, 100
MOST_NAMES = 24  # in the legend: more would fill the picture
MOST_MARKERS = 12  # on one line of many points


def draw_png(plots: Sequence[Panel], path: Path) -> None:
    """The plots, two in a row of 1400 × 520 pixels."""
    rows = max(1, math.ceil(len(plots) / 2))
    with picture(path, (PNG_WIDTH, PNG_ROW * rows)) as figure:
        grid = list(figure.subplots(rows, 2, squeeze=False).flat)
        for axes, panel in zip(grid, plots, strict=False):
            draw_panel(axes, panel)
        for axes in grid[len(plots) :]:
            axes.axis("off")
        if not plots:
            grid[0].text(0.5, 0.5, "nothing recorded", ha="center", color=GREY)
        handles = [_legend_handle(mark) for mark in _marks_in(plots)][:MOST_NAMES]
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)


@contextmanager
def picture(path: Path, inches: tuple[float, float], *, arranged: bool = True) -> Iterator[Figure]:
    """An empty figure, saved at `path` in the end. arranged: plots are placed so that nothing overlaps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12) if arranged else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks is still a name
        figure = Figure(figsize=inches, dpi=PNG_DPI, layout=layout, facecolor="white")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, format="png")


def _marks_in(plots: Sequence[Panel]) -> list[Mark]:
    """Of the lines, each look once; dots have their names beside them."""
    marks = distinct(line.mark for panel in plots for line in panel.lines)
    return list({(mark.label, mark.colour, mark.dash): mark for mark in marks}.values())


def draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, loc="left", fontweight="bold", fontsize=12)
    axes.set_xlabel(plain(panel.x_title))
    axes.set_ylabel(plain(panel.y_title))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if panel.dots else "y", color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    if panel.reference is not None:
        (axes.axvline if panel.dots else axes.axhline)(panel.reference, color=GREY, linestyle=":", linewidth=1.2)
    _draw_dots(axes, panel.dots)
    if panel.x_log:
        axes.set_xscale("log")
    if panel.y_log:
        axes.set_yscale("log")
    elif panel.lines and not panel.x_near:
        axes.set_xlim(left=0, right=1.02 * max(max(line.steps) for line in panel.lines) or 1)
    if panel.x_span:
        axes.set_xlim(*panel.x_span)
    if panel.span:
        axes.set_ylim(*panel.span)
    for line in panel.lines:
        _draw_line(axes, line)
    _name_styles(axes, panel)


def _draw_dots(axes: Axes, dots: Sequence[Dot]) -> None:
    for index, dot in enumerate(dots):
        reach = [[dot.value - dot.low], [dot.high - dot.value]]
        marker = SYMBOLS[dot.mark.symbol]
        axes.errorbar(dot.value, index, xerr=reach, fmt=marker, color=dot.mark.colour, markersize=8, capsize=4, lw=2)
    if dots:
        axes.set_yticks(range(len(dots)), [plain(dot.mark.label) for dot in dots])
        axes.set_ylim(len(dots) - 0.4, -0.6)  # the first row of the table on top
        axes.tick_params(axis="y", length=0)


def _every(line: Line) -> int:
    """Points that are no curve, or have intervals, all have their marker; of a long curve, one in this many has."""
    if not line.joined or line.lows:
        return 1
    return max(1, len(line.steps) // MOST_MARKERS)


def _draw_line(axes: Axes, line: Line) -> None:
    if line.band:
        axes.fill_between(line.steps, line.lows, line.highs, color=line.mark.colour, alpha=0.16, linewidth=0)
    axes.plot(
        line.steps,
        line.values,
        color=line.mark.colour,
        linestyle=(line.dash or line.mark.dash) if line.joined else "",
        linewidth=1.7,
        alpha=FAINT if line.faint else 1,
        marker=SYMBOLS[line.mark.symbol] if line.marked else None,
        markersize=4.5 if line.joined else 7,
        markevery=_every(line),
    )


STYLE_NAMES = {"nll": ("validation", "train"), "trust": ("clean tokens", "wrong tokens")}


def _name_styles(axes: Axes, panel: Panel) -> None:
    """A small key for strong and pale: the picture travels without its caption."""
    from matplotlib.lines import Line2D

    if panel.key not in STYLE_NAMES or not any(line.faint for line in panel.lines):
        return
    strong, pale = STYLE_NAMES[panel.key]
    ink = "#444444"
    handles = [Line2D([], [], color=ink, label=strong), Line2D([], [], color=ink, alpha=FAINT, label=pale)]
    axes.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, borderaxespad=0.2
    )


def _legend_handle(mark: Mark) -> Any:
    from matplotlib.lines import Line2D

    dash: Any = mark.dash  # a Literal in matplotlib's stubs
    marker = SYMBOLS[mark.symbol]
    return Line2D([], [], color=mark.colour, marker=marker, linewidth=1.7, linestyle=dash, label=plain(mark.label))


def plain(label: str) -> str:
    """matplotlib reads text between dollars as mathematics and hides legend labels that start with an underscore."""
    plain = label.replace("$", r"\$")
    return " " + plain if plain.startswith("_") else plain
