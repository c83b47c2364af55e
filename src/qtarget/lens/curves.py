"""What a design teaches, as curves: its target Q for one token of a small vocabulary, over the label's probability.

Every number comes out of `qtarget.dense_loss` as training calls it: Q = p − ∂L/∂z from autograd, trust, γ and w from
its statistics. The loss is called with one token at a time, so a design that compares tokens sees this one alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qtarget.math.loss import LossOutput, dense_loss
from qtarget.math.reference import Reference
from qtarget.math.scope_values import scoped_parts
from qtarget.math.target import Design, columns, needs, wants_support
from qtarget.plot.figures import Line, Panel
from qtarget.plot.looks import COLOURS, GREY, Mark, looks

LOW, HIGH, STEPS = 0.002, 0.998, 161  # the sweep of p(y), evenly spaced in log-odds
STOPS = {"unsure": 0.05, "in between": 0.3, "sure": 0.8}  # values of p(y) whose bars are shown; the sweep has them too
KEEP = 4  # likeliest tokens of a reference, for designs that need a top-k one
PROGRESS = 1.0  # of the training run: schedules stand at their end
ROUNDING = 1e-9  # entries of Q above −ROUNDING are no negative ones
AXIS = "probability of the label, p(y)"


# The world


@dataclass(frozen=True)
class World:
    """One token: the label "y" and its rivals, all distributions over `tokens`, the label first.

    rivals: how the policy shares out the mass that isn't on the label; it stays so while p(y) is swept.
    """

    tokens: tuple[str, ...]
    rivals: tuple[float, ...]
    prior: tuple[float, ...]
    teacher: tuple[float, ...]

    @classmethod
    def default(cls) -> World:
        """12 tokens; a prior that holds 25 % on the label, a teacher with 60 % there and 20 % on the rival c."""
        steep, flat = _decaying(0.70), _decaying(0.88)
        others = [0.20 * share for share in steep]
        others[RIVAL] += 0.20
        return cls(TOKENS, steep, (0.25, *(0.75 * share for share in flat)), (0.60, *others))

    def policy(self, p: float) -> tuple[float, ...]:
        """The policy's probabilities where the label has probability p."""
        return p, *((1 - p) * share for share in self.rivals)

    def references(self, keep: int | None) -> dict[str, Reference]:
        """Each role's reference, of which only the `keep` likeliest tokens count where that is a number."""
        rows = {"prior": self.prior, "teacher": self.teacher, "old": self.prior}
        whole = {role: Reference.full(_log(row)) for role, row in rows.items()}
        return whole if keep is None else {role: reference.truncated(keep) for role, reference in whole.items()}


TOKENS = ("y", *"abcdefghijk")
RIVAL = 2  # among the others: c


def _decaying(ratio: float) -> tuple[float, ...]:
    shares = [ratio**rank for rank in range(len(TOKENS) - 1)]
    return tuple(share / sum(shares) for share in shares)


def _log(row: Sequence[float]) -> Tensor:
    return torch.tensor([row], dtype=torch.float64).log()


def sweep() -> tuple[float, ...]:
    """The values of p(y) that curves are drawn through, rising."""
    low, high = (math.log(p / (1 - p)) for p in (LOW, HIGH))
    odds = (low + (high - low) * step / (STEPS - 1) for step in range(STEPS))
    return tuple(sorted({1 / (1 + math.exp(-value)) for value in odds} | set(STOPS.values())))


# A design in it


@dataclass(frozen=True)
class CurvePoint:
    """What a design makes of the token where the label has probability p.

    target: the induced Q = p − ∂L/∂z over the vocabulary; it carries the step size, so a w above 1 overshoots.
    loss and nll in nats.
    """

    p: float
    policy: tuple[float, ...]
    target: tuple[float, ...]
    reliance: float
    weight: float
    trust: float
    loss: float
    nll: float

    @property
    def pull(self) -> float:
        """−∂L/∂z_y = w·(Q_y − p_y) of the design's own Q."""
        return self.target[0] - self.policy[0]

    @property
    def negative(self) -> float:
        """Sum of the negative entries of Q; 0 where it is a distribution."""
        return sum(entry for entry in self.target if entry < -ROUNDING)

    @property
    def overshoots(self) -> bool:
        """Whether Q is negative somewhere only because w exceeds 1: p − (∂L/∂z)/w is a distribution."""
        step = abs(self.weight)
        own = (p + (q - p) / step if step else p for p, q in zip(self.policy, self.target, strict=True))
        return bool(self.negative) and min(own) >= -ROUNDING


@dataclass(frozen=True)
class Curve:
    """One design over the sweep. `parts`: γ, π̃ and w in words; `notes`: what to know when reading it."""

    mark: Mark
    formula: str
    parts: Mapping[str, str]
    points: tuple[CurvePoint, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.mark.label

    def at(self, p: float) -> CurvePoint:
        """The point of the sweep nearest to p."""
        return min(self.points, key=lambda point: abs(point.p - p))

    def values(self, quantity: Quantity) -> tuple[float, ...]:
        return tuple(quantity.read(point) for point in self.points)

    def ranges(self, *, overshooting: bool) -> tuple[tuple[float, float], ...]:
        """Ranges of p(y) in which Q has negative entries: because of a large step only, or for good."""
        ranges: list[tuple[float, float]] = []
        unbroken = False
        for point in self.points:
            inside = bool(point.negative) and point.overshoots == overshooting
            if inside:
                ranges.append((ranges.pop()[0] if unbroken else point.p, point.p))
            unbroken = inside
        return tuple(ranges)


def trace(design: Design, mark: Mark, formula: str, world: World | None = None) -> Curve:
    """The curve of one design. Raises QTargetError where it can't be run on such a token."""
    world = world or World.default()
    keep = KEEP if wants_support(design) else None
    points = tuple(measure(design, p, world, keep) for p in sweep())
    parts = {part: str(getattr(design, part, "–")) for part in ("reliance", "residual", "objective", "weight")}
    return Curve(mark, formula, parts, points, tuple(_notes(design, points, keep)))


def measure(design: Design, p: float, world: World, keep: int | None = None) -> CurvePoint:
    """One call of the loss, in fp64."""
    policy = world.policy(p)
    logits = _log(policy)[None].requires_grad_()  # [1, 1, V]
    out = _call(design, logits, world, keep)
    out.total.backward()
    assert logits.grad is not None
    target = torch.tensor(policy, dtype=torch.float64) - logits.grad[0, 0]
    scalars = {name: float(getattr(out, name)) for name in ("reliance", "weight", "trust", "loss", "nll")}
    return CurvePoint(p, policy, tuple(target.tolist()), **scalars)


def _call(design: Design, logits: Tensor, world: World, keep: int | None) -> LossOutput:
    rival = 1 + max(range(len(world.rivals)), key=world.rivals.__getitem__)
    return dense_loss(
        logits,
        torch.zeros(1, 1, dtype=torch.int64),
        design,
        references=world.references(keep),
        columns={name: torch.ones(1, 1, dtype=torch.float64) for name in columns(design)},
        negatives=torch.tensor([[[rival]]]),
        progress=PROGRESS,
    )


def _notes(design: Design, points: Sequence[CurvePoint], keep: int | None) -> Iterator[str]:
    scopes = {str(part.scope) for part in scoped_parts(design)}  # type: ignore[attr-defined]
    if scopes:
        yield f"compares the tokens of a {' and a '.join(sorted(scopes))}; here it sees this one alone"
    if keep is not None:
        yield f"sees the {keep} likeliest tokens of its references"
    if any(point.negative and not point.overshoots for point in points):
        yield "has negative entries in Q"
    if any(point.overshoots for point in points):
        yield "has negative entries in Q where its step size w takes it beyond its own target"
    for role in needs(design):
        yield f"reads the {role}"
    for name in sorted(columns(design)):
        yield f"reads the data column {name!r}, 1 here"


def marks(names: Sequence[str]) -> tuple[Mark, ...]:
    """One look for each design, the same as in every comparison."""
    chosen = looks(names)
    return tuple(Mark(index, name, *chosen[name]) for index, name in enumerate(names))


# What is plotted of it


@dataclass(frozen=True)
class Quantity:
    """One number of a point. `plain`: what it is for standard SFT at p(y)."""

    key: str
    title: str
    axis: str
    caption: str
    read: Callable[[CurvePoint], float]
    plain: Callable[[float], float]


QUANTITIES = (
    Quantity(
        "target",
        "Target of the label, Q(y)",
        "Q(y)",
        "Dotted: Q = p, where nothing is taught. The gap between a curve and the dotted line is the gradient: above it "
        "the label is pulled up, below it is pushed down. Plain SFT stays at 1.",
        lambda point: point.target[0],
        lambda p: 1.0,
    ),
    Quantity(
        "others",
        "Mass that Q puts on the other tokens",
        "Σ Q(v), v ≠ y",
        "Dotted: what the policy itself has there, 1 − p(y). Pale: the negative entries of Q alone, where it has some: "
        "such a design pushes tokens away instead of giving them a share.",
        lambda point: sum(point.target[1:]),
        lambda p: 0.0,
    ),
    Quantity(
        "pull",
        "Gradient on the label's logit",
        "−∂L/∂z(y)",
        "Dotted: plain SFT, 1 − p(y). Positive values raise the label's logit, negative ones lower it.",
        lambda point: point.pull,
        lambda p: 1 - p,
    ),
    Quantity(
        "trust",
        "Trust in the label",
        "trust (plain SFT = 1)",
        "The gradient on the label relative to plain SFT's: the quotient of the plot before. Cut off beyond −2 and 6: "
        "it has no bound as p(y) nears 1.",
        lambda point: point.trust,
        lambda p: 1.0,
    ),
    Quantity(
        "reliance",
        "Reliance γ",
        "γ",
        "The share of the target that stays on the observed token; beside a term of strength λ, γ/(γ + λ).",
        lambda point: point.reliance,
        lambda p: 1.0,
    ),
    Quantity(
        "weight",
        "Step size w",
        "w",
        "The factor on the token's whole gradient; where a term of strength λ stands beside the label's, w·(γ + λ).",
        lambda point: point.weight,
        lambda p: 1.0,
    ),
)
DIAGONAL = Mark(-1, "Q = p: nothing is taught", GREY, 0)
PLAIN = Mark(-2, "plain SFT", GREY, 0)
SHARE = Mark(-3, "the policy's own share", GREY, 0)
DOTTED: Mapping[str, tuple[Mark, Callable[[float], float]]] = {
    "target": (DIAGONAL, lambda p: p),
    "others": (SHARE, lambda p: 1 - p),
    "pull": (PLAIN, lambda p: 1 - p),
}
CUT = {"trust": (-2.0, 6.0), "reliance": (-math.inf, math.inf), "weight": (-math.inf, math.inf)}


def panels(curves: Sequence[Curve]) -> tuple[Panel, ...]:
    """Six plots, in each of them every design."""
    return tuple(_panel(quantity, curves) for quantity in QUANTITIES)


def _panel(quantity: Quantity, curves: Sequence[Curve]) -> Panel:
    pointed = len(curves) > len(COLOURS)  # colours come round again: markers tell them apart
    lines = [_line(curve.mark, quantity.axis, curve, quantity.read, pointed=pointed) for curve in curves]
    if quantity.key == "others":
        signed = [curve for curve in curves if any(point.negative for point in curve.points)]
        lines += [_line(c.mark, "negative entries", c, lambda point: point.negative, faint=True) for c in signed]
    if quantity.key in DOTTED and curves:
        mark, read = DOTTED[quantity.key]
        lines.append(_line(mark, quantity.axis, curves[0], lambda point: read(point.p), dash="dotted"))
    return Panel(
        quantity.key,
        quantity.title,
        AXIS,
        quantity.axis,
        quantity.caption,
        lines=tuple(lines),
        reference=1.0 if quantity.key in ("target", "trust") else None,
        span=_span(quantity, curves),
        x_span=(0.0, 1.0),
    )


def _span(quantity: Quantity, curves: Sequence[Curve]) -> tuple[float, float] | None:
    """At least from 0 to 1 for what is a constant in most designs; trust is cut off."""
    if quantity.key not in CUT:
        return None
    return shown_span((value for curve in curves for value in curve.values(quantity)), CUT[quantity.key])


def shown_span(values: Iterable[float], cut: tuple[float, float]) -> tuple[float, float]:
    """Of the axis of values: their extent, without those that are cut off, and a margin."""
    low, high = extent(value for value in values if cut[0] <= value <= cut[1])
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def _line(mark: Mark, metric: str, curve: Curve, read: Callable[[CurvePoint], float], **style: Any) -> Line:
    steps, values = zip(*((round(point.p, 4), round(read(point), 5)) for point in curve.points), strict=True)
    return Line(mark, metric, steps, values, at="p(y)", **style)


def bars(curves: Sequence[Curve], world: World) -> dict[str, Any]:
    """p and Q over the vocabulary at every point of the sweep, for the page's slider."""

    def short(row: Sequence[float]) -> list[float]:
        return [round(value, 4) for value in row]

    return {
        "tokens": world.tokens,
        "p": [round(p, 4) for p in sweep()],
        "policy": [short(world.policy(p)) for p in sweep()],
        "prior": short(world.prior),
        "teacher": short(world.teacher),
        "designs": [
            {
                "index": curve.mark.index,
                "colour": curve.mark.colour,
                "reach": extent(entry for point in curve.points for entry in point.target),
                "targets": [short(point.target) for point in curve.points],
            }
            for curve in curves
        ],
    }


def extent(values: Iterable[float]) -> tuple[float, float]:
    """From 0 to 1, or as far as the values go beyond."""
    shown = [0.0, 1.0, *values]
    return round(min(shown), 3), round(max(shown), 3)
