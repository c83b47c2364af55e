"""The target distribution Q of a token, and the three parts it is composed of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qtarget.math.view import TokenView

Reliance = Callable[[TokenView], Tensor]  # → γ [n]
Residual = Callable[[TokenView], Tensor | None]  # → unnormalised log π̃ [n, V], or None for the policy itself
Weight = Callable[[TokenView], Tensor]  # → w [n]
Design = Callable[[TokenView], "Target"]


@dataclass(frozen=True)
class Target:
    """Q = label_mass·δ(y) + Σ_j mass_j·π_j, and the step size w.

    `parts` holds (mass [n], log π_j [n, V]) pairs, π_j normalised. The policy's own distribution is never among them:
    as a residual it adds p − p = 0 to the gradient and nothing to the value, so what it holds is simply not pulled.
    """

    label_mass: Tensor
    parts: tuple[tuple[Tensor, Tensor], ...]
    weight: Tensor

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
        p = view.logp.exp()
        grad = p * self.label_mass[:, None]
        grad.scatter_add_(1, view.labels[:, None], -self.label_mass[:, None])
        for mass, log_part in self.parts:
            grad.add_((p - log_part.exp()).mul_(mass[:, None]))
        return grad.mul_(self.weight[:, None])

    def trust(self, view: TokenView) -> Tensor:
        """w·(Q_y − m·p_y)/(1 − p_y) [n]: how hard the label is pulled relative to plain SFT (1 for SFT itself).

        The same for every spelling of a method. Where p_y rounds to 1 the label has nothing left to gain, and the
        parts' share of the quotient is left out.
        """
        room = -torch.expm1(view.label_logp)
        pull = self.label_mass
        for mass, log_part in self.parts:
            gain = log_part.gather(1, view.labels[:, None]).squeeze(1).exp() - view.label_logp.exp()
            pull = pull + torch.where(room > 1e-6, mass * gain / room.clamp_min(1e-6), 0.0)
        return self.weight * pull


@dataclass(frozen=True)
class Mixture:
    """Q_t = γ_t·δ(y_t) + (1 − γ_t)·π̃_t with step size w_t (arXiv 2606.11189): the shape of almost every method."""

    reliance: Reliance
    residual: Residual
    weight: Weight

    def __call__(self, view: TokenView) -> Target:
        reliance, weight = self.reliance(view), self.weight(view)
        log_residual = self.residual(view)
        parts = () if log_residual is None else ((1 - reliance, torch.log_softmax(log_residual, dim=-1)),)
        return Target(label_mass=reliance, parts=parts, weight=weight)

    @property
    def needs(self) -> Mapping[str, str]:
        """Role → detail ("label" or "full") that the parts look at together."""
        merged: dict[str, str] = {}
        for part in (self.reliance, self.residual, self.weight):
            for role, detail in needs(part).items():
                merged[role] = "full" if "full" in (detail, merged.get(role)) else detail
        return merged


def needs(part: object) -> Mapping[str, str]:
    """What a part or design declares in its `needs`; a part that says nothing needs no reference."""
    declared: Mapping[str, str] = getattr(part, "needs", {})
    return declared


def _cross_entropy(log_part: Tensor, logp: Tensor) -> Tensor:
    """−Σ_v π_v log p_v [n]. Rows that are −∞ on both sides (padded vocabulary) add nothing."""
    part = log_part.exp()
    return -torch.where(part > 0, part * logp, 0.0).sum(-1)
