"""Calibration and retention: what is read beside the nll of held-out text."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error
from training import batches, eight_rows, other_policy, tiny_policy

from qtarget.data.batch import Batch
from qtarget.evaluate.calibration import BINS, Reliability, retention_metrics, token_metrics
from qtarget.math import tokens
from qtarget.math.loss import IGNORE
from qtarget.model.frozen import FrozenModel
from qtarget.model.policy import Policy


def sharp_policy() -> Policy:
    """Sure of itself to many degrees, so that several bins hold tokens."""
    policy = other_policy().eval()
    with torch.no_grad():
        policy.lm.model.norm.weight.mul_(20)
    return policy


def rows(batch_size: int = 3) -> list[Batch]:
    return batches(eight_rows(), batch_size=batch_size)


@torch.no_grad()
def known(policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [N, V] and labels [N] of every supervised token, by transformers alone."""
    pairs = [(policy.lm(input_ids=batch.input_ids).logits.softmax(-1), batch.labels) for batch in rows()]
    kept = [(p[labels != IGNORE], labels[labels != IGNORE]) for p, labels in pairs]
    return torch.cat([p for p, _ in kept]), torch.cat([labels for _, labels in kept])


@pytest.mark.parametrize("chunk", [7, 10_000])
def test_the_calibration_error_is_torchmetrics(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "default_chunk", lambda vocab_size: chunk)
    policy, reliability = sharp_policy(), Reliability()
    found = token_metrics(policy, None, rows(), reliability)
    p, labels = known(policy)
    expected = multiclass_calibration_error(p, labels, num_classes=p.shape[1], n_bins=BINS, norm="l1")
    assert found["ece"] == pytest.approx(float(expected), rel=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"]))
    bins = reliability.bins()
    assert sum(one["tokens"] for one in bins) == len(labels)
    assert sum(one["tokens"] > 0 for one in bins) > 3


def test_the_reliability_curve_of_a_few_tokens() -> None:
    reliability = Reliability()
    reliability.update(torch.tensor([0.2, 0.21, 1.0]), torch.tensor([1.0, 0.0, 1.0]))
    reliability.update(torch.tensor([0.0]), torch.tensor([0.0]))
    bins = reliability.bins()
    assert [one["tokens"] for one in bins] == [1, 0, 0, 2, *[0] * 10, 1]
    assert bins[3]["confidence"] == pytest.approx(0.205)
    assert bins[3]["accuracy"] == 0.5
    assert bins[1]["accuracy"] is None
    assert (bins[3]["low"], bins[14]["high"]) == (0.2, 1.0)
    assert reliability.error == pytest.approx(2 / 4 * abs(0.205 - 0.5))


def test_calibration_is_measured_in_the_pass_that_measures_nll(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, passes = tiny_policy().eval(), []
    forward = policy.forward
    monkeypatch.setattr(policy, "forward", lambda *given: passes.append(1) or forward(*given))
    found = token_metrics(policy, FrozenModel(tiny_policy()), rows())
    assert len(passes) == len(rows())
    assert found.keys() == {"nll", "perplexity", "ece", "kl_prior"}


def test_retention_against_the_definition() -> None:
    policy, prior = sharp_policy(), tiny_policy().eval()
    found = retention_metrics(policy, FrozenModel(prior), rows())
    (p, labels), (q, _) = known(policy), known(prior)
    at_label: Any = (torch.arange(len(labels)), labels)
    assert found == pytest.approx(
        {
            "nll": float(-p[at_label].log().mean()),
            "nll_drift": float((q[at_label].log() - p[at_label].log()).mean()),
            "kl_prior": float((p * (p.clamp_min(1e-38).log() - q.log())).sum(-1).mean()),
        },
        rel=1e-4,
    )
    assert retention_metrics(policy, None, rows()) == pytest.approx({"nll": found["nll"]})
    assert retention_metrics(policy, None, []) == {}


def test_a_policy_that_is_its_prior_has_forgotten_nothing() -> None:
    found = retention_metrics(tiny_policy().eval(), FrozenModel(tiny_policy()), rows())
    assert found["nll_drift"] == found["kl_prior"] == 0.0
