"""Does a design tell wrong tokens from clean ones? Asked of what it trusts, where the truth of the noise is known.

Areas are torchmetrics'. Its metric objects are not used: they keep every token, and a run has more than fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from qtarget.math.loss import LossOutput
from qtarget.parallel import all_gather_objects, all_reduce_sum
from qtarget.train.normed_adamw import exact

LIMIT = 1 << 20
"""Tokens that are stored at most: 16 MB. Of more, one of two is stored, then one of four, evenly over time."""
SUSPICIONS = {"": ("trust", -1.0), "_policy": ("nll", 1.0), "_prior": ("prior_nll", 1.0)}
"""Suffix of a metric → the score that is high where a label is suspected to be wrong: a field of the loss, and a sign.

To beat: the probability that the policy and the prior give the label, which no design is needed for.
"""


class NoiseDetection:
    """How well low trust tells which tokens noise made wrong, over the tokens of all ranks.

    Stores a row per token on the CPU: its scores, in the order of SUSPICIONS, and whether it is wrong.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._norms = torch.zeros(2, 2, dtype=torch.float64)  # clean and wrong tokens: gradient norms, and how many
        self._restart()

    def _restart(self) -> None:
        self._norms.zero_()
        self._stored: list[Tensor] = []
        self._stride = 1  # one of so many tokens is stored
        self._seen = self._count = 0

    def to(self, device: torch.device) -> NoiseDetection:
        self._norms = self._norms.to(device, exact(device))
        return self

    def update(self, out: LossOutput, wrong: Tensor) -> None:
        """out: measures of N tokens; wrong [N] bool: the tokens that noise made wrong."""
        norm = gradient_norm(out).to(self._norms.dtype)
        for kind, chosen in enumerate((~wrong, wrong)):
            self._norms[kind, 0] += (norm * chosen).sum()
            self._norms[kind, 1] += chosen.sum()
        suspicions = [sign * getattr(out, field).float() for field, sign in SUSPICIONS.values()]
        self._store(torch.stack([*suspicions, wrong.float()], dim=1))

    def _store(self, rows: Tensor) -> None:
        chosen = rows[-self._seen % self._stride :: self._stride].cpu()
        self._stored.append(chosen)
        self._seen += len(rows)
        self._count += len(chosen)
        self._thin()

    def _thin(self) -> None:
        while self._count > self.limit:
            self._stored = [torch.cat(self._stored)[::2]]
            self._count = len(self._stored[0])
            self._stride *= 2

    def compute(self) -> dict[str, float]:
        """Metrics of the tokens so far; {} without a wrong token and a clean one. Collective.

        "detection/auroc": the probability that a wrong token is trusted less than a clean one, ties counting half;
        "detection/average_precision": the precision at each wrong token's trust, averaged; both also by the label's
        probability under the policy ("…_policy") and, where the design reads one, under the prior ("…_prior").
        "detection/gradient_share": the wrong tokens' share of Σ_t ‖∂loss_t/∂logits‖₁; "detection/wrong_share": their
        share of the tokens, which is the average precision of guessing.
        """
        (clean_norm, clean), (wrong_norm, wrong) = all_reduce_sum(self._norms).tolist()
        if not clean or not wrong:
            return {}
        metrics = {"detection/wrong_share": wrong / (clean + wrong)}
        if clean_norm + wrong_norm:
            metrics["detection/gradient_share"] = wrong_norm / (clean_norm + wrong_norm)
        return metrics | _ranking_metrics(self._all_ranks())

    def state_dict(self) -> dict[str, Any]:
        return {"norms": self._norms.clone(), "kept": self._rows(), "stride": self._stride, "seen": self._seen}

    def load_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from what ranks had seen, all of it in one, every rank thinned to the coarsest stride."""
        self._restart()
        if not states:
            return
        self._stride = max(state["stride"] for state in states)
        for state in states:
            self._norms += state["norms"].to(self._norms)
            self._stored.append(state["kept"][:: self._stride // state["stride"]])
        self._seen = sum(state["seen"] for state in states)
        self._count = sum(map(len, self._stored))
        self._thin()

    def _rows(self) -> Tensor:
        """[tokens stored, scores and truth]."""
        return torch.cat(self._stored) if self._stored else torch.zeros(0, len(SUSPICIONS) + 1)

    def pop(self) -> dict[str, float]:
        """`compute`, then start again."""
        metrics = self.compute()
        self._restart()
        return metrics

    def _all_ranks(self) -> Tensor:
        """[tokens, scores and truth] of all ranks, every rank thinned to the coarsest stride."""
        pairs = all_gather_objects((self._stride, self._rows()))
        coarsest = max(stride for stride, _ in pairs)
        return torch.cat([rows[:: coarsest // stride] for stride, rows in pairs])


def gradient_norm(out: LossOutput) -> Tensor:
    """‖∂loss_t/∂logits‖₁ = ‖w·(m·p − Q)‖₁ = 2·|w|·gap [N]: before the step's normalisation."""
    return 2 * (out.weight * out.gap).abs()


def _ranking_metrics(rows: Tensor) -> dict[str, float]:
    """rows [tokens, scores and truth]."""
    wrong = rows[:, -1].bool()
    if not wrong.any() or wrong.all():  # a thinned sample may have lost the few there were
        return {}
    metrics = {}
    for column, ending in enumerate(SUSPICIONS):
        score = rows[:, column]
        if not score.isnan().any():  # there is no prior
            metrics[f"detection/auroc{ending}"] = auroc(score, wrong)
            metrics[f"detection/average_precision{ending}"] = average_precision(score, wrong)
    return metrics


def auroc(score: Tensor, positive: Tensor) -> float:
    """P(score of a positive > score of a negative), ties counting half: the area under the ROC curve.

    score [N] float, positive [N] bool, with at least one of each kind. Right to 6 digits.
    """
    return float(binary_auroc(_rank(score), positive.long(), validate_args=False))


def average_precision(score: Tensor, positive: Tensor) -> float:
    """Σ_k (recall_k − recall_{k−1})·precision_k over the distinct scores, highest first; arguments as of `auroc`."""
    return float(binary_average_precision(_rank(score), positive.long(), validate_args=False))


def _rank(score: Tensor) -> Tensor:
    """The rank of each score among the distinct ones, in [0, 1), float64.

    torchmetrics 1.9 takes scores beyond [0, 1] for logits: after its sigmoid, nlls of 18 and 19 would be a tie.
    """
    rank = score.unique(return_inverse=True)[1]
    return rank.double() / len(score)
