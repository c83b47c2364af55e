"""Published designs on the one-token fixture: loss, gradient, γ, w and Q to the digits of the reference table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import qtarget
from qtarget import Head, Reference

VECTORS = json.loads((Path(__file__).parent / "data" / "target_vectors.json").read_text())["vectors"]

# design of the table → (ours, its parameters → our changes)
OURS = {
    "sft": ("sft", lambda p: {}),
    "label_smoothing": ("label_smoothing", lambda p: {"reliance.smoothing": p["epsilon"]}),
    "dft": ("dft", lambda p: {}),
    "kd_forward_ce": ("kd", lambda p: {}),
    "target_sft": ("target_sft", lambda p: {"residual.eta": p["eta"]}),
    "prift_prob": ("dft", lambda p: {"reliance.source": "prior"}),
    "one_minus_prior": ("one_minus_prior", lambda p: {}),
}
CASES = [vector for vector in VECTORS if vector["design"] in OURS]


def case_name(vector: dict[str, Any]) -> str:
    return f"{vector['design']}-{vector['params']}-y{vector['inputs']['label']}"


def inputs(vector: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, dict[str, Reference]]:
    given = vector["inputs"]

    def row(name: str) -> torch.Tensor:
        return torch.tensor([given[name]], dtype=torch.float64)

    references = {
        "prior": Reference.full(row("prior_logits").log_softmax(-1)),
        "teacher": Reference.full(row("teacher_logits").log_softmax(-1)),
    }
    return row("logits"), torch.tensor([given["label"]]), references


def design_of(vector: dict[str, Any]) -> Any:
    name, changes = OURS[vector["design"]]
    return qtarget.load_design(name, **changes(vector["params"]))


def test_every_shipped_design_has_a_vector() -> None:
    assert {name for name, _ in OURS.values()} == set(qtarget.list_designs())


@pytest.mark.parametrize("vector", CASES, ids=case_name)
def test_dense_loss_matches_the_table(vector: dict[str, Any]) -> None:
    logits, labels, references = inputs(vector)
    logits.requires_grad_()
    out = qtarget.dense_loss(logits, labels, design_of(vector), references=references)
    out.total.backward()
    assert out.total.item() == pytest.approx(vector["loss"], abs=1e-6)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx(vector["grad"], abs=1e-6)
    induced = logits.detach().softmax(-1) - logits.grad
    assert induced[0].tolist() == pytest.approx(vector["Q_induced"], abs=1e-6)


@pytest.mark.parametrize("vector", CASES, ids=case_name)
def test_linear_loss_matches_the_table(vector: dict[str, Any]) -> None:
    """Hidden states that are the logits, and an identity head: the gradient of both is known from the table."""
    logits, labels, references = inputs(vector)
    hidden, weight = logits.requires_grad_(), torch.eye(4, dtype=torch.float64, requires_grad=True)
    out = qtarget.linear_loss(hidden, Head(weight), labels, design_of(vector), references=references)
    out.total.backward()
    assert out.loss.item() == pytest.approx(vector["loss"], abs=1e-6)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert hidden.grad[0].tolist() == pytest.approx(vector["grad"], abs=1e-6)
    expected = torch.outer(torch.tensor(vector["grad"], dtype=torch.float64), hidden.detach()[0])
    torch.testing.assert_close(weight.grad, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("vector", CASES, ids=case_name)
def test_reliance_and_trust_match_the_table(vector: dict[str, Any]) -> None:
    logits, labels, references = inputs(vector)
    out = qtarget.dense_loss(logits, labels, design_of(vector), references=references)
    label = vector["inputs"]["label"]
    assert out.reliance.item() == pytest.approx(vector["gamma"], abs=1e-6)
    assert out.nll.item() == pytest.approx(-logits.log_softmax(-1)[0, label].item(), abs=1e-9)
    # Trust is −∂L/∂z_y in units of plain SFT's 1 − p_y, whatever the spelling of the method.
    assert out.trust.item() == pytest.approx(-vector["grad"][label] / (1 - vector["p_label"]), abs=1e-5)
    assert (out.weight * out.gap).item() == pytest.approx(0.5 * sum(map(abs, vector["grad"])), abs=1e-5)


def test_a_prior_known_by_label_statistics_serves_a_weighting_design() -> None:
    vector = next(vector for vector in CASES if vector["design"] == "one_minus_prior")
    logits, labels, references = inputs(vector)
    prior = references["prior"].rows
    assert prior is not None
    thin = Reference.label(labels, {"logp": prior[0, labels]})
    out = qtarget.dense_loss(logits, labels, design_of(vector), references={"prior": thin})
    assert out.total.item() == pytest.approx(vector["loss"], abs=1e-6)
