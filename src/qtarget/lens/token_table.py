"""Demonstrations token by token, and what each design makes of every supervised token."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qtarget.lens.differences import Alternative, DesignDifference, TokenDifference, ratio_text
from qtarget.measures import MEASURES
from qtarget.plot.drawing import PNG_DPI, picture, plain
from qtarget.plot.looks import Mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLIP = 2.0  # trust beyond ±CLIP is coloured as ±CLIP
UP, DOWN = "#0077bb", "#cc3311"  # pulled up, pushed down
DEEPEST = 0.66  # opacity at ±CLIP: text stays readable on it
INDENT, WIDTH = 22, 96  # characters of a line in the picture: for the design's name, and for what it reads
ADVANCE, LINE = 8 / PNG_DPI, 0.205  # inches from letter to letter, whole pixels as they are drawn, and line to line
FONT = 72 * ADVANCE * 2048 / 1233  # points: matplotlib's own monospace letters are 1233/2048 of its size wide
NAME = 27  # characters of a name in the margin, which is set smaller
MOST_LINES = 260  # in the picture; the page has them all


@dataclass(frozen=True)
class Token:
    """One token of a demonstration. What follows `wrong` is known of supervised tokens only.

    p and prior are probabilities of this very token, nll in nats; prior is None where the run has none.
    """

    text: str
    supervised: bool
    wrong: bool = False
    p: float = 0.0
    prior: float | None = None
    nll: float = 0.0
    alternatives: tuple[Alternative, ...] = ()


LENS_MEASURES = tuple(measure.name for measure in MEASURES if measure.in_lens)
"""The measures that are shown of a design at a token."""
TITLES = tuple(measure.title for measure in MEASURES if measure.in_lens)
TRUST = LENS_MEASURES.index("trust")


@dataclass(frozen=True)
class Pull:
    """What a design makes of one supervised token: the value of each of `LENS_MEASURES`."""

    values: tuple[float, ...]

    @property
    def trust(self) -> float:
        return self.values[TRUST]

    @property
    def colour_value(self) -> float:
        """What a token is coloured by."""
        return self.trust


Value = TypeVar("Value", Pull, TokenDifference)


@dataclass(frozen=True)
class DesignReading:
    """One design's pulls on the supervised tokens of a row, in order."""

    mark: Mark
    pulls: tuple[Pull, ...]


@dataclass(frozen=True)
class TokenRow:
    """One demonstration, every design's reading of it, and their differences to the design they are set against."""

    number: int
    tokens: tuple[Token, ...]
    readings: tuple[DesignReading, ...]
    differences: tuple[DesignDifference, ...] = ()

    @property
    def prompt(self) -> str:
        """The text before the first supervised token."""
        return "".join(token.text for token in self.tokens[: self.start])

    @property
    def start(self) -> int:
        return next((index for index, token in enumerate(self.tokens) if token.supervised), len(self.tokens))

    @property
    def supervised(self) -> tuple[Token, ...]:
        return tuple(token for token in self.tokens if token.supervised)

    @property
    def wrong(self) -> int:
        return sum(token.wrong for token in self.supervised)

    @property
    def wrong_text(self) -> str:
        """How many tokens noise made wrong, in words."""
        return f"{self.wrong} token{'s' * (self.wrong != 1)} made wrong"

    def spans(self, values: Sequence[Value]) -> Iterator[tuple[Token, Value | None]]:
        """The tokens from the first supervised one on, each with its value; text between two replies has none.

        values: of the supervised tokens, in order: a reading's pulls, or a design's differences.
        """
        left = iter(values)
        for token in self.tokens[self.start :]:
            yield token, next(left) if token.supervised else None


@dataclass(frozen=True)
class Demonstrations:
    """Rows read by a model; `left_out`: designs that can't be run here, and why."""

    model: str
    rows: tuple[TokenRow, ...]
    left_out: tuple[tuple[str, str], ...] = ()


def trust_text(reading: DesignReading, row: TokenRow) -> str:
    """The mean trust of a row in words, wrong tokens apart: `mean trust 0.71 on right tokens, 0.12 on wrong ones`."""
    return f"mean trust {_means_in_words([pull.trust for pull in reading.pulls], row)}"


def difference_text(difference: DesignDifference, row: TokenRow) -> str:
    """The same of Q_A(y) − Q_B(y): `mean difference of Q(y) 0.01 on right tokens, -0.40 on wrong ones`."""
    return f"mean difference of Q(y) {_means_in_words([token.label for token in difference.tokens], row)}"


def _means_in_words(values: Sequence[float], row: TokenRow) -> str:
    means = {"right tokens": _mean(values, row, wrong=False), "wrong ones": _mean(values, row, wrong=True)}
    return ", ".join(f"{value + 0.0:.2f} on {kind}" for kind, value in means.items() if value is not None)


def _mean(values: Sequence[float], row: TokenRow, *, wrong: bool) -> float | None:
    """Over the tokens of a row that are wrong, or right, to 2 digits; None where there are none."""
    chosen = [value for token, value in zip(row.supervised, values, strict=True) if token.wrong == wrong]
    return round(sum(chosen) / len(chosen), 2) if chosen else None


def shade(trust: float) -> tuple[str, float]:
    """Colour and opacity of a token: blue where it is pulled up, red where it is pushed down, none at 0."""
    depth = min(abs(trust), CLIP) / CLIP
    return (UP if trust >= 0 else DOWN), round(DEEPEST * depth, 3)


def css_shade(trust: float) -> str:
    """The same as a colour that style sheets understand."""
    colour, depth = shade(trust)
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgb({red} {green} {blue} / {depth})"


def visible(text: str) -> str:
    """A token's text with line breaks, tabs and emptiness made visible."""
    return text.replace("\r", "␍").replace("\n", "↵\n").replace("\t", "⇥") or "∅"


def quoted(text: str) -> str:
    """A token's text inside a sentence: spaces are made visible too."""
    return visible(text).replace("\n", "").replace(" ", "␣")


def details(row: TokenRow) -> list[dict[str, Any]]:
    """What the page says of each supervised token of a row, design by design."""
    return [
        {
            "text": quoted(token.text),
            "wrong": token.wrong,
            "p": token.p,
            "prior": token.prior,
            "nll": token.nll,
            "alternatives": [{"text": quoted(other.text), "p": other.p} for other in token.alternatives],
            "pulls": [list(reading.pulls[index].values) for reading in row.readings],
            "differences": [_difference_lines(difference, index) for difference in row.differences],
        }
        for index, token in enumerate(row.supervised)
    ]


def _difference_lines(difference: DesignDifference, index: int) -> list[str]:
    """What the page says of a token of which two designs make different things."""
    token, other = difference.tokens[index], difference.other
    largest = " · ".join(f"{quoted(one.text)} {one.p:+.2g}" for one in token.largest)
    return [
        f"{difference.name}: {token.in_words(other)}",
        f"Q(y) {token.label:+.3g} · ½Σ|Q − Q| {token.distance:.3g}",
        f"gradient × {ratio_text(token.gradient)} · w × {ratio_text(token.weight)}",
        f"others: {largest}",
    ]


# The PNG


@dataclass(frozen=True)
class Cell:
    """A piece of text in the picture, at a column of letters and a line."""

    column: int
    line: int
    text: str
    token: Token | None = None
    value: Pull | TokenDifference | None = None


def draw_tokens(shown: Demonstrations, path: Path) -> None:
    """Every row, and under its prompt a coloured line per design."""
    blocks = list(_blocks(shown))
    lines = min(MOST_LINES, math.ceil(sum(height for _, height in blocks)) + 2)
    with picture(path, (ADVANCE * (INDENT + WIDTH + 4), LINE * (lines + 3)), arranged=False) as figure:
        axes = figure.add_axes((0, 0, 1, 1))  # a unit is a letter, or a line
        axes.set_xlim(-2, INDENT + WIDTH + 2)
        axes.set_ylim(lines + 1.5, -1.5)
        axes.axis("off")
        _draw_scale(axes, with_differences=any(row.differences for row in shown.rows))
        top = 2.0
        for draw, height in blocks:
            if top + height > lines + 1:
                axes.text(0, lines, "… the page has the rest", fontsize=8, color="#666666", va="center")
                break
            draw(axes, top)
            top += height


def _blocks(shown: Demonstrations) -> Iterator[tuple[Any, float]]:
    """(how to draw it from a line on, lines it takes), from top to bottom."""
    for row in shown.rows:
        yield _text(f"row {row.number}" + (f": {row.wrong_text}" if row.wrong else ""), bold=True), 1
        for line in _wrapped(row.prompt):
            yield _text(line), 1
        for reading in row.readings:
            yield _coloured_line(reading.mark.label, reading.mark, list(_cells(row, reading.pulls)))
        for difference in row.differences:
            yield _coloured_line(difference.name, difference.mark, list(_cells(row, difference.tokens)))
        yield _text(""), 1


def _wrapped(text: str) -> list[str]:
    return [line for part in text.splitlines() for line in textwrap.wrap(part, INDENT + WIDTH) or [""]]


def _cells(row: TokenRow, values: Sequence[Value]) -> Iterator[Cell]:
    """Tokens set one after the other, in lines of WIDTH."""
    column = line = 0
    for token, value in row.spans(values):
        text = visible(token.text)
        for count, part in enumerate(text.split("\n")):
            if count:
                column, line = 0, line + 1
            for start in range(0, len(part), WIDTH):
                piece = part[start : start + WIDTH]
                if column + len(piece) > WIDTH:
                    column, line = 0, line + 1
                yield Cell(column, line, piece, token, value)
                column += len(piece)


def _text(text: str, *, bold: bool = False) -> Any:
    def draw(axes: Axes, top: float) -> None:
        weight, colour = ("bold", "#222222") if bold else ("normal", "#888888")
        axes.text(0, top, plain(text), fontsize=FONT, color=colour, weight=weight, va="center", family="monospace")

    return draw


def _coloured_line(name: str, mark: Mark, cells: Sequence[Cell]) -> tuple[Any, float]:
    """How it is drawn, and the lines it takes. A name too long for the margin is cut there."""

    def draw(axes: Axes, top: float) -> None:
        axes.text(0, top + 0.3, plain(_short(name)), fontsize=8, color=mark.colour, weight="bold", va="center")
        for cell in cells:
            _draw_cell(axes, cell, top + 0.3 + cell.line)

    return draw, 1.3 + max((cell.line for cell in cells), default=0)


def _short(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"


def _draw_cell(axes: Axes, cell: Cell, line: float) -> None:
    from matplotlib.patches import Rectangle

    left, width = INDENT + cell.column, len(cell.text)
    corner = (left, line - 0.46)
    if cell.value is not None:
        colour, depth = shade(cell.value.colour_value)
        axes.add_patch(Rectangle(corner, width, 0.92, facecolor=colour, alpha=depth, linewidth=0))
    if cell.token is not None and cell.token.wrong:
        axes.add_patch(Rectangle(corner, width, 0.92, fill=False, edgecolor="#222222", linewidth=1.1))
    ink = "#111111" if cell.value is not None else "#888888"
    if cell.text.isascii():
        _write(axes, (left, line), cell.text, ink, "left")
    else:
        for offset, letter in enumerate(cell.text):  # a fallback font has widths of its own
            _write(axes, (left + offset + 0.5, line), letter, ink, "center")


def _write(axes: Axes, point: tuple[float, float], text: str, ink: str, anchor: str) -> None:
    shown = text.replace("$", r"\$")
    axes.text(*point, shown, fontsize=FONT, color=ink, ha=anchor, va="center_baseline", family="monospace")


def _draw_scale(axes: Axes, *, with_differences: bool) -> None:
    """What the colours mean."""
    from matplotlib.patches import Rectangle

    steps = 75
    for step in range(steps):
        colour, depth = shade(-CLIP + 2 * CLIP * (step + 0.5) / steps)
        axes.add_patch(Rectangle((step * 0.6, -0.4), 0.6, 0.8, facecolor=colour, alpha=depth, linewidth=0))
    labels = {-CLIP: f"≤ −{CLIP:g}", 0.0: "0", 1.0: "1: plain SFT", CLIP: f"≥ {CLIP:g}"}
    for value, text in labels.items():
        x = 0.6 * steps * (value + CLIP) / (2 * CLIP)
        anchor = {-CLIP: "left", CLIP: "left"}.get(value, "center")
        axes.text(x, 0.95, text, fontsize=7.5, color="#555555", ha=anchor, va="center")
    text = "trust in each token; made wrong: outlined"
    text += "\nA − B: Q(y) of A minus that of B, −1 red to 1 blue" if with_differences else ""
    axes.text(0.6 * steps + 7, 0, text, fontsize=9, color="#222222", va="center")
