"""The scale of a micro-batch and the scope values of a step, against their definitions over the whole step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from training import batches, eight_rows, live, module
from worlds import load_design

from qtarget.data.batch import Batch, Collate, step_window
from qtarget.data.example import Example
from qtarget.math.loss import IGNORE, LossOutput
from qtarget.math.scope_values import TokenTable, scope_values_of
from qtarget.train.step import MicroBatchScale, StepNormalizer, extra_forward_passes, normalizer

CUTS = [(8, 1), (3, 3), (1, 8)]
"""Rows of a micro-batch, micro-batches of the step."""
DIVIDED: dict[str, dict[str, Any]] = {
    "tokens": {},
    "weight_sum": {"normalize": "weight_sum"},
    "kept": {"normalize": "kept", "reliance.threshold": 0.004},
    "sequences": {"normalize": "sequences"},
}


def scales(design: str, changes: dict[str, Any], micro: list[Batch]) -> list[MicroBatchScale]:
    trained = module(design, changes, **live(design))
    return [trained.normalizer.for_batch(batch) for batch in micro]


def per_label(scale: Tensor | float, batch: Batch) -> Tensor:
    """[N], of the supervised tokens."""
    return torch.as_tensor(scale).expand(batch.labels.shape)[batch.labels != IGNORE]


def masses(design: str, changes: dict[str, Any]) -> Tensor:
    (whole,) = batches(eight_rows(), batch_size=8)
    return module(design, changes).token_loss(replace(whole, window=None)).mass


@pytest.mark.parametrize(("rows", "accumulate"), CUTS)
@pytest.mark.parametrize("divided", DIVIDED)
def test_a_step_without_weights_of_the_data_is_divided_as_its_name_says(
    divided: str, rows: int, accumulate: int
) -> None:
    design = "profit" if divided == "kept" else "dft"
    micro = batches(eight_rows(), batch_size=rows, accumulate=accumulate)
    got = [
        per_label(scale.token_scale, batch) / accumulate
        for scale, batch in zip(scales(design, DIVIDED[divided], micro), micro, strict=True)
    ]
    mass = masses(design, DIVIDED[divided])
    lengths = [batch.sequence_lengths[batch.labels != IGNORE] for batch in micro]
    expected = {
        "tokens": lambda of: torch.full((len(of),), 1 / len(mass)),
        "weight_sum": lambda of: torch.full((len(of),), 1 / float(mass.sum())),
        "kept": lambda of: torch.full((len(of),), 1 / int((mass > 0).sum())),
        "sequences": lambda of: 1 / (8 * of),
    }[divided]
    assert 0 < int((mass > 0).sum()) <= len(mass)
    for ours, of in zip(got, lengths, strict=True):
        torch.testing.assert_close(ours.float(), expected(of), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("rows", "accumulate"), CUTS)
@pytest.mark.parametrize("design", ["rho1", "talr"])
def test_each_micro_batch_has_its_rows_of_the_steps_scope_values(design: str, rows: int, accumulate: int) -> None:
    def values(micro: list[Batch]) -> Tensor:
        per_batch = [next(iter(scale.scope_values.values())) for scale in scales(design, {}, micro)]
        assert [len(own) for own in per_batch] == [batch.supervised for batch in micro]
        return torch.cat(per_batch)

    whole = values(batches(eight_rows(), batch_size=8))
    torch.testing.assert_close(values(batches(eight_rows(), batch_size=rows, accumulate=accumulate)), whole)


@pytest.mark.parametrize("divided", ["tokens", "sequences", "weight_sum"])
def test_a_design_that_looks_at_the_step_is_divided_as_any_other(divided: str) -> None:
    """Rho-1 keeps a share of the step's tokens, and is 1 there: the sum of its masses is their number."""
    micro = batches(eight_rows(), batch_size=3, accumulate=3)
    made = scales("rho1", {"normalize": divided}, micro)
    kept = sum(int(next(iter(scale.scope_values.values())).sum()) for scale in made)
    assert micro[0].window is not None
    tokens = micro[0].window.tokens
    assert kept == round(0.6 * tokens)
    for scale, batch in zip(made, micro, strict=True):
        got = per_label(scale.token_scale, batch).float()
        lengths = batch.sequence_lengths[batch.labels != IGNORE]
        expected = {"tokens": 3 / tokens, "weight_sum": 3 / kept, "sequences": 3 / (8 * lengths)}[divided]
        torch.testing.assert_close(got, torch.as_tensor(expected).expand(len(got)), rtol=1e-5, atol=0)


def test_a_step_of_which_nothing_is_kept_moves_nothing() -> None:
    (batch,) = batches(eight_rows(), batch_size=8)
    changes = {"normalize": "kept", "reliance.threshold": 1.0}
    (scale,) = scales("profit", changes, [batch])
    assert scale.token_scale == 0.0
    trained = module("profit", changes)
    trained.training_step(batch, 0).backward()
    assert not any(p.grad.any() for p in trained.policy.parameters() if p.grad is not None)


def test_a_step_that_teaches_nothing_has_scales_that_are_numbers() -> None:
    bare = Collate(0)([Example([5, 6, 7], [False] * 3, {}, row=0)])
    batch = replace(bare, window=step_window([bare], 1))
    for normalize in ("tokens", "sequences"):
        (scale,) = scales("sft", {"normalize": normalize}, [batch])
        assert torch.isfinite(torch.as_tensor(scale.token_scale)).all()


def test_the_policy_reads_a_step_once_for_scope_values_and_once_for_a_divisor() -> None:
    divisors = ("tokens", "sequences", "kept", "weight_sum")
    passes = {
        design: [extra_forward_passes(load_design(design, normalize=divisor)) for divisor in divisors]
        for design in ("dft", "rho1")
    }
    assert passes == {"dft": [0, 0, 1, 1], "rho1": [1, 1, 2, 2]}
    assert normalizer(load_design("cft")) == "kept"
    assert normalizer(lambda view: None) == "tokens"


def test_the_step_is_read_at_its_first_micro_batch_alone() -> None:
    micro = batches(eight_rows(), batch_size=2, accumulate=4)
    read: list[int] = []

    def table(batch: Batch) -> TokenTable:
        read.append(len(batch.labels))
        labels = batch.labels[batch.labels != IGNORE]
        logp = torch.linspace(-2, -1, len(labels))
        return TokenTable({"policy": logp, "teacher": logp.flip(0)}, labels, None)

    def loss(batch: Batch, values: object) -> LossOutput:
        raise AssertionError("a divisor of tokens is known before")

    design = load_design("rho1", normalize="tokens")
    step = StepNormalizer(design, torch.nn.Module(), table, loss)
    made = [step.for_batch(batch) for batch in micro]
    assert read == [2, 2, 2, 2]
    whole = scope_values_of(design, TokenTable.join([table(batch) for batch in micro]))
    got = torch.cat([next(iter(scale.scope_values.values())) for scale in made])
    assert torch.equal(got, next(iter(whole.values())))
