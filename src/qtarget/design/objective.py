"""Objectives that are no cross-entropy with a fixed target; Induced differentiates them.

Each part maps (logp [n, V] with a graph, TokenView) to a loss per token [n], in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qtarget.design import inputs
from qtarget.errors import QTargetError
from qtarget.math.schedule import Scalar, Scheduled, written
from qtarget.math.tokens import IGNORE
from qtarget.math.view import TokenView
from qtarget.settings import FLAG, Checked, Number, setting


@dataclass(frozen=True)
class ReverseKL(inputs.ReadsDistribution):
    """D = KL(p‖π_source): mode-seeking (MiniLLM, arXiv 2306.08543; towards the prior, RL's Razor, arXiv 2509.04259)."""

    wants_full_support: ClassVar[bool] = True
    source: str = setting("teacher", inputs.ANY_REFERENCE, "whose distribution is read")

    def __call__(self, logp: Tensor, view: TokenView) -> Tensor:
        return kl(logp, view.of(self.source).logp)

    def __str__(self) -> str:
        return f"KL(p‖{self.source})"


@dataclass(frozen=True)
class JensenShannon(inputs.ReadsDistribution):
    """D = β·KL(q‖m) + (1 − β)·KL(p‖m), m = (1 − β)·p + β·q, q = π_source (GKD, arXiv 2306.13649; TRL's convention).

    β=0 and β=1 are taken as KL(q‖p) and KL(p‖q), as TRL does: the divergence itself vanishes at both ends.
    """

    beta: Scalar = setting(0.5, Scheduled(0, 1), "share of the source in the mixture m; 0: forward KL, 1: reverse KL")
    source: str = setting("teacher", inputs.ANY_REFERENCE, "whose distribution is read")

    @property
    def wants_full_support(self) -> bool:
        return self.beta == 1 or isinstance(self.beta, str)

    @property
    def is_linear(self) -> bool:
        """β = 0: KL(q‖p), whose gradient is p − q."""
        return self.beta == 0

    def __call__(self, logp: Tensor, view: TokenView) -> Tensor:
        beta, logq = view.at(self.beta), view.of(self.source).logp
        if beta in (0, 1):
            return kl(logp, logq) if beta else kl(logq, logp)
        beta_t = torch.tensor(beta, dtype=logp.dtype, device=logp.device)
        logm = log_mixture(logp, logq, beta_t)
        return beta_t * kl(logq, logm) + (1 - beta_t) * kl(logp, logm)

    def __str__(self) -> str:
        return f"JSD(p, {self.source}), β={written(self.beta)}"


@dataclass(frozen=True)
class SkewKL(inputs.ReadsDistribution):
    """D = KL(q‖α·q + (1 − α)·p), q = π_source: forward KL that stays below −log α (DistiLLM, arXiv 2402.03898)."""

    alpha: Scalar = setting(0.1, Scheduled(0, 0.99), "share of the source in what it is compared with; 0: KL(q‖p)")
    source: str = setting("teacher", inputs.ANY_REFERENCE, "whose distribution is read")

    @property
    def is_linear(self) -> bool:
        """α = 0: KL(q‖p), whose gradient is p − q."""
        return self.alpha == 0

    def __call__(self, logp: Tensor, view: TokenView) -> Tensor:
        alpha, logq = view.at(self.alpha), view.of(self.source).logp
        return kl(logq, log_mixture(logp, logq, logp.new_tensor(alpha)) if alpha else logp)

    def __str__(self) -> str:
        return f"KL({self.source}‖α·{self.source} + (1−α)·p), α={written(self.alpha)}"


@dataclass(frozen=True)
class SkewReverseKL(inputs.ReadsDistribution):
    """D = KL(p‖α·p + (1 − α)·q), q = π_source: reverse KL that stays below −log α (DistiLLM, arXiv 2402.03898)."""

    alpha: Scalar = setting(0.1, Scheduled(0, 0.99), "share of p in what it is compared with; 0: KL(p‖q)")
    source: str = setting("teacher", inputs.ANY_REFERENCE, "whose distribution is read")

    @property
    def wants_full_support(self) -> bool:
        return self.alpha == 0 or isinstance(self.alpha, str)

    def __call__(self, logp: Tensor, view: TokenView) -> Tensor:
        alpha, logq = view.at(self.alpha), view.of(self.source).logp
        return kl(logp, log_mixture(logq, logp, logp.new_tensor(alpha)) if alpha else logq)

    def __str__(self) -> str:
        return f"KL(p‖α·p + (1−α)·{self.source}), α={written(self.alpha)}"


@dataclass(frozen=True)
class TemperedKL(inputs.ReadsDistribution):
    """D = T²·KL(q_T‖p_T), both at temperature T (Hinton et al., arXiv 1503.02531); squared=False leaves T² away.

    The gradient is T·(p_T − q_T), or (p_T − q_T)/T. DistillKit multiplies by T², TRL doesn't.
    """

    temperature: Scalar = setting(2.0, Scheduled(1e-2), "T of both distributions")
    squared: bool = setting(True, FLAG, "whether the loss is multiplied by T²")
    source: str = setting("teacher", inputs.ANY_REFERENCE, "whose distribution is read")

    @property
    def is_linear(self) -> bool:
        """T = 1: KL(q‖p), whose gradient is p − q."""
        return self.temperature == 1

    def __call__(self, logp: Tensor, view: TokenView) -> Tensor:
        t = view.at(self.temperature)
        cooled = kl((view.of(self.source).logp / t).log_softmax(-1), (logp / t).log_softmax(-1))
        return cooled * t**2 if self.squared else cooled

    def __str__(self) -> str:
        return f"{'T²·' if self.squared else ''}KL({self.source}_T‖p_T), T={written(self.temperature)}"


@dataclass(frozen=True)
class SupportKL(inputs.ReadsDistribution):
    """A divergence over the k tokens S that a top-k teacher kept, the others left out of it.

    renormalised=True: both renormalised on S, no gradient off it (TRL's loss_add_tail=False). False: neither, Σ_S
    q·log(q/p), what a plain sum over stored entries computes: a cross-entropy of mass Σ_S q.
    """

    wants_support: ClassVar[bool] = True
    renormalised: bool = setting(True, FLAG, "whether both sum to 1 over the top k")
    source: str = setting("teacher", inputs.ANY_REFERENCE, "whose distribution is read")

    def __call__(self, logp: Tensor, view: TokenView) -> Tensor:
        support = view.of(self.source).support
        assert support is not None  # checked before any chunk
        indices, logq = support
        logp_topk = logp.gather(1, indices)
        return kl(logq.log_softmax(-1), logp_topk.log_softmax(-1)) if self.renormalised else kl(logq, logp_topk)

    def mass(self, view: TokenView) -> Tensor:
        """What the target adds up to [n]: 1, or of a truncated one Σ_S q."""
        support = view.of(self.source).support
        assert support is not None
        mass = support[1].logsumexp(-1).exp()
        return torch.ones_like(mass) if self.renormalised else mass

    def __str__(self) -> str:
        return f"KL over the top k of {self.source}{', both renormalised' if self.renormalised else ', truncated'}"


@dataclass(frozen=True)
class NegativeEntropy:
    """D = −H(p): the confidence penalty (Pereyra et al., arXiv 1701.06548)."""

    def __call__(self, logp: Tensor, view: TokenView) -> Tensor:
        return expect(logp, logp)

    def __str__(self) -> str:
        return "−H(p)"


@dataclass(frozen=True)
class Unlikelihood(Checked):
    """D = −Σ_{c ∈ C} log(1 − p_c) (Welleck et al., arXiv 1908.04319), 1 − p_c at least `floor`.

    C is the set of negatives of the token without its label: in training the tokens before it, unless others are given.
    """

    wants_negatives: ClassVar[bool] = True
    floor: float = setting(1e-5, Number(1e-7, 1), "least 1 − p_c, so that the loss stays finite")

    def __call__(self, logp: Tensor, view: TokenView) -> Tensor:
        if view.negatives is None:
            raise QTargetError("unlikelihood needs negatives [..., K]: token ids to push down at each position")
        ids = view.negatives.where(view.negatives != IGNORE, view.labels[:, None])
        chosen = torch.zeros_like(logp, dtype=torch.bool).scatter_(1, ids, True)
        chosen.scatter_(1, view.labels[:, None], False)
        return -(1 - logp.exp()).where(chosen, 1.0).clamp_min(self.floor).log().sum(-1)

    def __str__(self) -> str:
        return "−Σ_c log(1 − p_c)"


def expect(logp: Tensor, values: Tensor) -> Tensor:
    """Σ_v p_v·values_v [n]. Entries without probability add nothing, whatever their value, to it and its gradient."""
    p = logp.exp()
    return (p * values.masked_fill(p == 0, 0.0)).sum(-1)


def log_mixture(logp: Tensor, logq: Tensor, share: Tensor) -> Tensor:
    """log((1 − share)·p + share·q) [n, V], share in (0, 1)."""
    low = torch.finfo(logp.dtype).min / 4  # −∞ on both sides (padded rows) would make NaN
    return torch.logaddexp(torch.log1p(-share) + logp.clamp_min(low), share.log() + logq.clamp_min(low))


def kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p‖q) [n] in nats."""
    return expect(logp, logp - logq)
