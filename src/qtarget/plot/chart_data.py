"""The plots of a page as JSON, in the form that charts.js draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qtarget.plot.figures import Dot, Heat, Line, Panel

DIGITS = 5
"""Significant digits, more than a plot or its hover shows; of values that lie close together, of what tells them apart.
"""
FLOAT_DIGITS = 15


def chart_data(plots: Sequence[Panel]) -> dict[str, Any]:
    """`axes`: every list of x values once; lines name theirs by its index. `panels`: the plots by key."""
    axes: dict[tuple[float, ...], int] = {}
    panels = {panel.key: _panel(panel, axes) for panel in plots}
    return {"axes": [[_rounded(x, DIGITS) for x in values] for values in axes], "panels": panels}


def _panel(panel: Panel, axes: dict[tuple[float, ...], int]) -> dict[str, Any]:
    return {
        "title": panel.title,
        "caption": panel.caption,
        "x": {
            "title": panel.x_title,
            "log": panel.x_log,
            "span": panel.x_span,
            "near": panel.x_near,
            "choices": panel.x_choices,
        },
        "y": {"title": panel.y_title, "log": panel.y_log, "span": panel.span},
        "reference": panel.reference,
        "number": panel.number,
        "unit": panel.unit,
        "dots": [_dot(dot) for dot in panel.dots],
        "lines": [_line(line, axes, _digits(panel.lines)) for line in panel.lines],
        "heat": _heat(panel.heat) if panel.heat else None,
    }


def _dot(dot: Dot) -> dict[str, Any]:
    mark = dot.mark
    look = {"run": mark.index, "label": mark.label, "colour": mark.colour, "symbol": mark.symbol}
    return look | {"value": dot.value, "low": dot.low, "high": dot.high}


def _digits(lines: Sequence[Line]) -> int:
    """Enough to tell a hundred-thousandth of what is in view."""
    values = [value for line in lines for value in line.values if math.isfinite(value)]
    spread = max(values, default=0.0) - min(values, default=0.0)
    more = math.ceil(math.log10(max(map(abs, values)) / spread)) if spread else 0
    return min(DIGITS + max(0, more), FLOAT_DIGITS)


def _line(line: Line, axes: dict[tuple[float, ...], int], digits: int) -> dict[str, Any]:
    mark = line.mark
    return {
        "run": mark.index,
        "label": mark.label,
        "colour": mark.colour,
        "symbol": mark.symbol,
        "metric": line.metric,
        "at": line.at,
        "x": _x(line, axes),
        "y": [_rounded(value, digits) for value in line.values],
        "low": [_rounded(value, digits) for value in line.lows] or None,
        "high": [_rounded(value, digits) for value in line.highs] or None,
        "band": line.band,
        "texts": line.texts or None,
        "dash": line.dash or mark.dash,
        "faint": line.faint,
        "joined": line.joined,
        "marked": line.marked,
        "members": [
            {"x": _x(member, axes), "y": [_rounded(y, digits) for y in member.values]} for member in line.members
        ],
    }


def _x(line: Line, axes: dict[tuple[float, ...], int]) -> dict[str, int]:
    choices: Mapping[str, tuple[float, ...]] = {"step": line.steps, **line.other_x}
    return {name: axes.setdefault(values, len(axes)) for name, values in choices.items()}


def _heat(heat: Heat) -> dict[str, Any]:
    values = [[None if value is None else _rounded(value, DIGITS) for value in row] for row in heat.values]
    return {"columns": heat.columns, "rows": heat.rows, "values": values, "lower": heat.lower_is_better}


def _rounded(value: float, digits: int) -> float | None:
    """JSON has no NaN and no infinity: such a point is left out of its line."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
