"""Curves of designs beside that of another design: A − B of the targets, A/B of gradients and step sizes over p(y)."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qtarget.lens.curves import AXIS, STOPS, Curve, CurvePoint, shown_span
from qtarget.lens.differences import TokenDifference, ratio
from qtarget.plot.figures import Line, Panel

CUT = (-2.0, 6.0)  # ratios beyond are out of view


@dataclass(frozen=True)
class CurveDifference:
    """Design A (`curve`) beside B (`other`), both over the same sweep of p(y)."""

    curve: Curve
    other: Curve

    @property
    def name(self) -> str:
        return f"{self.curve.name} − {self.other.name}"

    @cached_property
    def targets(self) -> tuple[tuple[float, ...], ...]:
        """Q_A − Q_B over the vocabulary, at every point of the sweep."""
        pairs = zip(self.curve.points, self.other.points, strict=True)
        return tuple(_target_difference(own, others) for own, others in pairs)

    @cached_property
    def points(self) -> tuple[TokenDifference, ...]:
        pairs = zip(self.curve.points, self.other.points, strict=True)
        return tuple(_difference(own, others) for own, others in pairs)

    def at(self, p: float) -> TokenDifference:
        """At the point of the sweep nearest to p."""
        return _difference(self.curve.at(p), self.other.at(p))

    def bars(self) -> dict[str, Any]:
        """Q_A − Q_B over the vocabulary, for the page's slider."""
        reach = max(1.0, *(abs(entry) for row in self.targets for entry in row))
        rows = [[round(entry, 4) for entry in row] for row in self.targets]
        return {"colour": self.curve.mark.colour, "reach": (-round(reach, 3), round(reach, 3)), "targets": rows}


def _target_difference(own: CurvePoint, other: CurvePoint) -> tuple[float, ...]:
    return tuple(a - b for a, b in zip(own.target, other.target, strict=True))


def _difference(own: CurvePoint, other: CurvePoint) -> TokenDifference:
    target = _target_difference(own, other)
    return TokenDifference(
        label=target[0],
        distance=sum(map(abs, target)) / 2,
        gradient=ratio(own.pull, other.pull),
        weight=ratio(own.weight, other.weight),
    )


@dataclass(frozen=True)
class ComparedQuantity:
    """One number of a difference. same: its value where A is B."""

    key: str
    title: str
    axis: str
    caption: str
    same: float
    read: Callable[[TokenDifference], float | None]


def quantities(other: str) -> tuple[ComparedQuantity, ...]:
    """What is plotted of differences to the design named."""
    return (
        ComparedQuantity(
            "against-label",
            f"Target of the label, minus that of {other}",
            "Q(y) − its Q(y)",
            f"Above 0 a design's target puts more on the label than {other}'s, below 0 less.",
            0.0,
            lambda point: point.label,
        ),
        ComparedQuantity(
            "against-distance",
            f"Distance of the target from that of {other}",
            "½ Σ |Q(v) − its Q(v)|",
            "Total variation over the whole vocabulary: 0 where both teach the same, 1 where they share nothing.",
            0.0,
            lambda point: point.distance,
        ),
        ComparedQuantity(
            "against-gradient",
            f"Gradient on the label's logit, over that of {other}",
            "ratio of −∂L/∂z(y)",
            f"1: as hard as {other}; above 1 harder, between 0 and 1 softer, below 0 the other way. Cut off beyond −2 "
            f"and 6; no line where {other} does not pull.",
            1.0,
            lambda point: point.gradient,
        ),
        ComparedQuantity(
            "against-weight",
            f"Step size w, over that of {other}",
            "ratio of w",
            f"1: steps as large as {other}'s; above 1 larger, below 1 smaller. Cut off beyond −2 and 6.",
            1.0,
            lambda point: point.weight,
        ),
    )


def difference_panels(differences: Sequence[CurveDifference]) -> tuple[Panel, ...]:
    """Four plots, in each of them every design but that which the others are set against."""
    return tuple(_panel(quantity, differences) for quantity in quantities(differences[0].other.name))


def _panel(quantity: ComparedQuantity, differences: Sequence[CurveDifference]) -> Panel:
    lines = tuple(_line(quantity, difference) for difference in differences)
    return Panel(
        quantity.key,
        quantity.title,
        AXIS,
        quantity.axis,
        quantity.caption,
        lines=lines,
        reference=quantity.same,
        span=shown_span((value for line in lines for value in line.values), CUT),
        x_span=(0.0, 1.0),
    )


def _line(quantity: ComparedQuantity, difference: CurveDifference) -> Line:
    pairs = ((point.p, quantity.read(at)) for point, at in zip(difference.curve.points, difference.points, strict=True))
    known = [(round(p, 4), round(value, 5)) for p, value in pairs if value is not None]
    steps, values = tuple(p for p, _ in known), tuple(value for _, value in known)
    return Line(difference.curve.mark, quantity.axis, steps, values, at="p(y)")


def draw_differences(differences: Sequence[CurveDifference], path: Path) -> None:
    """The four plots, and below them what each design says at three values of p(y), in words."""
    from qtarget.plot.drawing import draw_panel, picture, plain

    most = differences[:MOST_WORDS]
    with picture(path, (14.0, 10.4 + LINES * len(most))) as figure:
        plots, words = figure.subfigures(2, 1, squeeze=False, height_ratios=(10.4, LINES * len(most))).flat
        for axes, panel in zip(plots.subplots(2, 2).flat, difference_panels(differences), strict=True):
            draw_panel(axes, panel)
        for place, difference in enumerate(most):
            text = textwrap.fill(f"{difference.name}: {stops_in_words(difference)}", 190)
            colour = difference.curve.mark.colour
            words.text(0.02, 1 - (place + 0.5) / len(most), plain(text), va="center", fontsize=9.5, color=colour)


LINES = 0.5  # inches that two lines of text take
MOST_WORDS = 6  # designs in the picture's text; the page's table has them all


def stops_in_words(difference: CurveDifference) -> str:
    """`at p(y) = 0.05: 0.90 less on the label than sft, pulled 0.05 times as hard; …`"""
    other = difference.other.name
    return "; ".join(f"at p(y) = {p:g}: {difference.at(p).in_words(other)}" for p in STOPS.values())
