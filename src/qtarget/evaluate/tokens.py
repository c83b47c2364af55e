"""The policy reads demonstrations: statistics of every supervised token, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from qtarget.data.batch import Batch
from qtarget.evaluate.calibration import PROBE, Reliability
from qtarget.math.loss import LossOutput, linear_loss
from qtarget.math.target import Design
from qtarget.model.frozen import Frozen
from qtarget.model.policy import Policy


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
