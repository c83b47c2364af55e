"""Reliance γ: the share of the target that stays on the observed token. Each part maps a TokenView to [n].

With the residual "self" a reliance is a token weight in [0, 1] on plain SFT: most published reweightings are one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qtarget import checks
from qtarget.design import inputs
from qtarget.math.distribution import TOP
from qtarget.math.schedule import Scalar, Scheduled, written
from qtarget.math.scope_values import SCOPES, TokenTable
from qtarget.math.view import TokenView
from qtarget.settings import Checked, Choice, Either, Number, Text, Whole, setting

IMPOSSIBLE = -1e4
"""log p of a label of probability 0 where its odds are read: exp of it is 0 in every dtype, and it is no infinity."""


@dataclass(frozen=True)
class Constant(Checked):
    """γ_t = value in [0, 1]: 1 is standard SFT, 0 leaves the residual alone (distillation)."""

    value: Scalar = setting(1.0, Scheduled(0, 1), "γ of every token")

    def __call__(self, view: TokenView) -> Tensor:
        return torch.full_like(view.label_logp, view.at(self.value))

    def __str__(self) -> str:
        return written(self.value)


@dataclass(frozen=True)
class Smoothing(Checked):
    """γ_t = 1 − λ, with λ in [0, 1] (label smoothing with a uniform residual: Szegedy et al., arXiv 1512.00567)."""

    smoothing: Scalar = setting(0.1, Scheduled(0, 1), "λ, the share that leaves the label")

    def __call__(self, view: TokenView) -> Tensor:
        return torch.full_like(view.label_logp, 1 - view.at(self.smoothing))

    def __str__(self) -> str:
        return f"1 − λ, λ={written(self.smoothing)}"


@dataclass(frozen=True)
class Power(inputs.ReadsLabel):
    """γ_t = p(y_t)^α, α ≥ 0. DFT at α=1 (arXiv 2508.05629); the α-family of Beyond-log (arXiv 2510.00526). 0⁰ = 1.

    source: whose probability p is, "policy" or a reference ("prior" is PriFT's recipe, arXiv 2606.09396).
    """

    alpha: Scalar = setting(1.0, Scheduled(0), "exponent of p(y); 0 is plain SFT, 1 is DFT")
    source: str = setting("policy", inputs.ANY_SOURCE, "whose probability of the label is read")

    def __call__(self, view: TokenView) -> Tensor:
        logp = view.of(self.source).label_logp
        return (view.at(self.alpha) * logp.clamp_min(torch.finfo(logp.dtype).min)).exp()  # 0⁰ = 1, and 0·(−∞) is NaN

    def __str__(self) -> str:
        base = inputs.shown(self.source)
        return base if self.alpha == 1 else f"{base}^{written(self.alpha)}"


@dataclass(frozen=True)
class OneMinus(inputs.ReadsLabel):
    """γ_t = max((1 − p(y_t))^power, floor): learn what `source` does not predict yet.

    Focal loss with its weight detached at source="policy" (arXiv 1708.02002); with "prior" the weight is frozen.
    """

    power: Scalar = setting(1.0, Scheduled(0), "exponent of 1 − p(y)")
    source: str = setting("prior", inputs.ANY_SOURCE, "whose probability of the label is read")
    floor: float = setting(0.0, Number(0, 1), "least γ")

    def __call__(self, view: TokenView) -> Tensor:
        left = -torch.expm1(view.of(self.source).label_logp)
        return left.pow(view.at(self.power)).clamp_min(self.floor)

    def __str__(self) -> str:
        base = f"1 − {inputs.shown(self.source)}"
        return base if self.power == 1 else f"({base})^{written(self.power)}"


@dataclass(frozen=True)
class Threshold(inputs.ReadsLabel):
    """γ_t = 1[p(y_t) kept]·p(y_t)^α: a mask on the label's probability, not differentiated.

    keep: "above" (p ≥ threshold), "below" (p ≤ threshold) or "between" (threshold ≤ p ≤ upper). α=0: log loss on these
    tokens, α=1: 1 − p. Beyond-log (arXiv 2510.00526), ProFiT (arXiv 2601.09195; p = τ counts, as in its code).
    """

    threshold: Scalar = setting(0.1, Scheduled(0, 1), "probability of the label where the mask changes")
    keep: str = setting(
        "above",
        Choice(("above", "below", "between")),
        "which tokens are kept: those on this side of the threshold, or up to upper",
    )
    upper: float = setting(1.0, Number(0, 1), "of keep=between: largest probability that is kept")
    alpha: Scalar = setting(0.0, Scheduled(0), "exponent of p(y) for a token that is kept")
    source: str = setting("policy", inputs.ANY_SOURCE, "whose probability of the label is read")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep == "between" and not isinstance(self.threshold, str):
            checks.number("upper", self.upper, self.threshold, 1)

    def __call__(self, view: TokenView) -> Tensor:
        p, threshold = view.of(self.source).label_logp.exp(), view.at(self.threshold)
        low = 0.0 if self.keep == "below" else threshold
        high = {"above": 1.0, "below": threshold, "between": self.upper}[self.keep]
        inside = (p >= low) & ((p <= high) | (high == 1.0))  # rounding may carry p past 1
        return inside * p.pow(view.at(self.alpha))

    def __str__(self) -> str:
        p, threshold = inputs.shown(self.source), written(self.threshold)
        band = {"above": f"{p} ≥ {threshold}", "below": f"{p} ≤ {threshold}"}
        mask = f"1[{band.get(self.keep, f'{threshold} ≤ {p} ≤ {self.upper}')}]"
        return mask if self.alpha == 0 else f"{mask}·p(y)^{written(self.alpha)}"


@dataclass(frozen=True)
class LogOdds(inputs.ReadsLabel):
    """γ_t = p·max(0, 1 − logit(p)/logit(ceiling)), p = p(y_t), logit(p) = log(p/(1 − p)) (InfoSFT, arXiv 2605.14967).

    Largest for labels of middling probability, 0 from p = ceiling on. ceiling=1 is DFT; below 0.6 γ would pass 1.
    A label of probability 0, as of a renormalised top-k reference that doesn't hold it, has γ = lim p·log(1/p) = 0.
    """

    ceiling: Scalar = setting(0.93, Scheduled(0.6, 1), "probability of the label from which on γ is 0; 1 is DFT")
    source: str = setting("policy", inputs.ANY_SOURCE, "whose probability of the label is read")

    def __call__(self, view: TokenView) -> Tensor:
        logp, ceiling = view.of(self.source).label_logp.clamp_min(IMPOSSIBLE), view.at(self.ceiling)
        slope = 0.0 if ceiling == 1 else 1 / (math.log(ceiling) - math.log1p(-ceiling))
        left = (-torch.expm1(logp)).clamp_min(torch.finfo(logp.dtype).tiny)  # 1 − p may round to 0
        return logp.exp() * (1 - slope * (logp - left.log())).clamp_min(0)

    def __str__(self) -> str:
        p = inputs.shown(self.source)
        return f"{p}·max(0, 1 − logit({p})/logit({written(self.ceiling)}))"


@dataclass(frozen=True)
class Variance(inputs.ReadsLabel):
    """γ_t = p(y_t)·(1 − p(y_t)), at most 1/4: the variance of hitting the label (φ of CHORD, arXiv 2508.11408)."""

    source: str = setting("policy", inputs.ANY_SOURCE, "whose probability of the label is read")

    def __call__(self, view: TokenView) -> Tensor:
        logp = view.of(self.source).label_logp
        return logp.exp() * (-torch.expm1(logp)).clamp_min(0)  # rounding may carry p past 1

    def __str__(self) -> str:
        p = inputs.shown(self.source)
        return f"{p}·(1 − {p})"


@dataclass(frozen=True)
class RandomDrop(Checked, inputs.IsScopeValue):
    """γ_t = 0 for a random share `drop` of the tokens, 1 for the others: the control for every selection rule.

    Drawn anew for each batch, from its labels and the training progress: reproducible, the same for every chunk size,
    another one where a step is cut into micro-batches differently.
    """

    scope: ClassVar[str] = "batch"
    drop: float = setting(0.3, Number(0, 1), "share of the tokens with γ = 0")
    seed: int = setting(0, Whole(0), "of the draws")

    def scope_value(self, table: TokenTable) -> Tensor:
        mark = hash((self.seed, table.progress, *table.labels.tolist()))  # of numbers: the same in every process
        generator = torch.Generator().manual_seed(mark % 2**63)
        return (torch.rand(len(table.labels), generator=generator) >= self.drop).to(table.label_logp["policy"])

    def __str__(self) -> str:
        return f"random, {self.drop:g} dropped"


@dataclass(frozen=True)
class TopEntropy(inputs.ReadsLabel):
    """γ_t = (H_K/norm)^α: the entropy of the `top` likeliest tokens, renormalised (EAFT, arXiv 2601.02151).

    norm: "lnk", or a number in nats; the official code divides by 3.0, just above ln 20, so that γ < 1 for K ≤ 20.
    """

    top: int = setting(20, Whole(2), "K, how many of the likeliest tokens")
    norm: float | str = setting(
        3.0, Either((Choice(("lnk",)), Number(1e-3))), "nats that the entropy is divided by; lnk: ln K"
    )
    alpha: Scalar = setting(1.0, Scheduled(0), "exponent of the quotient")
    source: str = setting("policy", inputs.ANY_SOURCE, "whose probability of the label is read")

    @property
    def detail(self) -> str:
        return "label" if self.top == TOP else "full"  # label scalars hold the entropy of that many tokens

    def __call__(self, view: TokenView) -> Tensor:
        most = math.log(min(self.top, view.logp.shape[1])) if isinstance(self.norm, str) else self.norm
        return (view.of(self.source).top_entropy(self.top) / most).pow(view.at(self.alpha))

    def __str__(self) -> str:
        base = f"H_top{self.top}/{'ln K' if self.norm == 'lnk' else self.norm}"
        return base if self.alpha == 1 else f"({base})^{written(self.alpha)}"


@dataclass(frozen=True)
class Column(Checked):
    """γ_t = a column of the data, in [0, 1]: which tokens count was settled beforehand (CFT, arXiv 2510.10974)."""

    name: str = setting("critical", Text(), "the data column, as data.source.columns names it")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.name,)

    def __call__(self, view: TokenView) -> Tensor:
        return view.column(self.name)

    def __str__(self) -> str:
        return f"column {self.name}"


@dataclass(frozen=True)
class MassAbove(inputs.ReadsLabel):
    """γ_t = 1[u_t ≥ threshold], u = π(y) + Σ_{v: π(v) < π(y)} π(v) (PriFT-mass, arXiv 2606.09396).

    The paper counts ties into u, the official code (and this) only the label's own mass besides strictly smaller ones.
    """

    threshold: Scalar = setting(0.5, Scheduled(0, 1), "least mass u of a token that is kept")
    source: str = setting("prior", inputs.ANY_SOURCE, "whose probability of the label is read")

    def __call__(self, view: TokenView) -> Tensor:
        known = view.of(self.source)
        return (known.label_logp.exp() + known.outranked >= view.at(self.threshold)).to(known.label_logp)

    def __str__(self) -> str:
        return f"1[mass up to {inputs.shown(self.source)} ≥ {written(self.threshold)}]"


@dataclass(frozen=True)
class Tempered(inputs.ReadsLabel):
    """γ_t = max(p(y_t)^{1/τ}, floor) (TALR, arXiv 2509.20758).

    tau: a number, or "median": the median over the optimizer step's sequences of their mean −log p(y), the lower of two
    middle values, at least 1e-6.
    """

    tau: float | str = setting(
        "median", Either((Choice(("median",)), Number(1e-6))), "temperature; median: that of the step's sequences"
    )
    floor: float = setting(0.01, Number(0, 1), "least γ")
    source: str = setting("policy", inputs.ANY_SOURCE, "whose probability of the label is read")

    @property
    def scope(self) -> str | None:
        return "step" if isinstance(self.tau, str) else None

    def scope_value(self, table: TokenTable) -> Tensor:
        means, sequence = table.sequence_means(-table.label_logp[self.source])
        return (
            means.median().clamp(1e-6, torch.finfo(means.dtype).max)[None].expand(len(sequence))
            if len(sequence)
            else means
        )

    def __call__(self, view: TokenView) -> Tensor:
        tau = view.scope_value(self) if isinstance(self.tau, str) else self.tau
        return (view.of(self.source).label_logp / tau).exp().clamp_min(self.floor)

    def __str__(self) -> str:
        return f"max({inputs.shown(self.source)}^(1/τ), {self.floor:g}), τ={self.tau}"


@dataclass(frozen=True)
class ExcessLoss(inputs.ReadsLabel, inputs.IsScopeValue):
    """γ_t = 1 for the share `keep` of tokens with the largest log π_source(y) − log p(y) (Rho-1, arXiv 2404.07965).

    scope: among the tokens of the "step", the "sequence" or the "batch". Of tokens that tie, the earlier ones are kept.
    """

    keep: float = setting(0.6, Number(0, 1), "share of the tokens that is kept")
    source: str = setting("teacher", inputs.ANY_REFERENCE, "whose probability of the label is read")
    scope: str = setting("step", Choice(SCOPES), "among which tokens the share is taken")

    def scope_value(self, table: TokenTable) -> Tensor:
        excess = table.label_logp[self.source] - table.label_logp["policy"]
        return table.largest(excess, self.keep, self.scope)

    def __str__(self) -> str:
        return f"top {self.keep:g} of excess loss over {self.source}, per {self.scope}"


@dataclass(frozen=True)
class EntropyPower(inputs.ReadsLabel):
    """γ_t = p(y)^κ, κ = 1 + ramp·(clip(exp(−(log p(y) + H(p))/β), low, high) − 1) (IDFT, arXiv 2602.12222).

    A label likelier than the policy's entropy suggests gets κ < 1, nearly plain SFT; an unlikely one up to p^high.
    """

    beta: Scalar = setting(1.0, Scheduled(1e-6), "temperature of the exponent, nats")
    low: float = setting(0.1, Number(0), "least exponent before the ramp")
    high: float = setting(2.0, Number(0), "largest exponent before the ramp")
    ramp: Scalar = setting(1.0, Scheduled(0, 1), "how far κ has moved from 1, DFT, to the exponent")
    source: str = setting("policy", inputs.ANY_SOURCE, "whose probability of the label is read")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("high", self.high, self.low)

    def __call__(self, view: TokenView) -> Tensor:
        known = view.of(self.source)
        surprise = -(known.label_logp + known.entropy) / view.at(self.beta)
        exponent = 1 + view.at(self.ramp) * (surprise.exp().clamp(self.low, self.high) - 1)
        return (exponent * known.label_logp).exp()

    def __str__(self) -> str:
        p, clip = inputs.shown(self.source), f"[{self.low:g}, {self.high:g}]"
        return f"{p}^κ, κ = 1 + {written(self.ramp)}·(exp(−(log {p}+H)/{written(self.beta)}) in {clip} − 1)"


@dataclass(frozen=True)
class Gibbs(inputs.ReadsLabel):
    """γ_t = b·(e^β − 1)/(1 + b·(e^β − 1)), b = max(π_source(y), floor): boosts the label's odds by e^β.

    With the prior as residual the target is ∝ π_0·exp(β·1[v = y]) (GIFT, arXiv 2601.09233; its code's floor is 1e-10).
    """

    beta: Scalar = setting(20.0, Scheduled(0, 80), "nats that the label's odds are raised by")
    source: str = setting("prior", inputs.ANY_SOURCE, "whose probability of the label is read")
    floor: float = setting(1e-10, Number(0, 1), "least probability that is read")

    def __call__(self, view: TokenView) -> Tensor:
        odds = view.of(self.source).label_logp.exp().clamp_min(self.floor) * math.expm1(view.at(self.beta))
        return odds / (1 + odds)

    def __str__(self) -> str:
        return f"odds of {inputs.shown(self.source)} times e^{written(self.beta)}"


@dataclass(frozen=True)
class Concentration(inputs.ReadsLabel):
    """γ_t = p(y)^α·α/(α + eps), α = Σ_v p_v²: log loss where unsure, 1 − p where sure (DEFT, arXiv 2602.11424)."""

    eps: float = setting(1e-6, Number(0), "added to Σp² where it is divided by")
    source: str = setting("policy", inputs.ANY_SOURCE, "whose probability of the label is read")

    def __call__(self, view: TokenView) -> Tensor:
        known = view.of(self.source)
        alpha = known.concentration
        return (alpha * known.label_logp).exp() * alpha / (alpha + self.eps)

    def __str__(self) -> str:
        return f"{inputs.shown(self.source)}^Σp²"


@dataclass(frozen=True)
class Cayley(inputs.ReadsLabel):
    """γ_t = p^α, α = f + (1 − f)·p/(2 − p) in [0.001, 1], f = half the mean p(y) over `scope`.

    Cayley-Trans (arXiv 2602.11424). scope="batch" takes the mean over the micro-batch, as the official code does: it
    depends on how a step is cut. Its three additions of 1e-8 are left out, less than 2e-5 of γ as α ≥ 0.001.
    """

    scope: str = setting("batch", Choice(("batch", "step")), "tokens whose mean p(y) is taken")
    source: str = setting("policy", inputs.ANY_SOURCE, "whose probability of the label is read")

    def scope_value(self, table: TokenTable) -> Tensor:
        p = table.label_logp[self.source].exp()
        return p.mean().expand(len(p))

    def __call__(self, view: TokenView) -> Tensor:
        logp, floor = view.of(self.source).label_logp, 0.5 * view.scope_value(self)
        p = logp.exp()
        alpha = (floor + (1 - floor) * p / (2 - p)).clamp(0.001, 1)
        return (alpha * logp).exp()

    def __str__(self) -> str:
        return f"{inputs.shown(self.source)}^α, α from the mean of a {self.scope}"
