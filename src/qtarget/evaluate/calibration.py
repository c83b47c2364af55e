"""Measures of the policy on demonstrations: nll, calibration, and drift from the prior.

The calibration error is computed here, not by torchmetrics: the reliability curve needs the sums of its bins, which
torchmetrics doesn't give, and it would keep the confidence of every token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qtarget.data.batch import Batch
from qtarget.design import reliance, residual, weight
from qtarget.evaluate.spreading import ALONE, Ranks
from qtarget.math.loss import IGNORE, LossOutput, linear_loss
from qtarget.math.target import Mixture
from qtarget.measures import CONFIDENCE, HIT, MEASURES
from qtarget.model.frozen import Frozen, FrozenModel
from qtarget.model.policy import Policy
from qtarget.model.rotation import forget_length

BINS = 15
Bin = Mapping[str, float | int | None]


PLAIN = Mixture(reliance.Constant(1.0), residual.Self(), weight.Constant(1.0))
"""Plain SFT: no measure of an evaluation depends on the design."""
EVALUATED = tuple(measure for measure in MEASURES if measure.evaluated)


class Reliability:
    """Sums over tokens in `BINS` equally wide bins [low, high) of confidence, the last one closed."""

    def __init__(self) -> None:
        self._sums = torch.zeros(BINS, 3, dtype=torch.float64)  # tokens, confidence, hits

    def update(self, confidence: Tensor, hit: Tensor) -> None:
        """Both [N]."""
        self.add(bin_sums(confidence, hit))

    def add(self, sums: Tensor) -> None:
        """What `bin_sums` makes of some tokens."""
        self._sums += sums

    @property
    def error(self) -> float:
        """ECE = Σ_b |Σ_{t in b} confidence − hits| / N: the mean distance between the two, by bin."""
        tokens, confidence, hits = self._sums.unbind(-1)
        return float((confidence - hits).abs().sum() / tokens.sum())

    def bins(self) -> list[Bin]:
        """The reliability curve, for a diagram: confidence and accuracy are means over a bin's tokens, None of none."""
        return [_bin(index, *sums) for index, sums in enumerate(self._sums.tolist())]


def bin_sums(confidence: Tensor, hit: Tensor) -> Tensor:
    """[N], [N] → tokens, Σ confidence, Σ hit of each bin [BINS, 3], float64, on the CPU."""
    bins = (confidence.double().cpu() * BINS).long().clamp_max(BINS - 1)
    values = torch.stack([torch.ones_like(confidence), confidence, hit], dim=-1).double().cpu()
    return torch.zeros(BINS, 3, dtype=torch.float64).index_add_(0, bins, values)


def _bin(index: int, tokens: float, confidence: float, hits: float) -> Bin:
    means = {"confidence": confidence / tokens, "accuracy": hits / tokens} if tokens else {}
    edges = {"low": index / BINS, "high": (index + 1) / BINS, "tokens": int(tokens)}
    return {**edges, "confidence": means.get("confidence"), "accuracy": means.get("accuracy")}


@dataclass(frozen=True)
class BatchSums:
    """What one batch adds to the measures: little enough to be sent from rank to rank.

    sums: over its tokens, by measure. nats: Σ −log p(y) of each example, row by row. bins: see `bin_sums`.
    """

    tokens: int
    sums: Mapping[str, float]
    nats: list[float]
    bins: Tensor


@torch.no_grad()
def read(
    policy: Policy,
    prior: Frozen | None,
    batches: Sequence[Batch],
    names: Sequence[str],
    *,
    ranks: Ranks = ALONE,
    watch: Callable[[list[Batch]], Iterable[Batch]] = iter,
) -> list[BatchSums]:
    """Each batch by one of the ranks, in the order of the batches, so that sums are those of one rank to the last bit.

    A batch's logits are never alive as a whole. watch: wraps this rank's batches. Collective.
    """
    own = []
    for batch in watch(ranks.share(batches, in_step=True)):
        moved = batch.to(policy.lm.device)
        for model in (policy, *([prior.policy] if isinstance(prior, FrozenModel) else [])):
            forget_length(model)
        references = {"prior": prior.exact(moved)} if prior else {}
        hidden, measures = policy(moved.input_ids, moved.position_ids, moved.lengths), (CONFIDENCE, HIT)
        out = linear_loss(hidden, policy.head, moved.labels, PLAIN, references=references, measures=measures)
        own.append(_sums(moved, out, names))
    return ranks.collected(own, len(batches))


def _sums(batch: Batch, out: LossOutput, names: Sequence[str]) -> BatchSums:
    return BatchSums(
        tokens=len(out.nll),
        sums={name: float(out.of(name).sum()) for name in names},
        nats=_example_nats(batch, out),
        bins=bin_sums(out.of(CONFIDENCE.name), out.of(HIT.name)),
    )


def _example_nats(batch: Batch, out: LossOutput) -> list[float]:
    of = (batch.labels != IGNORE).nonzero()[:, 0].cpu()  # out.nll [N] is in the order of positions, row by row
    sums = torch.zeros(len(batch.labels), dtype=torch.float64)
    nats: list[float] = sums.index_add_(0, of, out.nll.double().cpu()).tolist()
    return nats


class Means:
    """Means of measures over the tokens of batches."""

    def __init__(self, batches: Iterable[BatchSums]) -> None:
        self.tokens = 0
        self._sums: Counter[str] = Counter()
        for batch in batches:
            self.tokens += batch.tokens
            for name, value in batch.sums.items():
                self._sums[name] += value  # type: ignore[assignment]

    def __getitem__(self, name: str) -> float:
        return self._sums[name] / self.tokens

    def difference(self, name: str, other: str) -> float:
        return (self._sums[name] - self._sums[other]) / self.tokens


def token_metrics(
    policy: Policy,
    prior: Frozen | None,
    batches: Sequence[Batch],
    reliability: Reliability | None = None,
    nats: list[float] | None = None,
    **how: Any,
) -> dict[str, float]:
    """Per supervised token, by name, measured the same way for every design:

    the means of `EVALUATED`, those that need a prior only with one: nll = mean −log p(y) in nats and kl_prior = mean
    KL(p‖π_0) in nats, what the policy now says, judged by the model it started from; perplexity = exp(nll); ece = the
    calibration error of the likeliest token's probability. reliability: takes in what the curve is drawn from; nats:
    is given Σ −log p(y) of every example, in the order in which batches hold them. how: ranks and watch of `read`.
    Collective.
    """
    reliability = reliability or Reliability()
    names = [measure.name for measure in EVALUATED if prior or not measure.needs_prior]
    sums = read(policy, prior, batches, names, **how)
    for batch in sums:
        reliability.add(batch.bins)
        if nats is not None:
            nats += batch.nats
    means = Means(sums)
    if not means.tokens:
        return {}
    perplexity = float(torch.tensor(means["nll"], dtype=torch.float64).exp())
    metrics = {"nll": means["nll"], "perplexity": perplexity, "ece": reliability.error}
    return metrics | {name: means[name] for name in names}


def retention_metrics(policy: Policy, prior: Frozen | None, batches: Sequence[Batch], **how: Any) -> dict[str, float]:
    """Nats per supervised token of text that wasn't trained on, by name:

    nll = mean −log p(y); with a prior also kl_prior = mean KL(p‖π_0), and nll_drift = mean log π_0(y) − log p(y), which
    is positive where the text has been forgotten. how: ranks and watch of `read`. Collective.
    """
    means = Means(read(policy, prior, batches, ("nll", "kl_prior", "prior_nll") if prior else ("nll",), **how))
    if not means.tokens:
        return {}
    metrics = {"nll": means["nll"]}
    drift = {"kl_prior": means["kl_prior"], "nll_drift": means.difference("nll", "prior_nll")} if prior else {}
    return metrics | drift
