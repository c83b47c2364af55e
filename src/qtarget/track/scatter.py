"""The points of a sweep as a picture: the metric over each number that varied, the best point marked."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtarget.errors import QTargetError
from qtarget.track.drawing import picture, plain
from qtarget.track.figures import COLOURS, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BOOK = "sweep.json"
PANEL = (4.2, 3.4)
DECADES = 0.7
"""A key whose values span more than this is drawn on a logarithmic axis."""


def draw_sweep(folder: str | Path, path: str | Path) -> dict[str, Any]:
    """Draw the points of the sweep in `folder` (outputs/NAME) into a PNG at `path`; returns the best point as listed in
    sweep.json. Raises QTargetError where there is no sweep, or no point of it has a value yet.
    """
    told = _told(Path(folder))
    points = [point for point in told["points"] if point["value"] is not None]
    metric = told["metric"]
    if not points:
        raise QTargetError(f"no point of the sweep in {folder} has a {metric['name']} yet")
    best: dict[str, Any] = (max if metric["maximize"] else min)(points, key=lambda point: point["value"])
    keys = [key for key in best["values"] if len({str(point["values"][key]) for point in points}) > 1]
    keys = keys or list(best["values"])[:1]
    with picture(Path(path), (PANEL[0] * len(keys), PANEL[1])) as figure:
        for axes, key in zip(figure.subplots(1, len(keys), squeeze=False).flat, keys, strict=True):
            _scatter(axes, key, points, best)
            axes.set_ylabel(plain(metric["name"]))
    return best


def _told(folder: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads((folder / BOOK).read_text(encoding="utf-8"))
    except OSError as error:
        raise QTargetError(f"{folder} holds no sweep ({BOOK}): name a folder that `qtarget sweep` wrote") from error
    if not told.get("metric"):
        raise QTargetError(f"the sweep in {folder} has no metric to draw: name one in its file and run it again")
    return told


def _scatter(axes: Axes, key: str, points: Sequence[dict[str, Any]], best: dict[str, Any]) -> None:
    """Numbers at their place, anything else side by side."""
    values = [point["values"][key] for point in points]
    heights = [point["value"] for point in points]
    axes.scatter([_place(value) for value in values], heights, s=36, color=COLOURS[0])
    axes.scatter([_place(best["values"][key])], [best["value"]], s=130, marker="*", color=COLOURS[1], zorder=3)
    axes.set_xlabel(plain(key))
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    axes.tick_params(axis="x", which="both", rotation=30)
    if _wide(values):
        axes.set_xscale("log")


def _place(value: Any) -> Any:
    return value if _is_number(value) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wide(values: Sequence[Any]) -> bool:
    return all(_is_number(value) and value > 0 for value in values) and math.log10(max(values) / min(values)) > DECADES
