"""Measures of the policy on demonstrations: nll, calibration, and drift from the prior.

The calibration error is computed here, not by torchmetrics: the reliability curve needs the sums of its bins, which
torchmetrics doesn't give, and it would keep the confidence of every token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from qtarget.data.batch import Batch
from qtarget.design import reliance, residual, weight
from qtarget.math.loss import IGNORE, LossOutput, linear_loss
from qtarget.math.target import Mixture
from qtarget.measures import CONFIDENCE, HIT, MEASURES, Measure
from qtarget.model.frozen import Frozen
from qtarget.model.policy import Policy

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
        bins = (confidence.double().cpu() * BINS).long().clamp_max(BINS - 1)
        values = torch.stack([torch.ones_like(confidence), confidence, hit], dim=-1)
        self._sums.index_add_(0, bins, values.double().cpu())

    @property
    def error(self) -> float:
        """ECE = Σ_b |Σ_{t in b} confidence − hits| / N: the mean distance between the two, by bin."""
        tokens, confidence, hits = self._sums.unbind(-1)
        return float((confidence - hits).abs().sum() / tokens.sum())

    def bins(self) -> list[Bin]:
        """The reliability curve, for a diagram: confidence and accuracy are means over a bin's tokens, None of none."""
        return [_bin(index, *sums) for index, sums in enumerate(self._sums.tolist())]


def _bin(index: int, tokens: float, confidence: float, hits: float) -> Bin:
    means = {"confidence": confidence / tokens, "accuracy": hits / tokens} if tokens else {}
    edges = {"low": index / BINS, "high": (index + 1) / BINS, "tokens": int(tokens)}
    return {**edges, "confidence": means.get("confidence"), "accuracy": means.get("accuracy")}


@torch.no_grad()
def read(
    policy: Policy, prior: Frozen | None, batches: Iterable[Batch], measures: Sequence[Measure] = ()
) -> Iterator[tuple[Batch, LossOutput]]:
    """Each batch with its usual measures, and these beside them. A batch's logits are never alive as a whole."""
    for batch in (batch.to(policy.lm.device) for batch in batches):
        references = {"prior": prior.exact(batch)} if prior else {}
        hidden = policy(batch.input_ids, batch.position_ids)
        yield batch, linear_loss(hidden, policy.head, batch.labels, PLAIN, references=references, measures=measures)


class ExampleNll:
    """Σ −log p(y) of each example, in the order in which batches hold them; every row of a batch is one example."""

    def __init__(self) -> None:
        self.nats: list[float] = []

    def update(self, batch: Batch, out: LossOutput) -> None:
        of = (batch.labels != IGNORE).nonzero()[:, 0].cpu()  # out.nll [N] is in the order of positions, row by row
        sums = torch.zeros(len(batch.labels), dtype=torch.float64)
        self.nats += sums.index_add_(0, of, out.nll.double().cpu()).tolist()


class Means:
    """Means of measures over tokens; those that need a prior are left out where there is none."""

    def __init__(self, measures: Iterable[str]) -> None:
        self._sums = dict.fromkeys(measures, 0.0)
        self.tokens = 0

    def update(self, out: LossOutput) -> None:
        for name in self._sums:
            self._sums[name] += float(out.of(name).sum())
        self.tokens += len(out.nll)

    def __getitem__(self, name: str) -> float:
        return self._sums[name] / self.tokens

    def difference(self, name: str, other: str) -> float:
        return (self._sums[name] - self._sums[other]) / self.tokens


def token_metrics(
    policy: Policy,
    prior: Frozen | None,
    batches: Iterable[Batch],
    reliability: Reliability | None = None,
    by_example: ExampleNll | None = None,
) -> dict[str, float]:
    """Per supervised token, by name, measured the same way for every design:

    the means of `EVALUATED`, those that need a prior only with one: nll = mean −log p(y) in nats and kl_prior = mean
    KL(p‖π_0) in nats, what the policy now says, judged by the model it started from; perplexity = exp(nll); ece = the
    calibration error of the likeliest token's probability. reliability: takes in what the curve is drawn from;
    by_example: the nll of every example.
    """
    reliability, by_example = reliability or Reliability(), by_example or ExampleNll()
    names = [measure.name for measure in EVALUATED if prior or not measure.needs_prior]
    means = Means(names)
    for batch, out in read(policy, prior, batches, (CONFIDENCE, HIT)):
        means.update(out)
        by_example.update(batch, out)
        reliability.update(out.of(CONFIDENCE.name), out.of(HIT.name))
    if not means.tokens:
        return {}
    perplexity = float(torch.tensor(means["nll"], dtype=torch.float64).exp())
    metrics = {"nll": means["nll"], "perplexity": perplexity, "ece": reliability.error}
    return metrics | {name: means[name] for name in names}


def retention_metrics(policy: Policy, prior: Frozen | None, batches: Iterable[Batch]) -> dict[str, float]:
    """Nats per supervised token of text that wasn't trained on, by name:

    nll = mean −log p(y); with a prior also kl_prior = mean KL(p‖π_0), and nll_drift = mean log π_0(y) − log p(y), which
    is positive where the text has been forgotten.
    """
    means = Means(("nll", "kl_prior", "prior_nll") if prior else ("nll",))
    for _, out in read(policy, prior, batches):
        means.update(out)
    if not means.tokens:
        return {}
    metrics = {"nll": means["nll"]}
    drift = {"kl_prior": means["kl_prior"], "nll_drift": means.difference("nll", "prior_nll")} if prior else {}
    return metrics | drift
