"""The plots of a comparison, drawn: by plotly for the page, by matplotlib for the picture."""

from __future__ import annotations

import html
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtarget.plot.figures import FAINT, GREY, SYMBOLS, Dot, Heat, Line, Mark, Panel, distinct

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PNG_INCHES, PNG_DPI = (14.0, 10.4), 100
NAME_WIDTH = 24  # characters of a line beside a plot
TITLE_WIDTH = 24  # letters under an axis beside names, on a phone
MOST_MARKERS = 12  # on one line of many points


# The page: plotly


def plotly_figure(panel: Panel) -> go.Figure:
    """One plot for a page or a notebook; a run's traces share a legend group named by its index."""
    import plotly.graph_objects as go  # half a second that only a report should pay

    traces = [_plotly_dot(dot, place, panel) for place, dot in enumerate(panel.dots)]
    traces += [_plotly_line(line) for line in panel.lines]
    traces += [_plotly_heat(panel.heat, panel)] if panel.heat else []
    figure = go.Figure(data=traces, layout=_plotly_layout(panel))
    if panel.reference is not None and traces:
        draw = figure.add_vline if panel.dots else figure.add_hline
        draw(panel.reference, line={"dash": "dot", "width": 1, "color": GREY}, layer="below")
    if not traces:
        figure.add_annotation(text="nothing recorded", x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return figure


def page_figures(plots: Sequence[Panel]) -> dict[str, Any]:
    """The plots as JSON for plotly.js, without plotly's bulky default template."""
    drawn = {panel.key: plotly_figure(panel).to_plotly_json() for panel in plots}
    for figure in drawn.values():
        figure["layout"].pop("template", None)
    return drawn


def _plotly_layout(panel: Panel) -> dict[str, Any]:
    axis = {"zeroline": False, "automargin": True, "ticks": ""}
    span = {"range": list(panel.span)} if panel.span else {}
    return {
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": False,  # a finger that scrolls the page must not zoom the plot
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "font": {"size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": axis | _title(_short_lines(panel.x_title)) | _x_axis(panel),
        "yaxis": axis
        | _title(html.escape(panel.y_title))
        | (_named_rows(panel.dots) if panel.dots else _categories(panel) | span),
    }


def _title(text: str) -> dict[str, Any]:
    return {"title": {"text": text, "standoff": 10}}


def _short_lines(title: str) -> str:
    """Plotly never breaks a title: one that is wider than its axis would leave a phone's window."""
    return "<br>".join(map(html.escape, textwrap.wrap(title, TITLE_WIDTH)))


def _categories(panel: Panel) -> dict[str, Any]:
    """The values of a key stand side by side, also where they look like numbers."""
    return {"type": "category", "showgrid": False} if panel.heat else {}


def _x_axis(panel: Panel) -> dict[str, Any]:
    if panel.x_span:
        return {"range": list(panel.x_span)}
    if panel.x_log:
        return {"type": "log", "dtick": 1, "tickformat": "~g", "minor": {"ticks": "outside", "ticklen": 3}}
    return {"rangemode": "tozero"} if panel.lines and not panel.x_near else _categories(panel)


def _named_rows(dots: Sequence[Dot]) -> dict[str, Any]:
    names = [_wrapped(dot.mark.label) for dot in dots]
    ticks = {"tickvals": list(range(len(names))), "ticktext": names}
    return ticks | {"range": [len(names) - 0.4, -0.6], "showgrid": False}


def _wrapped(label: str) -> str:
    """At most two short lines, or a phone has no room for the plot; hovering tells the whole label."""
    lines = textwrap.wrap(label, NAME_WIDTH, max_lines=2, placeholder="…")
    return "<br>".join(html.escape(line) + "  " for line in lines)


def _plotly_dot(dot: Dot, place: int, panel: Panel) -> dict[str, Any]:
    label = html.escape(dot.mark.label)  # plotly reads a little HTML in its texts
    low, high = (f"{end:{panel.number}}" for end in (dot.low, dot.high))
    return _plotly_mark(dot.mark, size=10) | {
        "mode": "markers",
        "x": [dot.value],
        "y": [place],
        "error_x": _reach([dot.value], [dot.low], [dot.high]) | {"color": dot.mark.colour, "thickness": 2, "width": 5},
        "hovertemplate": f"{label}: {dot.value:{panel.number}}{panel.unit} [{low}, {high}]<extra></extra>",
    }


def _reach(values: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> dict[str, Any]:
    above = [high - value for value, high in zip(values, highs, strict=True)]
    below = [value - low for value, low in zip(values, lows, strict=True)]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below}


def _plotly_line(line: Line) -> dict[str, Any]:
    label = html.escape(line.mark.label)
    look = _plotly_mark(line.mark, size=6 if line.joined else 9)
    look["marker"]["maxdisplayed"] = math.ceil(len(line.steps) / _every(line))
    if line.lows:
        look["error_y"] = _reach(line.values, line.lows, line.highs) | {"thickness": 1.3, "width": 3}
    if line.texts:
        look["text"] = [html.escape(text) for text in line.texts]
    return look | {
        "mode": "+".join(["lines"] * line.joined + ["markers"] * line.marked),
        "x": list(line.steps),
        "y": list(line.values),
        "opacity": FAINT if line.faint else 1,
        "line": {"color": line.mark.colour, "width": 1.8, "dash": _style(line, "solid", "dash", "dot")},
        "hovertemplate": f"{label}<br>{html.escape(line.metric)} %{{y:.3g}} at {line.at}<extra></extra>",
    }


def _plotly_heat(heat: Heat, panel: Panel) -> dict[str, Any]:
    """Dark is worse, whichever way the metric goes."""
    return {
        "type": "heatmap",
        "x": [html.escape(name) for name in heat.columns],
        "y": [html.escape(name) for name in heat.rows],
        "z": [list(row) for row in heat.values],
        "colorscale": "Viridis",
        "reversescale": heat.lower_is_better,
        "xgap": 2,
        "ygap": 2,
        "texttemplate": f"%{{z:{panel.number}}}",
        "hovertemplate": f"%{{x}}<br>%{{y}}<br>%{{z:{panel.number}}}{panel.unit}<extra></extra>",
        "colorbar": {"thickness": 10, "outlinewidth": 0},
    }


def _style(line: Line, solid: str, dashed: str, dotted: str) -> str:
    return dotted if line.dotted else dashed if line.dashed else solid


def _every(line: Line) -> int:
    """Points that are no curve, or have intervals, all have their marker; of a long curve, one in this many has."""
    if not line.joined or line.lows:
        return 1
    return max(1, len(line.steps) // MOST_MARKERS)


def _plotly_mark(mark: Mark, size: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": html.escape(mark.label),
        "legendgroup": str(mark.index),
        "marker": {"color": mark.colour, "symbol": SYMBOLS[mark.symbol][0], "size": size},
    }


# The PNG: matplotlib


def draw_png(plots: Sequence[Panel], path: Path) -> None:
    """The same plots, two by two, in one picture of about 1400 × 1040 pixels."""
    with picture(path, PNG_INCHES) as figure:
        for axes, panel in zip(figure.subplots(2, 2).flat, plots, strict=True):
            draw_panel(axes, panel)
        handles = [_legend_handle(mark) for mark in _marks_in(plots)]
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


def _marks_in(plots: Sequence[Panel]) -> tuple[Mark, ...]:
    dotted = [dot.mark for panel in plots for dot in panel.dots]
    return distinct([*dotted, *(line.mark for panel in plots for line in panel.lines)])


def draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, loc="left", fontweight="bold", fontsize=12)
    axes.set_xlabel(plain(panel.x_title))
    axes.set_ylabel(plain(panel.y_title))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if panel.dots else "y", color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    if not panel.dots and not panel.lines:
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color=GREY)
        return
    if panel.reference is not None:
        (axes.axvline if panel.dots else axes.axhline)(panel.reference, color=GREY, linestyle=":", linewidth=1.2)
    _draw_dots(axes, panel.dots)
    if panel.x_log:
        axes.set_xscale("log")
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
    for place, dot in enumerate(dots):
        reach = [[dot.value - dot.low], [dot.high - dot.value]]
        marker = SYMBOLS[dot.mark.symbol][1]
        axes.errorbar(dot.value, place, xerr=reach, fmt=marker, color=dot.mark.colour, markersize=8, capsize=4, lw=2)
    if dots:
        axes.set_yticks(range(len(dots)), [plain(dot.mark.label) for dot in dots])
        axes.set_ylim(len(dots) - 0.4, -0.6)  # the first row of the table on top
        axes.tick_params(axis="y", length=0)


def _draw_line(axes: Axes, line: Line) -> None:
    axes.plot(
        line.steps,
        line.values,
        color=line.mark.colour,
        linestyle=_style(line, "-", "--", ":") if line.joined else "",
        linewidth=1.7,
        alpha=FAINT if line.faint else 1,
        marker=SYMBOLS[line.mark.symbol][1] if line.marked else None,
        markersize=4.5 if line.joined else 7,
        markevery=_every(line),
    )


STYLE_NAMES = {"nll": ("train", "validation"), "trust": ("clean tokens", "wrong tokens")}


def _name_styles(axes: Axes, panel: Panel) -> None:
    """A small key for solid and dashed: the picture travels without its caption."""
    from matplotlib.lines import Line2D

    if panel.key not in STYLE_NAMES or not any(line.dashed for line in panel.lines):
        return
    solid, dashed = STYLE_NAMES[panel.key]
    ink = "#444444"
    handles = [Line2D([], [], color=ink, label=solid), Line2D([], [], color=ink, linestyle="--", label=dashed)]
    axes.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, borderaxespad=0.2
    )


def _legend_handle(mark: Mark) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=mark.colour, marker=SYMBOLS[mark.symbol][1], linewidth=1.7, label=plain(mark.label))


def plain(label: str) -> str:
    """matplotlib reads text between dollars as mathematics and hides legend labels that start with an underscore."""
    plain = label.replace("$", r"\$")
    return " " + plain if plain.startswith("_") else plain
