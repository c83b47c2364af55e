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


@pytest.mark.parametrize("pair", [(0, 1), (0, 3), (1, 2), (1, 3), (2, 3)])
def test_any_two_equal_ids_of_a_row_are_refused(pair: tuple[int, int]) -> None:
    """Whatever their places, and whether smaller or larger ids stand beside them."""
    for others in ([0, 1], [9, 10], [0, 10]):
        ids = torch.full((2, 4), 5)
        ids[0] = torch.tensor([3, 4, 5, 6])
        ids[1, [place for place in range(4) if place not in pair]] = torch.tensor(others)
        with pytest.raises(QTargetError, match="row 1 of 2: token ids must differ"):
            Reference.topk(ids, torch.full((2, 4), -2.0), V)
    with pytest.raises(QTargetError, match=r"row 0 of 1: token ids must differ, got \[7, 7\]"):
        Reference.topk(torch.tensor([[7, 7]]), torch.full((1, 2), -2.0), V)


def test_one_token_may_be_all_that_was_kept() -> None:
    world = World.random(8)
    one = Reference.topk(*kept(world, 1), V)
    row = one.at(world.labels, world.logits.log_softmax(-1)).logp.exp()
    torch.testing.assert_close(row.sum(-1), torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize("vocab_size", [0, -3, 2.5, "11"])
def test_a_vocabulary_has_a_whole_number_of_tokens(vocab_size: Any) -> None:
    for make, values in ((Reference.topk, torch.full((1, 1), -1.0)), (Reference.sampled, torch.ones(1, 1).long())):
        with pytest.raises(QTargetError, match="vocab_size must be a whole number of at least 1"):
            make(torch.zeros(1, 1, dtype=torch.int64), values, vocab_size)


def test_log_probabilities_beyond_the_range_of_float32_are_numbers() -> None:
    """float64 is looked at in float64: e^−1e300 is no −∞ there, which only padding has."""
    ids, logp = torch.tensor([[0, 1]]), torch.tensor([[-1e-9, -1e300]], dtype=torch.float64)
    Reference.topk(ids, logp, V)
    with pytest.raises(QTargetError, match="hold −∞"):
        Reference.topk(ids, logp.float(), V)


@pytest.mark.parametrize(("k", "shown"), [(8, "0, 1, 2, 3, 4, 5, 6, 0]"), (9, "0, 1, 2, 3, 4, 5, 6, 7, …]")])
def test_of_a_wrong_row_the_first_eight_ids_are_shown(k: int, shown: str) -> None:
    ids = torch.arange(k)[None].clone()
    ids[0, -1] = 0
    with pytest.raises(QTargetError) as refused:
        Reference.topk(ids, torch.full((1, k), -3.0), V)
    assert f"token ids must differ, got [{shown}" in str(refused.value)


def test_of_a_wrong_row_the_first_eight_log_probabilities_are_shown() -> None:
    logp = torch.tensor([[-0.5 * (rank + 1) for rank in range(10)]])
    logp[0, 0] = 1.25
    with pytest.raises(QTargetError) as refused:
        Reference.topk(torch.arange(10)[None], logp, V)
    assert "log-probabilities [1.25, -1, -1.5, -2, -2.5, -3, -3.5, -4, …] sum to more than 1" in str(refused.value)


DRAWS: dict[str, tuple[list[list[int]], list[list[int]], str]] = {
    "id": ([[0, 1, 2], [3, 4, 11]], [[1, 1, 1], [1, 1, 1]], r"row 1 of 2: token ids must lie in \[0, 11\)"),
    "negative id": ([[0, 1, 2], [-1, 4, 1]], [[1, 1, 1], [1, 1, 1]], r"row 1 of 2: token ids must lie in \[0, 11\)"),
    "negative count": ([[0, 1, 2], [0, 1, 2]], [[1, 1, 1], [-1, 1, 1]], "row 1 of 2: a count is at least 0"),
    "a later count": ([[0, 1, 2], [0, 1, 2]], [[1, 1, -1], [1, 1, 1]], "row 0 of 2: a count is at least 0"),
    "no draw": ([[0, 1, 2], [0, 1, 2]], [[1, 1, 0], [0, 0, 0]], "row 1 of 2: nothing was drawn"),
}


@pytest.mark.parametrize("case", DRAWS)
def test_draws_that_are_none_are_refused_with_their_row(case: str) -> None:
    ids, counts, message = DRAWS[case]
    with pytest.raises(QTargetError, match=rf"Reference\.sampled, {message}; got ids \["):
        Reference.sampled(torch.tensor(ids), torch.tensor(counts), V)


def test_draws_come_in_the_shape_of_the_positions() -> None:
    ids = torch.randint(V, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    held = Reference.sampled(ids, torch.ones_like(ids), V)
    p = held.at(torch.zeros(6, dtype=torch.int64), torch.zeros(6, V)).p
    expected = torch.stack([torch.bincount(row, minlength=V) / 5 for row in ids.reshape(6, 5)])
    torch.testing.assert_close(p, expected)


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


def exact_scalars(logp: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """All that may be said of a label among log-probabilities, by its definition."""
    p, own = logp.exp(), logp.gather(1, labels[:, None])
    top = logp.topk(min(20, logp.shape[1])).values.log_softmax(-1)
    return {
        "logp": own.squeeze(1),
        "entropy": -(p * logp).sum(-1),
        "top_entropy": -(top.exp() * top).sum(-1),
        "outranked": torch.where(logp < own, p, 0.0).sum(-1),
        "concentration": (p * p).sum(-1),
    }


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 40.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scalars_of_any_distribution_are_taken_and_are_those_of_it_in_full(scale: float, dtype: torch.dtype) -> None:
    world = World.random(9, count=40, scale=scale)
    given = exact_scalars(world.prior, world.labels)
    thin = Reference.label(world.labels, {name: values.to(dtype) for name, values in given.items()})
    if dtype == torch.float64:
        policy = world.logits.log_softmax(-1)
        held, whole = (one.at(world.labels, policy) for one in (thin, Reference.full(world.prior)))
        for name in ("label_logp", "entropy", "outranked", "concentration"):
            torch.testing.assert_close(getattr(held, name), getattr(whole, name))
        torch.testing.assert_close(held.top_entropy(20), whole.top_entropy(20))


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
