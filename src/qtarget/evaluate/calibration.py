"""The policy reads demonstrations: how well its probabilities are calibrated, and what it kept of the model it was.

The calibration error is computed here, not by torchmetrics: the reliability curve needs the sums of its bins, which
torchmetrics doesn't give, and it would keep the confidence of every token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qtarget.data.batch import Batch
from qtarget.design import reliance, residual, weight
from qtarget.math.loss import LossOutput, linear_loss
from qtarget.math.target import Design, Mixture
from qtarget.math.view import TokenView
from qtarget.model.frozen import Frozen
from qtarget.model.policy import Policy

BINS = 15
Bin = Mapping[str, float | int | None]


@dataclass(frozen=True)
class Confidence:
    """max_v p(v) [n], where a design has its reliance."""

    def __call__(self, view: TokenView) -> Tensor:
        return view.logp.amax(-1).exp()


@dataclass(frozen=True)
class Hit:
    """1 where the label is the likeliest token, else 0 [n], where a design has its weight."""

    def __call__(self, view: TokenView) -> Tensor:
        return (view.logp.argmax(-1) == view.labels).to(view.logp.dtype)


PROBE = Mixture(Confidence(), residual.Self(), Hit())
"""No design to train with: through its parts the loss, which goes chunk by chunk, reads what calibration is made of."""


class Reliability:
    """Sums over tokens in `BINS` equally wide bins [low, high) of confidence, the last one closed."""

    def __init__(self) -> None:
        self._sums = torch.zeros(BINS, 3, dtype=torch.float64)  # tokens, confidence, hits

    def update(self, confidence: Tensor, hit: Tensor) -> None:
        """Both [N]."""
        place = (confidence.double().cpu() * BINS).long().clamp_max(BINS - 1)
        values = torch.stack([torch.ones_like(confidence), confidence, hit], dim=-1)
        self._sums.index_add_(0, place, values.double().cpu())

    @property
    def error(self) -> float:
        """ECE = Σ_b |Σ_{t in b} confidence − hits| / N: the mean distance between the two, by bin."""
        tokens, confidence, hits = self._sums.unbind(-1)
        return float((confidence - hits).abs().sum() / tokens.sum())

    def bins(self) -> list[Bin]:
        """The reliability curve, for a diagram: confidence and accuracy are means over a bin's tokens, None of none."""
        return [_bin(place, *sums) for place, sums in enumerate(self._sums.tolist())]


def _bin(place: int, tokens: float, confidence: float, hits: float) -> Bin:
    held = {"confidence": confidence / tokens, "accuracy": hits / tokens} if tokens else {}
    edges = {"low": place / BINS, "high": (place + 1) / BINS, "tokens": int(tokens)}
    return {**edges, "confidence": held.get("confidence"), "accuracy": held.get("accuracy")}


@torch.no_grad()
def read(policy: Policy, prior: Frozen | None, batches: Iterable[Batch], design: Design) -> Iterator[LossOutput]:
    """What `design` sees of each batch. A batch's logits are never alive as a whole."""
    for batch in (batch.to(policy.lm.device) for batch in batches):
        references = {"prior": prior.exact(batch)} if prior else {}
        hidden = policy(batch.input_ids, batch.position_ids)
        yield linear_loss(hidden, policy.head, batch.labels, design, references=references)


def token_metrics(
    policy: Policy, prior: Frozen | None, batches: Iterable[Batch], reliability: Reliability | None = None
) -> dict[str, float]:
    """Per supervised token, by name, measured the same way for every design:

    nll = mean −log p(y) in nats, perplexity = exp(nll), ece = the calibration error of the likeliest token's
    probability, and with a prior kl_prior = mean KL(p‖π_0) in nats: what the policy now says, judged by the model it
    started from. reliability: takes in what the curve is drawn from.
    """
    reliability = reliability or Reliability()
    nll = kl_prior = 0.0
    tokens = 0
    for out in read(policy, prior, batches, PROBE):
        nll += float(out.nll.sum())
        kl_prior += float(out.kl_prior.sum())
        tokens += len(out.nll)
        reliability.update(out.reliance, out.weight)
    if not tokens:
        return {}
    mean = nll / tokens
    found = {"nll": mean, "perplexity": float(torch.tensor(mean, dtype=torch.float64).exp()), "ece": reliability.error}
    return found | {"kl_prior": kl_prior / tokens} if prior else found


@dataclass(frozen=True)
class PriorNll:
    """−log π_0(y) [n], where a design has its weight."""

    def __call__(self, view: TokenView) -> Tensor:
        return -view.of("prior").label_logp


ALONE = Mixture(reliance.Constant(1.0), residual.Self(), weight.Constant(1.0))
BESIDE_PRIOR = Mixture(reliance.Constant(1.0), residual.Self(), PriorNll())


def retention_metrics(policy: Policy, prior: Frozen | None, batches: Iterable[Batch]) -> dict[str, float]:
    """Nats per supervised token of text that wasn't trained on, by name:

    nll = mean −log p(y); with a prior also kl_prior = mean KL(p‖π_0), and nll_drift = mean log π_0(y) − log p(y), which
    is positive where the text has been forgotten.
    """
    nll = kl_prior = prior_nll = 0.0
    tokens = 0
    for out in read(policy, prior, batches, BESIDE_PRIOR if prior else ALONE):
        nll += float(out.nll.sum())
        kl_prior += float(out.kl_prior.sum())
        prior_nll += float(out.weight.sum())
        tokens += len(out.nll)
    if not tokens:
        return {}
    found = {"nll": nll / tokens}
    return found | {"kl_prior": kl_prior / tokens, "nll_drift": (nll - prior_nll) / tokens} if prior else found
