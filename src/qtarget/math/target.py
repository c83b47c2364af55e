"""The target distribution Q of a token, and the ways a design composes one from its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qtarget import checks
from qtarget.errors import QTargetError
from qtarget.math.distribution import dot, finite
from qtarget.math.reference import DETAILS
from qtarget.math.schedule import Scalar, scalar, written
from qtarget.math.scope_values import parts
from qtarget.math.view import TokenView

Reliance = Callable[[TokenView], Tensor]  # → γ [n]
Residual = Callable[[TokenView], Tensor | None]  # → unnormalised log π̃ [n, V], or None for the policy itself
Weight = Callable[[TokenView], Tensor]  # → w [n]
Objective = Callable[[Tensor, TokenView], Tensor]  # (logp with a graph [n, V], view) → loss [n]
Design = Callable[[TokenView], "Target | InducedTarget"]

NORMALIZERS = ("tokens", "kept", "weight_sum", "sequences")
"""What the loss of an optimizer step is divided by: all its supervised tokens; those that are pulled at all; the sum of
their weights; or, each sequence's mean counting the same, the number of sequences."""
ROOM = 1e-6
"""Least 1 − p_y that trust divides by."""


@dataclass(frozen=True)
class Target:
    """Q = label_mass·δ(y) + Σ_j mass_j·π_j, and the step size w.

    Its total mass m = label_mass + Σ_j mass_j need not be 1: ∂loss/∂logits = w·(m·p − Q), the w·(p − Q) of a
    distribution where it is.

    `parts` holds (mass [n], log π_j [n, V]) pairs, π_j normalised. The policy's own distribution is never among them:
    as a residual it adds p − p = 0 to the gradient and nothing to the value, so what it holds is simply not pulled.
    """

    label_mass: Tensor
    parts: tuple[tuple[Tensor, Tensor], ...]
    weight: Tensor

    @property
    def mass(self) -> Tensor:
        """w·(the positive masses of Q) [n]: what `normalize=weight_sum` adds up; 0 where a token isn't pulled."""
        total = self.label_mass
        for mass, _ in self.parts:
            total = total + mass.clamp_min(0)
        return self.weight * total

    def value(self, view: TokenView) -> Tensor:
        """w·CE(Q, p) [n] in nats: w·(label_mass·(−log p_y) + Σ_j mass_j·CE(π_j, p))."""
        total = -self.label_mass * view.label_logp
        for mass, log_part in self.parts:
            total = total + mass * _cross_entropy(log_part, view.logp)
        return self.weight * total

    def gradient(self, view: TokenView) -> Tensor:
        """∂/∂logits [n, V]: w·(label_mass·(p − δ) + Σ_j mass_j·(p − π_j)).

        Each difference is taken before it is scaled: p − Q formed from a finished Q loses its digits near the prior,
        the state every run starts in.
        """
        step = (self.weight * self.label_mass)[:, None]
        grad = view.policy.p * step
        grad.scatter_add_(1, view.labels[:, None], -step)
        for mass, log_part in self.parts:
            grad.addcmul_(view.policy.p - log_part.exp(), (self.weight * mass)[:, None])
        return grad

    def trust(self, view: TokenView) -> Tensor:
        """w·(Q_y − m·p_y)/(1 − p_y) [n]: how hard the label is pulled relative to plain SFT (1 for SFT itself).

        The same for every spelling of a method. Where p_y rounds to 1 the label has nothing left to gain, and the
        parts' share of the quotient is left out.
        """
        room = -torch.expm1(view.label_logp)
        pull = self.label_mass
        for mass, log_part in self.parts:
            gain = log_part.gather(1, view.labels[:, None]).squeeze(1).exp() - view.label_logp.exp()
            pull = pull + torch.where(room > ROOM, mass * gain / room.clamp_min(ROOM), 0.0)
        return self.weight * pull

    def distances(self, view: TokenView, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Total variation ½‖p − Q‖₁ and KL(Q‖p) [n], given the gradient; where only the label is pulled, in O(n)."""
        if self.parts:
            return _distances(view, gradient, self.weight)
        kept, room = 1 - self.label_mass, -torch.expm1(view.label_logp)
        at_label = self.label_mass + kept * view.label_logp.exp()
        kl = torch.xlogy(kept * room, kept) + torch.xlogy(at_label, at_label) - at_label * view.label_logp
        return self.label_mass * room, kl


@dataclass(frozen=True)
class InducedTarget:
    """Q = p − ∂L/∂z of a loss that is no cross-entropy with a fixed Q; the step size stands beside it.

    loss [n]: L in nats. pull [n, V]: ∂L/∂z, of which `objective_pull` [n] is the objective's share at the label.
    label_mass and weight [n] say how the loss was put together; its true pull on the label is `trust`. objective_mass
    [n]: Σ_v Q_v of the objective, None where its Q sums to 1, as any divergence's does.
    """

    loss: Tensor
    pull: Tensor
    objective_pull: Tensor
    label_mass: Tensor
    weight: Tensor
    objective_mass: Tensor | None = None

    @property
    def mass(self) -> Tensor:
        """w·(label_mass + (1 − label_mass)·objective_mass) [n], as of Target."""
        if self.objective_mass is None:
            return self.weight
        return self.weight * (self.label_mass + (1 - self.label_mass) * self.objective_mass)

    def value(self, view: TokenView) -> Tensor:
        """L [n]: the published objective itself."""
        return self.loss

    def gradient(self, view: TokenView) -> Tensor:
        """∂L/∂logits [n, V]."""
        return self.pull

    def trust(self, view: TokenView) -> Tensor:
        """−∂L/∂z_y/(1 − p_y) [n], as of Target: the label's own term exactly, the objective's where there is room."""
        room = -torch.expm1(view.label_logp)
        rest = torch.where(room > ROOM, self.objective_pull / room.clamp_min(ROOM), 0.0)
        return self.weight * self.label_mass - rest

    def distances(self, view: TokenView, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Total variation ½‖p − Q‖₁ and KL(Q‖p) [n], step size aside."""
        return _distances(view, gradient, self.weight)


@dataclass(frozen=True)
class Mixture:
    """Q_t = γ_t·δ(y_t) + (1 − γ_t)·π̃_t with step size w_t (arXiv 2606.11189): the shape of almost every method."""

    reliance: Reliance
    residual: Residual
    weight: Weight
    normalize: str = "tokens"

    def __post_init__(self) -> None:
        checks.choice("normalize", self.normalize, NORMALIZERS)

    @property
    def rest(self) -> str:
        """What stands beside the label, in words."""
        return str(self.residual)

    def __call__(self, view: TokenView) -> Target:
        return _mixed(per_token(self.reliance, view), self.residual(view), per_token(self.weight, view))


@dataclass(frozen=True)
class Anchored:
    """L = w·(γ·CE(δ_y, p) + λ·CE(π̃, p)): a label term, and an anchor of its own strength λ = `anchor` beside it.

    As a target: Q = (γ·δ + λ·π̃)/(γ + λ) with step size w·(γ + λ). SFT + λ·KL(π_0‖p) and ASFT (arXiv 2509.23753).
    """

    reliance: Reliance
    residual: Residual
    weight: Weight
    anchor: Scalar = 0.1
    normalize: str = "tokens"

    def __post_init__(self) -> None:
        scalar("anchor", self.anchor, 0)
        checks.choice("normalize", self.normalize, NORMALIZERS)

    @property
    def rest(self) -> str:
        """What stands beside the label, in words."""
        return f"+ {written(self.anchor)}·CE({self.residual}, p)"

    def __call__(self, view: TokenView) -> Target:
        share, weight = _shares(per_token(self.reliance, view), view.at(self.anchor), per_token(self.weight, view))
        return _mixed(share, self.residual(view), weight)


@dataclass(frozen=True)
class Signed:
    """L = −w·γ·Σ_v q_v·h_v·(log p_y − log p_v): the label against each rival v, drawn from the residual q.

    h = 1 ("linear") or σ(0.01·(z_v − z_y)) ("logsigmoid"), neither differentiated. With C = Σ q·h this
    is step size w·C and Q = p + γ·(δ − q·h/C), which may have negative entries. GEM (arXiv 2408.16673): q ∝ p^{1/β}.
    """

    reliance: Reliance
    residual: Residual
    weight: Weight
    h: str = "linear"
    normalize: str = "tokens"

    def __post_init__(self) -> None:
        checks.choice("h", self.h, ("linear", "logsigmoid"))
        checks.choice("normalize", self.normalize, NORMALIZERS)

    @property
    def rest(self) -> str:
        """What stands beside the label, in words."""
        return f"against {self.residual}" + ("" if self.h == "linear" else f", h={self.h}")

    def __call__(self, view: TokenView) -> Target:
        reliance, weight = per_token(self.reliance, view), per_token(self.weight, view)
        log_residual = self.residual(view)
        log_rivals = torch.log_softmax(view.logp if log_residual is None else log_residual, dim=-1)
        if self.h == "logsigmoid":
            margin = 0.01 * (view.logp - view.label_logp[:, None])
            log_rivals = log_rivals + torch.nn.functional.logsigmoid(margin)
        log_mass = log_rivals.logsumexp(-1, keepdim=True)
        parts = ((-reliance, log_rivals - log_mass),)
        return Target(label_mass=reliance, parts=parts, weight=weight * log_mass.squeeze(1).exp())


@dataclass(frozen=True)
class Induced:
    """L = w·(γ·(−log p_y) + λ·D(p)) with λ = `strength` and D any differentiable objective.

    `objective(logp, view) → [n]` is differentiated inside the chunk: logp [n, V] carries a graph, whatever `view` holds
    doesn't. What D teaches is its induced target Q = p − ∂D/∂z. An objective that is a cross-entropy of another mass
    than 1 says so by a method `mass(view) → [n]`.
    """

    reliance: Reliance
    objective: Objective
    weight: Weight
    strength: Scalar = 1.0
    normalize: str = "tokens"

    def __post_init__(self) -> None:
        scalar("strength", self.strength, 0)
        checks.choice("normalize", self.normalize, NORMALIZERS)

    @property
    def rest(self) -> str:
        """What stands beside the label, in words."""
        return f"+ {written(self.strength)}·{self.objective}"

    def __call__(self, view: TokenView) -> InducedTarget:
        strength = view.at(self.strength)
        share, weight = _shares(per_token(self.reliance, view), strength, per_token(self.weight, view))
        label = Target(label_mass=share, parts=(), weight=weight)
        step = weight * (1 - share)
        loss, pull = differentiate(lambda logits: self.objective(torch.log_softmax(logits, dim=-1), view), view.logp)
        pull = pull.mul(step[:, None])
        mass = getattr(self.objective, "mass", None)
        return InducedTarget(
            loss=label.value(view) + step * loss,
            objective_pull=pull.gather(1, view.labels[:, None]).squeeze(1),
            pull=label.gradient(view).add_(pull),
            label_mass=share,
            weight=weight,
            objective_mass=mass(view) if mass else None,
        )


def per_token(part: Reliance | Weight, view: TokenView) -> Tensor:
    """What a part says of the tokens of a view. Raises QTargetError where that isn't a number per token."""
    values = part(view)
    if not isinstance(values, Tensor) or values.shape != view.labels.shape:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise QTargetError(f"{part} returns a number per token, [{len(view.labels)}]; got {got}")
    return values


def _mixed(share: Tensor, log_residual: Tensor | None, weight: Tensor) -> Target:
    """share·δ + (1 − share)·π̃; without a residual the rest stays with the policy."""
    parts = () if log_residual is None else ((1 - share, torch.log_softmax(log_residual, dim=-1)),)
    return Target(label_mass=share, parts=parts, weight=weight)


def _shares(reliance: Tensor, strength: float, weight: Tensor) -> tuple[Tensor, Tensor]:
    """w·(γ·… + λ·…) as a share γ/(γ + λ) of the label and a step size w·(γ + λ)."""
    total = reliance + strength
    return reliance / total.clamp_min(torch.finfo(total.dtype).tiny), weight * total


def differentiate(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Value [n] and gradient [n, V] of a loss that treats each of n rows of logits by itself."""

    def summed(leaf: Tensor) -> tuple[Tensor, Tensor]:
        value = loss(leaf)
        if value.shape != logits.shape[:1]:
            raise QTargetError(f"an objective returns a loss per token, [{len(logits)}]; got {tuple(value.shape)}")
        if not value.requires_grad:
            raise QTargetError("the objective has no gradient with respect to logp: is everything in it detached?")
        return value.sum(), value

    gradient, value = torch.func.grad(summed, has_aux=True)(logits)  # torch.compile traces this, not autograd.grad
    return value, gradient


def needs(design: object) -> dict[str, str]:
    """Role → the detail that a design and its parts look at together: "label", "topk" or "full"."""
    merged: dict[str, str] = {}
    for part in parts(design):
        declared: Mapping[str, str] = getattr(part, "needs", {})
        for role, detail in declared.items():
            merged[role] = max(detail, merged.get(role, detail), key=DETAILS.index)
    return merged


def check_references(design: object, held: Mapping[str, str], tails: Mapping[str, str]) -> None:
    """Raise QTargetError where a part needs a role that isn't held (role → detail), or more or other than is.

    tails: role → tail rule, of the roles held as a top k.
    """
    for part in parts(design):
        declared: Mapping[str, str] = getattr(part, "needs", {})
        for role, detail in declared.items():
            enough = DETAILS[DETAILS.index(detail) :]
            if held.get(role) not in enough:
                name = type(part).__name__.lower()
                raise QTargetError(f"{name} needs {role}: {' or '.join(enough)}; got {held.get(role, 'none')}")
            if tails.get(role) == "renormalised" and getattr(part, "wants_full_support", False):
                raise QTargetError(
                    f"this target's divergence is infinite where the {role} has no probability, and tail=renormalised "
                    f"leaves it none outside its top k: set references.{role}.tail=bucket or uniform"
                )
            if getattr(part, "wants_support", False) and held[role] != "topk":
                raise QTargetError(
                    f"this target compares the tokens that a top-k {role} kept, and this {role} holds all of them: set "
                    f"references.{role}.topk=50, or take target=kd"
                )


def columns(design: object) -> set[str]:
    """The data columns that a design looks at."""
    return {name for part in parts(design) for name in getattr(part, "columns", ())}


def wants_support(design: object) -> bool:
    """Whether a design compares only the tokens that a top-k reference kept, and refuses a whole one."""
    return any(getattr(part, "wants_support", False) for part in parts(design))


def wants_negatives(design: object) -> bool:
    """Whether a design looks at the negatives of a token (its earlier tokens, unless others are given)."""
    return any(getattr(part, "wants_negatives", False) for part in parts(design))


def _distances(view: TokenView, gradient: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """½‖p − Q‖₁ and KL(Q‖p) [n] of Q = p − gradient/w; the second is NaN where Q has negative entries."""
    step = weight.abs().clamp_min(torch.finfo(gradient.dtype).tiny)
    gap = 0.5 * torch.linalg.vector_norm(gradient, ord=1, dim=-1) / step
    target = torch.addcdiv(view.policy.p, gradient, -step[:, None])
    signed = target.amin(-1) < -1e-5  # beyond what rounding leaves below zero
    log_target = target.clamp_min_(0).log().clamp_min_(-1e30)
    kl = dot(target, log_target.sub_(finite(view.logp)))
    return gap, kl.masked_fill(signed, torch.nan)


def _cross_entropy(log_part: Tensor, logp: Tensor) -> Tensor:
    """−Σ_v π_v log p_v [n]. Rows that are −∞ on both sides (padded vocabulary) add nothing."""
    return -dot(log_part.exp(), finite(logp))


def divisor_part(mass: Tensor, normalize: str) -> Tensor:
    """What some tokens add to the divisor of their step [], from their `mass` [N]; normalize is kept or weight_sum."""
    return (mass > 0).to(mass).sum() if normalize == "kept" else mass.sum()
