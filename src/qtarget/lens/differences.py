"""A token under one design beside another: A − B of the targets, A/B of gradients and step sizes, and both in words."""

from __future__ import annotations

from dataclasses import dataclass

from qtarget.plot.looks import Mark

ALIKE = 0.005  # differences of probabilities below it are none, in words
STILL = 1e-9  # a gradient or step size of at most so much is 0, and nothing is divided by it


@dataclass(frozen=True)
class Alternative:
    """A token that could stand in another's place; p: its probability, or A's target of it minus B's."""

    text: str
    p: float


@dataclass(frozen=True)
class TokenDifference:
    """One token under a design A beside a design B.

    label: Q_A(y) − Q_B(y), of the induced Q = p − ∂L/∂z, which carries the step size.
    distance: ½·Σ_v |Q_A(v) − Q_B(v)|.
    gradient: A's −∂L/∂z(y) over B's; weight: w_A/w_B; each is None where B's is 0.
    largest: the other tokens v with the largest |Q_A(v) − Q_B(v)|.
    """

    label: float
    distance: float
    gradient: float | None
    weight: float | None
    largest: tuple[Alternative, ...] = ()

    @property
    def colour_value(self) -> float:
        """On the scale of trust, whose ends ±2 stand for differences of ±1 here."""
        return 2 * self.label

    def in_words(self, other: str) -> str:
        """`0.49 less on the label than sft, pulled 0.3 times as hard`. other: the name of B."""
        return f"{self._label_in_words(other)}, {self._gradient_in_words(other)}"

    def _label_in_words(self, other: str) -> str:
        if abs(self.label) < ALIKE:
            return f"as much on the label as {other}"
        return f"{abs(self.label):.2f} {'more' if self.label > 0 else 'less'} on the label than {other}"

    def _gradient_in_words(self, other: str) -> str:
        if self.gradient is None:
            return f"which {other} does not pull" if abs(self.label) > STILL else "which neither pulls"
        if abs(self.gradient) <= STILL:
            return f"which {other} alone pulls"
        way = "pulled" if self.gradient > 0 else "pulled the other way,"
        times = f"{abs(self.gradient):.2g}"
        return f"{way} {'' if times == '1' else f'{times} times '}as hard"


@dataclass(frozen=True)
class DesignDifference:
    """Design A beside B on the supervised tokens of a row, in order."""

    mark: Mark
    other: str
    tokens: tuple[TokenDifference, ...]

    @property
    def name(self) -> str:
        return f"{self.mark.label} − {self.other}"


def ratio(value: float, by: float) -> float | None:
    """value/by; None where nothing can be divided by it."""
    return value / by if abs(by) > STILL else None


def ratio_text(value: float | None) -> str:
    """`0.31`; a dash where there is no ratio."""
    return "–" if value is None else f"{value:.3g}"
