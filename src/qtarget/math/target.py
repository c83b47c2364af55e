"""The target distribution Q of a token, and the ways a design composes one from its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass

import torch
from torch import Tensor

from qtarget.choices import SAMPLED
from qtarget.errors import QTargetError
from qtarget.math.distribution import dot, lazy
from qtarget.math.reference import DETAILS
from qtarget.math.schedule import Scalar, Scheduled, written
from qtarget.math.scope_values import design_parts
from qtarget.math.view import TokenView
from qtarget.settings import Checked, Choice, Option, setting

Reliance = Callable[[TokenView], Tensor]  # → γ [n]
Residual = Callable[[TokenView], Tensor | None]  # → unnormalised log π̃ [n, V], or None for the policy: π̃ = p
Weight = Callable[[TokenView], Tensor]  # → w [n]
Objective = Callable[[Tensor, TokenView], Tensor]  # (logp with a graph [n, V], view) → loss [n]
Design = Callable[[TokenView], "Target | InducedTarget"]

NORMALIZERS = ("tokens", "kept", "weight_sum", "sequences")
"""What the loss of an optimizer step is divided by.

tokens: all its supervised tokens. kept: those with mass > 0. weight_sum: the sum of their masses. sequences: each
sequence by its own tokens, and the sum by the number of sequences.
"""
ROOM = 1e-6
"""Least 1 − p_y that trust divides by."""


@dataclass(frozen=True)
class Target:
    """Q = label_mass·δ(y) + Σ_j mass_j·π_j, and the step size w = weight: loss = w·CE(Q, p).

    Its total mass m = label_mass + Σ_j mass_j need not be 1: ∂loss/∂logits = w·(m·p − Q). For m = 1 that is w·(p − Q).

    label_mass [n] and weight [n] are what target/reliance and target/weight log. A Mixture hands on its parts' γ and w;
    Anchored and Induced make γ/(γ + λ) and w·(γ + λ) of them, Signed w·C of w.
    parts: pairs of mass_j [n] and log π_j [n, V], π_j normalised. The policy is never among them: its term of the
    gradient is p − p = 0, so a residual that is the policy is left out.
    """

    label_mass: Tensor
    parts: tuple[tuple[Tensor, Tensor], ...]
    weight: Tensor

    @lazy
    def probabilities(self) -> tuple[Tensor, ...]:
        """π_j of each part [n, V]."""
        return tuple(log_part.exp() for _, log_part in self.parts)

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
        for (mass, _), part in zip(self.parts, self.probabilities, strict=True):
            total = total - mass * dot(part, view.policy.finite_logp)
        return self.weight * total

    def gradient(self, view: TokenView, scale: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """∂/∂logits [n, V]: w·(label_mass·(p − δ) + Σ_j mass_j·(p − π_j)), times `scale` [n], in `out` [n, V].

        Each difference is taken before it is scaled: p − Q formed from a finished Q loses its digits near the prior,
        the state every run starts in.
        """
        weight = self.weight if scale is None else self.weight * scale
        step = (weight * self.label_mass)[:, None]
        grad = torch.mul(view.policy.p, step, out=out)
        grad.scatter_add_(1, view.labels[:, None], -step)
        for (mass, _), part in zip(self.parts, self.probabilities, strict=True):
            grad.addcmul_(view.policy.p - part, (weight * mass)[:, None])
        return grad

    def trust(self, view: TokenView) -> Tensor:
        """w·(Q_y − m·p_y)/(1 − p_y) [n]: how hard the label is pulled relative to plain SFT (1 for SFT itself).

        The same however a method is written down. Where p_y rounds to 1 the label has nothing left to gain, and only
        label_mass counts.
        """
        room = -torch.expm1(view.label_logp)
        relative = self.label_mass
        for mass, log_part in self.parts:
            gain = log_part.gather(1, view.labels[:, None]).squeeze(1).exp() - view.label_logp.exp()
            relative = relative + torch.where(room > ROOM, mass * gain / room.clamp_min(ROOM), 0.0)
        return self.weight * relative


@dataclass(frozen=True)
class InducedTarget:
    """Q = p − ∂L/∂z, z the logits, of a loss L that is no cross-entropy with a fixed Q.

    loss [n]: L in nats. grad_logits [n, V]: ∂L/∂z. objective_grad_label [n]: the objective's part of it at the label.
    label_mass, weight [n]: γ/(γ + λ) and w·(γ + λ) of the parts' γ and w; how hard the label is pulled, `trust` says.
    objective_mass [n]: Σ_v Q_v of the objective; None: 1, as of any divergence.
    """

    loss: Tensor
    grad_logits: Tensor
    objective_grad_label: Tensor
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

    def gradient(self, view: TokenView, scale: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """∂L/∂logits [n, V], times `scale` [n], in `out` [n, V]."""
        return self.grad_logits if scale is None else torch.mul(self.grad_logits, scale[:, None], out=out)

    def trust(self, view: TokenView) -> Tensor:
        """−∂L/∂z_y/(1 − p_y) [n], as of Target: the label's own term exactly, the objective's where there is room."""
        room = -torch.expm1(view.label_logp)
        of_objective = torch.where(room > ROOM, self.objective_grad_label / room.clamp_min(ROOM), 0.0)
        return self.weight * self.label_mass - of_objective


@dataclass(frozen=True)
class Mixture(Checked):
    """Q_t = γ_t·δ(y_t) + (1 − γ_t)·π̃_t with step size w_t (arXiv 2606.11189): the form of almost every method."""

    reliance: Reliance = setting(
        MISSING, Option("target/reliance"), "γ, the share of the target that stays on the label"
    )
    residual: Residual = setting(MISSING, Option("target/residual"), "π̃, where the rest of the mass goes")
    weight: Weight = setting(MISSING, Option("target/weight"), "w, the step size of a token")
    normalize: str = setting("tokens", Choice(NORMALIZERS), "what the loss of an optimizer step is divided by")

    @property
    def residual_text(self) -> str:
        """The term beside the label's, in words."""
        return str(self.residual)

    def __call__(self, view: TokenView) -> Target:
        return _mixed(per_token(self.reliance, view), log_residual(self.residual, view), per_token(self.weight, view))


@dataclass(frozen=True)
class Anchored(Checked):
    """L = w·(γ·CE(δ_y, p) + λ·CE(π̃, p)): a label term, and an anchor of strength λ = `anchor`.

    As a target: Q = (γ·δ + λ·π̃)/(γ + λ) with step size w·(γ + λ). These two are logged: with γ = w = 1 and λ = 0.1
    target/reliance is 0.91 and target/weight 1.1. SFT + λ·KL(π_0‖p) and ASFT (arXiv 2509.23753).
    """

    reliance: Reliance = setting(
        MISSING, Option("target/reliance"), "γ, the share of the target that stays on the label"
    )
    residual: Residual = setting(MISSING, Option("target/residual"), "π̃, where the rest of the mass goes")
    weight: Weight = setting(MISSING, Option("target/weight"), "w, the step size of a token")
    anchor: Scalar = setting(0.1, Scheduled(0), "λ, the strength of the residual's term")
    normalize: str = setting("tokens", Choice(NORMALIZERS), "what the loss of an optimizer step is divided by")

    @property
    def residual_text(self) -> str:
        """The term beside the label's, in words."""
        return f"+ {written(self.anchor)}·CE({self.residual}, p)"

    def __call__(self, view: TokenView) -> Target:
        reliance, weight = per_token(self.reliance, view), per_token(self.weight, view)
        label_mass, weight = _normalised(reliance, view.at(self.anchor), weight)
        return _mixed(label_mass, log_residual(self.residual, view), weight)


@dataclass(frozen=True)
class Signed(Checked):
    """L = −w·γ·Σ_v q_v·h_v·(log p_y − log p_v): the label against each rival v, drawn from the residual q.

    h = 1 ("linear") or σ(0.01·(z_v − z_y)) ("logsigmoid"), neither differentiated. With C = Σ_v q_v·h_v this is
    Q = p + γ·(δ − q·h/C), which may have negative entries, with step size w·C; target/reliance logs γ, target/weight
    w·C. A residual that is the policy draws the rivals from p. GEM (arXiv 2408.16673): q ∝ p^{1/β}.
    """

    reliance: Reliance = setting(
        MISSING, Option("target/reliance"), "γ, the share of the target that stays on the label"
    )
    residual: Residual = setting(MISSING, Option("target/residual"), "π̃, where the rest of the mass goes")
    weight: Weight = setting(MISSING, Option("target/weight"), "w, the step size of a token")
    h: str = setting("linear", Choice(("linear", "logsigmoid")), "factor of a rival: 1, or σ(0.01·(z_v − z_y))")
    normalize: str = setting("tokens", Choice(NORMALIZERS), "what the loss of an optimizer step is divided by")

    @property
    def residual_text(self) -> str:
        """The term beside the label's, in words."""
        return f"against {self.residual}" + ("" if self.h == "linear" else f", h={self.h}")

    def __call__(self, view: TokenView) -> Target:
        reliance, weight = per_token(self.reliance, view), per_token(self.weight, view)
        rivals = log_residual(self.residual, view)
        log_rivals = torch.log_softmax(view.logp if rivals is None else rivals, dim=-1)
        if self.h == "logsigmoid":
            margin = 0.01 * (view.logp - view.label_logp[:, None])
            log_rivals = log_rivals + torch.nn.functional.logsigmoid(margin)
        log_mass = log_rivals.logsumexp(-1, keepdim=True)
        parts = ((-reliance, log_rivals - log_mass),)
        return Target(label_mass=reliance, parts=parts, weight=weight * log_mass.squeeze(1).exp())


@dataclass(frozen=True)
class Induced(Checked):
    """L = w·(γ·(−log p_y) + λ·D(p)) with λ = `strength` and D any differentiable objective.

    `objective(logp, view) → [n]` is differentiated inside the chunk: logp [n, V] carries a graph, what `view` holds
    doesn't. D teaches its induced target Q = p − ∂D/∂z. An objective that is a cross-entropy of another mass than 1 has
    a method `mass(view) → [n]`. As of Anchored, target/reliance logs γ/(γ + λ) and target/weight w·(γ + λ).
    """

    reliance: Reliance = setting(
        MISSING, Option("target/reliance"), "γ, the share of the target that stays on the label"
    )
    objective: Objective = setting(MISSING, Option("target/objective"), "D, a loss that is differentiated")
    weight: Weight = setting(MISSING, Option("target/weight"), "w, the step size of a token")
    strength: Scalar = setting(1.0, Scheduled(0), "λ, the strength of the objective")
    normalize: str = setting("tokens", Choice(NORMALIZERS), "what the loss of an optimizer step is divided by")

    @property
    def residual_text(self) -> str:
        """The term beside the label's, in words."""
        return f"+ {written(self.strength)}·{self.objective}"

    def __call__(self, view: TokenView) -> InducedTarget:
        reliance, weight = per_token(self.reliance, view), per_token(self.weight, view)
        label_mass, weight = _normalised(reliance, view.at(self.strength), weight)
        label = Target(label_mass=label_mass, parts=(), weight=weight)
        step = weight * (1 - label_mass)
        loss, grad = differentiate(lambda logits: self.objective(torch.log_softmax(logits, dim=-1), view), view.logp)
        grad = grad.mul(step[:, None])
        mass = getattr(self.objective, "mass", None)
        return InducedTarget(
            loss=label.value(view) + step * loss,
            objective_grad_label=grad.gather(1, view.labels[:, None]).squeeze(1),
            grad_logits=label.gradient(view).add_(grad),
            label_mass=label_mass,
            weight=weight,
            objective_mass=mass(view).to(view.logp.dtype) if mass else None,
        )


def per_token(part: Reliance | Weight, view: TokenView) -> Tensor:
    """What a part says of the tokens of a view [n], in the dtype of the loss. A mask counts as 0 and 1.

    Raises QTargetError where that isn't a real number per token.
    """
    return _in_dtype_of_loss(part, part(view), "a number per token", view.label_logp)


def log_residual(part: Residual, view: TokenView) -> Tensor | None:
    """Log-probabilities of a residual [n, V], in the dtype of the loss; None: it is the policy.

    Raises QTargetError where they are neither.
    """
    values = part(view)
    if values is None:
        return None
    return _in_dtype_of_loss(part, values, "log-probabilities over the vocabulary, or None,", view.logp)


def _in_dtype_of_loss(part: object, values: object, what: str, like: Tensor) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != like.shape or values.is_complex():
        got = f"{tuple(values.shape)} of {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
        raise QTargetError(f"{part} returns {what} {list(like.shape)}; got {got}")
    return values.to(like.dtype)


def _mixed(label_mass: Tensor, residual: Tensor | None, weight: Tensor) -> Target:
    """label_mass·δ + (1 − label_mass)·π̃; residual None: π̃ = p, which pulls nothing."""
    parts = () if residual is None else ((1 - label_mass, torch.log_softmax(residual, dim=-1)),)
    return Target(label_mass=label_mass, parts=parts, weight=weight)


def _normalised(reliance: Tensor, strength: float, weight: Tensor) -> tuple[Tensor, Tensor]:
    """w·(γ·… + λ·…) as the label's mass γ/(γ + λ) and the step size w·(γ + λ)."""
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
        return value.sum(), value.to(logits.dtype)

    gradient, value = torch.func.grad(summed, has_aux=True)(logits)  # torch.compile traces this, not autograd.grad
    return value, gradient


def needs(design: object) -> dict[str, str]:
    """Role → the detail that a design and its parts look at together: "label", "topk" or "full"."""
    merged: dict[str, str] = {}
    for part in design_parts(design):
        declared: Mapping[str, str] = getattr(part, "needs", {})
        for role, detail in declared.items():
            merged[role] = max(detail, merged.get(role, detail), key=DETAILS.index)
    return merged


def check_references(design: object, details: Mapping[str, str], tails: Mapping[str, str]) -> None:
    """Raise QTargetError where a part needs a role that isn't held (role → detail), or more or other than is.

    tails: role → tail rule, of the roles held as a top k.
    """
    for part in design_parts(design):
        declared: Mapping[str, str] = getattr(part, "needs", {})
        for role, detail in declared.items():
            if details.get(role) == SAMPLED:
                _check_linear(design, part, role)
                continue
            enough = DETAILS[DETAILS.index(detail) :]
            if details.get(role) not in enough:
                name = _option(part)
                raise QTargetError(f"{name} needs {role}: {' or '.join(enough)}; got {details.get(role, 'none')}")
            if tails.get(role) == "renormalised" and getattr(part, "wants_full_support", False):
                raise QTargetError(
                    f"this target is infinite where the {role} has no probability, and tail=renormalised leaves it "
                    f"none outside its top k: set references.{role}.tail=bucket or uniform"
                )
            if getattr(part, "wants_support", False) and details[role] != "topk":
                raise QTargetError(
                    f"this target compares the tokens that a top-k {role} kept, and this {role} holds all of them: set "
                    f"references.{role}.topk=50, or take target=kd"
                )


def _option(part: object) -> str:
    """The name of a part's class as options are called: ReverseKL is reverse_kl."""
    name = type(part).__name__
    pairs = zip(f" {name[:-1]}", name, strict=True)
    words = (f"_{letter}" if before.islower() and letter.isupper() else letter for before, letter in pairs)
    return "".join(words).lower()


def _check_linear(design: object, part: object, role: str) -> None:
    """Raise QTargetError unless the gradient is linear in a reference that is known by draws: only then is its mean
    right. Of two parts that look at it the product is not.
    """
    enough = "label" if needs(design)[role] == "label" else "topk or hidden"
    name, way = _option(part), f"set references.{role}.detail={enough}"
    if not getattr(part, "is_linear", False):
        raise QTargetError(
            f"{name} is not linear in the probabilities of the {role}, so a sampled {role} would teach something else "
            f"on average: {way}, or take a target that is, such as kd, kd_hybrid or sft_kl"
        )
    readers = [one for one in design_parts(design) if role in getattr(one, "needs", {})]
    if len(readers) > 1:
        names = " and ".join(_option(one) for one in readers)
        raise QTargetError(
            f"{names} both look at the {role}, and what they make of it together is not linear in its probabilities, "
            f"so a sampled {role} would teach something else on average: {way}"
        )


def columns(design: object) -> set[str]:
    """The data columns that a design looks at."""
    return {name for part in design_parts(design) for name in getattr(part, "columns", ())}


def wants_support(design: object) -> bool:
    """Whether a design compares only the tokens that a top-k reference kept, and refuses a whole one."""
    return any(getattr(part, "wants_support", False) for part in design_parts(design))


def wants_negatives(design: object) -> bool:
    """Whether a design looks at the negatives of a token (its earlier tokens, unless others are given)."""
    return any(getattr(part, "wants_negatives", False) for part in design_parts(design))


def divisor_part(mass: Tensor, normalize: str) -> Tensor:
    """What some tokens add to the divisor of their step [], from their `mass` [N]; normalize is kept or weight_sum."""
    return (mass > 0).to(mass).sum() if normalize == "kept" else mass.sum()
