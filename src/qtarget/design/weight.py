"""Weight w: the step size of a token, where it may exceed 1. Each part maps a TokenView to [n]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qtarget import checks
from qtarget.design import inputs
from qtarget.math.schedule import Scalar, Scheduled, written
from qtarget.math.scope_values import SCOPES, TokenTable
from qtarget.math.view import TokenView
from qtarget.settings import Checked, Choice, Number, Whole, setting


@dataclass(frozen=True)
class Constant(Checked):
    """w_t = value ≥ 0."""

    value: Scalar = setting(1.0, Scheduled(0), "w of every token")

    def __call__(self, view: TokenView) -> Tensor:
        return torch.full_like(view.label_logp, view.at(self.value))

    def __str__(self) -> str:
        return written(self.value)


@dataclass(frozen=True)
class SequenceRatio(inputs.ReadsLabel, inputs.IsScopeValue):
    """w = clip(exp(temperature·mean_t[log p(y_t) − log π_source(y_t)]), low, high), one per sequence.

    iw-SFT (arXiv 2507.12856). The official code is right for one row a micro-batch only; this is for any.
    """

    scope: ClassVar[str] = "sequence"
    temperature: float = setting(1.0, Number(0), "factor of the mean log ratio, in the exponent")
    low: float = setting(0.0, Number(0), "least w")
    high: float = setting(16.0, Number(0), "largest w")
    source: str = setting("prior", inputs.ANY_REFERENCE, "whose probability of the label is read")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("high", self.high, self.low)

    def scope_value(self, table: TokenTable) -> Tensor:
        means, sequence = table.sequence_means(table.label_logp["policy"] - table.label_logp[self.source])
        return (self.temperature * means).exp().clamp(self.low, self.high)[sequence]

    def __str__(self) -> str:
        return f"sequence ratio to {self.source} in [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class TokenRatio(inputs.ReadsLabel):
    """w_t = clip(p(y_t)/π_source(y_t), low, high): the token-wise variant of iw-SFT (arXiv 2507.12856)."""

    low: float = setting(0.2, Number(0), "least w")
    high: float = setting(1.8, Number(0), "largest w")
    source: str = setting("prior", inputs.ANY_REFERENCE, "whose probability of the label is read")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("high", self.high, self.low)

    def __call__(self, view: TokenView) -> Tensor:
        return (view.label_logp - view.of(self.source).label_logp).exp().clamp(self.low, self.high)

    def __str__(self) -> str:
        return f"p(y)/{inputs.shown(self.source)} in [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class ProximalRatio(inputs.ReadsLabel):
    """w_t = r·1[r ≤ 1 + epsilon], r = p(y)/π_source(y) with |log r| ≤ 20: the gradient of PSFT's clipped ratio.

    arXiv 2508.17784. Its lower clip never binds, so there is none. source="old" is a snapshot of the policy, renewed
    every `references.old.every` optimizer steps; renewed at each, r = 1 and this is plain SFT.
    """

    epsilon: Scalar = setting(0.28, Scheduled(0), "how far above 1 a ratio may be before its token is left out")
    source: str = setting("old", inputs.ANY_REFERENCE, "whose probability of the label is read")

    def __call__(self, view: TokenView) -> Tensor:
        ratio = (view.label_logp - view.of(self.source).label_logp).clamp(-20, 20).exp()
        return torch.where(ratio <= 1 + view.at(self.epsilon), ratio, 0.0)

    def __str__(self) -> str:
        return f"r=p(y)/{inputs.shown(self.source)} where r ≤ 1+{written(self.epsilon)}"


@dataclass(frozen=True)
class Inverse(inputs.ReadsLabel):
    """w_t = min(1/π_source(y_t), clip): inverse propensity, unnormalised; `normalize=weight_sum` fixes its scale."""

    clip: Scalar = setting(10.0, Scheduled(0), "largest w")
    source: str = setting("prior", inputs.ANY_SOURCE, "whose probability of the label is read")

    def __call__(self, view: TokenView) -> Tensor:
        return (-view.of(self.source).label_logp).exp().clamp_max(view.at(self.clip))

    def __str__(self) -> str:
        return f"min(1/{inputs.shown(self.source)}, {written(self.clip)})"


@dataclass(frozen=True)
class FocalGradient(Checked):
    """w_t = (1 − p)^g − g·p·(1 − p)^{g−1}·ln p, p = p(y): what focal loss, differentiated whole, makes of plain SFT.

    arXiv 1708.02002. Exceeds 1 for labels of middling probability.
    """

    gamma: Scalar = setting(2.0, Scheduled(0), "exponent of 1 − p(y); 0 is plain SFT")

    def __call__(self, view: TokenView) -> Tensor:
        gamma, p = view.at(self.gamma), view.label_logp.exp()
        left = -torch.expm1(view.label_logp)
        slope = torch.where(left > 0, -view.label_logp / left, 1.0)  # −ln p/(1 − p) → 1 as p → 1
        return left.pow(gamma) * (1 + gamma * p * slope)

    def __str__(self) -> str:
        return f"gradient of (1 − p(y))^{written(self.gamma)}·nll"


@dataclass(frozen=True)
class HalfPenalty(Checked):
    """w_t = 1 − 2·strength·m·(p − ½)·p, p = p(y), m = 1[Σ of the `top` likeliest tokens' p_v < mass].

    What −log p + strength·m·(p − ½)², differentiated whole but for m, makes of plain SFT (SED-SFT, arXiv 2602.07464):
    labels are drawn to ½ where the policy leaves room. With strength λ it lies in [1 − λ, 1 + λ/8].
    """

    strength: Scalar = setting(0.2, Scheduled(0, 1), "λ of the penalty (p(y) − ½)²; 0 is plain SFT")
    top: int = setting(10, Whole(1), "how many of the likeliest tokens are added up")
    mass: Scalar = setting(0.95, Scheduled(0, 1), "sum of their probabilities from which on w is 1")

    def __call__(self, view: TokenView) -> Tensor:
        p = view.label_logp.exp()
        likeliest = view.logp.topk(min(self.top, view.logp.shape[1]), dim=-1).values
        is_open = likeliest.exp().sum(-1) < view.at(self.mass)
        return 1 - 2 * view.at(self.strength) * is_open * (p - 0.5) * p

    def __str__(self) -> str:
        where = f"top {self.top} < {written(self.mass)}"
        return f"gradient of nll + {written(self.strength)}·(p(y) − ½)² where {where}"


@dataclass(frozen=True)
class HighestEntropy(inputs.ReadsLabel, inputs.IsScopeValue):
    """w_t = 1 for the share `keep` of tokens at which π_source has the largest entropy, 0 for the others.

    SE-KD (arXiv 2602.01395). scope: among the tokens of the "sequence", the "step" or the "batch". Of tokens that tie,
    the earlier ones are kept.
    """

    keep: float = setting(0.2, Number(0, 1), "share of the tokens that is kept")
    source: str = setting("policy", inputs.ANY_SOURCE, "whose entropy is read")
    scope: str = setting("sequence", Choice(SCOPES), "among which tokens the share is taken")

    @property
    def entropy_of(self) -> str:
        return self.source

    def scope_value(self, table: TokenTable) -> Tensor:
        return table.largest(table.entropy[self.source], self.keep, self.scope)

    def __str__(self) -> str:
        return f"top {self.keep:g} of entropy of {self.source}, per {self.scope}"


@dataclass(frozen=True)
class Position(Checked, inputs.IsScopeValue):
    """w_t = first + (last − first)·(t − 1)/(T − 1) at the t-th of the T supervised tokens of its sequence.

    A sequence of one token has w = first.
    """

    scope: ClassVar[str] = "sequence"
    first: float = setting(1.0, Number(0), "w of the first supervised token of a sequence")
    last: float = setting(1.0, Number(0), "w of its last one")

    def scope_value(self, table: TokenTable) -> Tensor:
        sequence, count = table.sequences()
        lengths = torch.bincount(sequence, minlength=count)
        order = sequence.argsort(stable=True)
        place = torch.empty_like(table.label_logp["policy"])
        starts = lengths.cumsum(0) - lengths
        place[order] = (torch.arange(len(order), device=order.device) - starts[sequence[order]]).to(place)
        return self.first + (self.last - self.first) * place / (lengths[sequence] - 1).clamp_min(1)

    def __str__(self) -> str:
        return f"from {self.first:g} to {self.last:g} over a sequence"
