"""What the policy kept of the model it started from, on text outside the task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from qtarget.data.batch import Batch
from qtarget.design import reliance, residual, weight
from qtarget.evaluate.tokens import read
from qtarget.math.target import Mixture
from qtarget.math.view import TokenView
from qtarget.model.frozen import Frozen
from qtarget.model.policy import Policy


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
