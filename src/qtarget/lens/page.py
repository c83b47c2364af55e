"""lens.html: one self-contained page of what designs teach, in a small world and on demonstrations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtarget.lens import token_table
from qtarget.lens.against import CurveDifference, difference_panels
from qtarget.lens.curves import CUT, DOTTED, QUANTITIES, STOPS, Curve, Quantity, World, bars, extent, panels
from qtarget.lens.differences import ratio_text
from qtarget.lens.picture import OVERLAID
from qtarget.lens.token_table import Demonstrations
from qtarget.plot.chart_data import chart_data
from qtarget.plot.figures import Panel
from qtarget.plot.page import render

TEMPLATE = Path(__file__).with_name("lens.html.j2")
LEFT, RIGHT, TOP, BOTTOM = 21.0, 155.0, 6.0, 88.0  # the plotting area of a sketch, in units of its view box


@dataclass(frozen=True)
class Sketch:
    """One quantity of one design as lines in a box of 160 × 100; heights are those of the values 0 and 1.

    area: between Q(y) and p(y), which is the gradient.
    """

    key: str
    curve: str
    plain: str
    dotted: str
    area: str
    zero: float
    one: float
    edges: tuple[tuple[float, float, str], ...]  # (from, width, kind) along the bottom
    top: tuple[float, float] | None = None  # a value above 1 that is worth naming, and its height


def write_lens(
    curves: Sequence[Curve],
    world: World,
    path: Path,
    *,
    changes: Sequence[str] = (),
    shown: Sequence[str] = (),
    demonstrations: Demonstrations | None = None,
    differences: Sequence[CurveDifference] = (),
) -> None:
    """The page at `path`. shown: designs whose curves are drawn to begin with; `changes`: what was overridden."""
    values = template_values(curves, world, changes, shown, demonstrations, differences=differences)
    path.write_text(render(TEMPLATE, values), encoding="utf-8", newline="\n")


def template_values(
    curves: Sequence[Curve],
    world: World,
    changes: Sequence[str] = (),
    shown: Sequence[str] = (),
    demonstrations: Demonstrations | None = None,
    *,
    differences: Sequence[CurveDifference] = (),
) -> dict[str, Any]:
    """What the template shows."""
    plots = panels(curves)
    many = len(curves) > OVERLAID
    return {
        "title": _title(curves, many),
        "many": many,
        "changes": changes,
        "curves": curves,
        "pressed": {curve.mark.index for curve in curves if not many or curve.name in shown},
        "quantities": QUANTITIES,
        "sketches": {curve.mark.index: sketches(curve) for curve in curves} if many else {},
        "plots": plots,
        "figures": chart_data([*plots, *_difference_panels(differences)]),
        "world": world,
        "bars": {**bars(curves, world), "differences": [difference.bars() for difference in differences]},
        "differences": differences,
        "difference_plots": _difference_panels(differences),
        "ratio_text": ratio_text,
        "stops": STOPS,
        "demonstrations": demonstrations,
        "details": _details(demonstrations),
        "tokens": token_table,
    }


def _title(curves: Sequence[Curve], many: bool) -> str:
    if many:
        return "What every design teaches"
    return f"What {_listed([curve.name for curve in curves])} teach" + ("es" if len(curves) == 1 else "")


def _difference_panels(differences: Sequence[CurveDifference]) -> Sequence[Panel]:
    return difference_panels(differences) if differences else ()


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "nothing"


def _details(demonstrations: Demonstrations | None) -> dict[str, Any]:
    if demonstrations is None or not demonstrations.rows:
        return {"rows": [], "designs": [], "titles": []}
    names = [reading.mark.label for reading in demonstrations.rows[0].readings]  # differences are counted behind them
    return {
        "rows": [token_table.details(row) for row in demonstrations.rows],
        "designs": names,
        "titles": token_table.TITLES,
    }


def sketches(curve: Curve) -> tuple[Sketch, ...]:
    """Every quantity of a design, small."""
    return tuple(_sketch(quantity, curve) for quantity in QUANTITIES)


def _sketch(quantity: Quantity, curve: Curve) -> Sketch:
    cut = CUT.get(quantity.key, (float("-inf"), float("inf")))
    pairs = [(point.p, quantity.read(point)) for point in curve.points]
    visible = [(p, value) for p, value in pairs if cut[0] <= value <= cut[1]]
    low, high = extent(value for _, value in visible)

    def height(value: float) -> float:
        return round(BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP), 1)

    def drawn(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{across(p)},{height(value)}" for p, value in points)

    read = DOTTED[quantity.key][1] if quantity.key in ("target", "others") else None
    return Sketch(
        quantity.key,
        curve=drawn(visible),
        plain=drawn([(p, quantity.plain(p)) for p in (0.0, 1.0)]),
        dotted=drawn([(p, read(p)) for p in (0.0, 1.0)]) if read else "",
        area=drawn([*visible, (1.0, 1.0), (0.0, 0.0)]) if quantity.key == "target" else "",
        zero=height(0.0),
        one=height(1.0),
        edges=tuple(_edges(curve)) if quantity.key in ("target", "others") else (),
        top=(round(high, 1), height(high)) if high >= 1.25 else None,
    )


def across(p: float) -> float:
    return round(LEFT + p * (RIGHT - LEFT), 1)


def _edges(curve: Curve) -> Iterator[tuple[float, float, str]]:
    for kind, overshooting in (("signed", False), ("overshot", True)):
        for start, end in curve.ranges(overshooting=overshooting):
            yield across(start), round(max(1.5, across(end) - across(start)), 1), kind
