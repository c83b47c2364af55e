"""What is given as a reference and is no distribution is refused with its row; what storage rounds off is not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import World, load_design

import qtarget
from qtarget import Reference
from qtarget.errors import QTargetError

V = 11


def kept(world: World, k: int = 3) -> tuple[Tensor, Tensor]:
    top = world.teacher.topk(k)
    return top.indices.clone(), top.values.clone()


def changed(tensor: Tensor, row: int, column: int, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor[row, column] = value
    return tensor


TOPK: dict[str, tuple[Any, str]] = {
    "duplicate": (lambda i, p: (changed(i, 4, 2, int(i[4, 0])), p), "row 4 of 7: token ids must differ"),
    "padding": (
        lambda i, p: (changed(i, 5, 2, 0), changed(p, 5, 2, -math.inf)),
        "row 5 of 7: log-probabilities .* hold −∞, which padding has",
    ),
    "padding as −1": (lambda i, p: (changed(i, 2, 2, -1), p), r"row 2 of 7: token ids must lie in \[0, 11\)"),
    "beyond": (lambda i, p: (changed(i, 6, 1, V), p), r"row 6 of 7: token ids must lie in \[0, 11\)"),
    "logits": (lambda i, p: (i, changed(p, 1, 0, 2.5)), "row 1 of 7: log-probabilities .* sum to more than 1"),
    "probabilities": (lambda i, p: (i, p.exp()), "row 0 of 7: .* they are logits, or probabilities"),
    "nan": (lambda i, p: (i, changed(p, 3, 1, math.nan)), "row 3 of 7: .* aren't numbers"),
    "infinite": (lambda i, p: (i, changed(p, 3, 1, math.inf)), "row 3 of 7: .* aren't numbers"),
    "float ids": (lambda i, p: (i.float(), p), "indices must be a tensor of whole numbers .* got float32"),
    "whole logp": (lambda i, p: (i, p.long()), "logp must be a tensor of floating-point numbers, got int64"),
    "no k": (lambda i, p: (i[:, :0], p[:, :0]), "k must be a whole number of at least 1, got 0"),
}


@pytest.mark.parametrize("case", TOPK)
@pytest.mark.parametrize("tail", ["bucket", "renormalised", "uniform"])
def test_a_top_k_that_is_none_is_refused_with_its_row(case: str, tail: str) -> None:
    change, message = TOPK[case]
    with pytest.raises(QTargetError, match=message):
        Reference.topk(*change(*kept(World.random(1))), V, tail=tail)


def test_a_row_is_counted_over_flattened_positions() -> None:
    ids, logp = (tensor.reshape(2, 3, 3) for tensor in kept(World.random(2, count=6)))
    ids[1, 1, 0] = ids[1, 1, 2]
    with pytest.raises(QTargetError, match="row 4 of 6: token ids must differ"):
        Reference.topk(ids, logp, V)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("vocab", [11, 5000])
def test_rounded_log_probabilities_are_taken(dtype: torch.dtype, vocab: int) -> None:
    """Spread and sharp, stored in 16 bits and read in 32."""
    for scale in (0.0, 0.3, 5.0, 60.0):
        logp = (scale * torch.randn(4, vocab, generator=torch.Generator().manual_seed(1))).log_softmax(-1).to(dtype)
        for stored in (logp, logp.float()):
            Reference.full(stored)
            top = stored.topk(vocab, dim=-1)
            Reference.topk(top.indices, top.values, vocab)
            Reference.topk(top.indices.int(), top.values, vocab)


def test_a_token_of_no_probability_has_a_way_in() -> None:
    world = World.random(3)
    ids, logp = kept(world)
    hard = Reference.topk(ids, logp.index_fill(1, torch.tensor([2]), -1e4), V)
    row = hard.at(world.labels, world.logits.log_softmax(-1)).logp.exp()
    torch.testing.assert_close(row.sum(-1), torch.ones(7, dtype=torch.float64))
    assert float(row.gather(1, ids[:, 2:]).sum()) == 0


def test_rows_of_supervised_positions_alone_are_taken() -> None:
    """The way on for those who have none for the prompt."""
    world = World.random(4)
    labels = world.labels.index_fill(0, torch.tensor([0, 1]), qtarget.IGNORE)
    ids, logp = kept(world)
    ids[:2], logp[:2] = 0, -math.inf
    with pytest.raises(QTargetError, match=r"row 0 .*\.of_supervised\(\)"):
        Reference.topk(ids, logp, V)
    given = {"teacher": Reference.topk(ids[2:], logp[2:], V).of_supervised()}
    whole = {"teacher": Reference.topk(*kept(world), V)}
    outputs = [qtarget.dense_loss(world.logits, labels, load_design("kd"), references=r) for r in (given, whole)]
    assert torch.equal(outputs[0].loss, outputs[1].loss)


@pytest.mark.parametrize("row", [0, 5, 999])
def test_one_row_of_logits_among_many_of_log_probabilities_is_named(row: int) -> None:
    logp = torch.randn(1000, V).log_softmax(-1)
    logp[row] += 0.1
    with pytest.raises(QTargetError, match=rf"don't sum to 1: row {row} of 1000 sums to 1\.105"):
        Reference.full(logp)
    logp[row] = torch.nan
    with pytest.raises(QTargetError, match=f"row {row} of 1000 sums to nan"):
        Reference.full(logp)


LABEL: dict[str, tuple[str, float, str]] = {
    "nll for log p": ("logp", 1.7, "row 3 of 7: logp = 1.7, and a log-probability is at most 0"),
    "nan": ("logp", math.nan, "row 3 of 7: logp = nan"),
    "negative entropy": ("entropy", -0.5, "entropy = -0.5, and an entropy is at least 0"),
    "entropy of nan": ("entropy", math.nan, "row 3 of 7: entropy = nan"),
    "top entropy": ("top_entropy", 3.2, r"the entropy of 20 tokens lies in \[0, ln 20\]"),
    "mass": ("outranked", 1.5, r"outranked = 1.5, and a probability mass lies in \[0, 1\]"),
    "negative mass": ("outranked", -0.2, "outranked = -0.2"),
    "no concentration": ("concentration", 0.0, r"Σ p² lies in \(0, 1\]"),
    "concentration": ("concentration", 2.0, r"concentration = 2, and Σ p² lies in \(0, 1\]"),
}


def label_scalars(world: World) -> dict[str, Tensor]:
    p = world.prior.exp()
    logp = world.prior.gather(1, world.labels[:, None]).squeeze(1)
    entropy = -(p * world.prior).sum(-1)
    return {"logp": logp, "entropy": entropy, "top_entropy": entropy, "outranked": 0 * logp, "concentration": p.sum(-1)}


@pytest.mark.parametrize("case", LABEL)
def test_a_label_scalar_out_of_its_range_is_refused_with_its_row(case: str) -> None:
    (name, value, message), world = LABEL[case], World.random(5)
    given = label_scalars(world)
    Reference.label(world.labels, given)
    given[name] = given[name].clone().index_fill(0, torch.tensor([3]), value)
    with pytest.raises(QTargetError, match=message):
        Reference.label(world.labels, given)
    unsupervised = world.labels.index_fill(0, torch.tensor([3]), qtarget.IGNORE)
    Reference.label(unsupervised, given)  # nobody reads what stands there


def test_an_entropy_above_that_of_the_vocabulary_is_refused() -> None:
    world = World.random(6)
    given = label_scalars(world) | {"entropy": torch.full((7,), 2.5).double()}
    prior = {"prior": Reference.label(world.labels, given)}
    with pytest.raises(QTargetError, match=r"the prior's entropy at supervised token 0 is 2.5 nats; over 11 tokens"):
        qtarget.dense_loss(world.logits, world.labels, load_design("one_minus_prior"), references=prior)


def test_shapes_and_kinds_that_do_not_fit_are_refused() -> None:
    world = World.random(7)
    logp, head = world.prior[:, 0], qtarget.Head(torch.randn(V, 4))
    with pytest.raises(QTargetError, match=r"the label scalar logp has the shape \(6,\), the labels \(7,\)"):
        Reference.label(world.labels, {"logp": logp[1:]})
    with pytest.raises(QTargetError, match="labels must be a tensor of whole numbers"):
        Reference.label(world.labels.float(), {"logp": logp})
    with pytest.raises(QTargetError, match=r"hidden states \(7, 5\) don't go with a head of weight \(11, 4\)"):
        Reference.hidden(torch.randn(7, 5), head)
    anything: Any = head.weight
    with pytest.raises(QTargetError, match=r"the head of a reference must be a qtarget\.Head, got Tensor"):
        Reference.hidden(torch.randn(7, 4), anything)
    with pytest.raises(QTargetError, match="holds topk already; only a full or hidden one is truncated"):
        Reference.topk(*kept(world), V).truncated(2)
