"""Designs that are the same under another name, and the batch in which every way of dividing gives another number."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from worlds import World, load_design

import qtarget
from qtarget import Reference
from qtarget.design.residual import Pool
from qtarget.math.target import Mixture

TABLE = json.loads((Path(__file__).parents[1] / "data" / "target_vectors.json").read_text())


def gradient(world: World, name: str, references: dict[str, Reference] | None = None, **changes: Any) -> Tensor:
    logits = world.leaf()
    arguments = world.given(name)
    arguments["references"] |= references or {}
    qtarget.dense_loss(logits, world.labels, load_design(name, **changes), **arguments).total.backward()
    assert logits.grad is not None
    return logits.grad


def alone(world: World) -> World:
    """The same tokens, each a sequence of its own."""
    return world.changed(sequence_ids=torch.arange(len(world.labels)))


def uniform_teacher(world: World) -> dict[str, Reference]:
    return {"teacher": Reference.full(torch.zeros_like(world.teacher).log_softmax(-1))}


def gift_as_mixture(world: World, beta: float = 2.0) -> Tensor:
    prior = world.prior.gather(1, world.labels[:, None]).exp()
    share = prior * (torch.e**beta - 1) / (1 + prior * (torch.e**beta - 1))
    towards_prior = world.logits.softmax(-1) - world.prior.exp()
    return share * gradient(world, "sft") + (1 - share) * towards_prior


def asft_as_scaled_mixture(world: World, lam: float = 0.1) -> Tensor:
    p = world.logits.softmax(-1)
    label = torch.nn.functional.one_hot(world.labels, 11)
    p_label = (p * label).sum(-1, keepdim=True)
    share = p_label / (p_label + lam)
    return (p_label + lam) * (p - share * label - (1 - share) * world.prior.exp())


def bucket_as_cross_entropy(world: World) -> Tensor:
    p, q = world.logits.softmax(-1), world.teacher.exp()
    kept = torch.zeros_like(q, dtype=torch.bool).scatter(1, q.topk(3).indices, True)
    tail_q, tail_p = (torch.where(kept, 0, row).sum(-1, keepdim=True) for row in (q, p))
    return p - torch.where(kept, q, tail_q * p / tail_p)


def bucket(world: World) -> Tensor:
    kept = {"teacher": Reference.full(world.teacher).truncated(3)}
    return gradient(world, "kd", kept)


IDENTITIES: dict[str, tuple[Callable[[World], Tensor], Callable[[World], Tensor]]] = {
    "DFT is beyond-log at α=1": (
        lambda w: gradient(w, "dft"),
        lambda w: gradient(w, "beyond_log", **{"reliance.alpha": 1.0}),
    ),
    "Target-SFT at η=0 is DFT": (
        lambda w: gradient(w, "target_sft", **{"residual.eta": 0.0}),
        lambda w: gradient(w, "dft"),
    ),
    "GEM at β=1, linear, is SFT": (
        lambda w: gradient(w, "gem", **{"residual.beta": 1.0}),
        lambda w: gradient(w, "sft"),
    ),
    "TALR at τ=1 without floor is DFT": (
        lambda w: gradient(w, "talr", **{"reliance.tau": 1.0, "reliance.floor": 0.0}),
        lambda w: gradient(w, "dft"),
    ),
    "TALR without floor is beyond-log at α=1/τ": (
        lambda w: gradient(w, "talr", **{"reliance.tau": 0.4, "reliance.floor": 0.0}),
        lambda w: gradient(w, "beyond_log", **{"reliance.alpha": 2.5}),
    ),
    "IDFT at λ_t=0 is DFT": (
        lambda w: gradient(w, "idft", **{"reliance.ramp": 0.0}),
        lambda w: gradient(w, "dft"),
    ),
    "InfoSFT at P=1 is DFT": (
        lambda w: gradient(w, "infosft", **{"reliance.ceiling": 1.0}),
        lambda w: gradient(w, "dft"),
    ),
    "SED-SFT draws to ½ only where the likeliest tokens leave room": (
        lambda w: gradient(w, "sed_sft", **{"weight.top": 2, "weight.mass": 0.7}),
        lambda w: published.loss_and_gradient(published.sed_sft, w, k=2, c=0.7)[1],
    ),
    "SED-SFT at λ=0 is SFT": (
        lambda w: gradient(w, "sed_sft", **{"weight.top": 2, "weight.strength": 0.0}),
        lambda w: gradient(w, "sft"),
    ),
    "hybrid KD at λ=0 is SFT": (
        lambda w: gradient(w, "kd_hybrid", **{"reliance.smoothing": 0.0}),
        lambda w: gradient(w, "sft"),
    ),
    "label smoothing is hybrid KD from a uniform teacher": (
        lambda w: gradient(w, "label_smoothing", **{"reliance.smoothing": 0.2}),
        lambda w: gradient(w, "kd_hybrid", uniform_teacher(w), **{"reliance.smoothing": 0.2}),
    ),
    "GIFT is γ·SFT + (1−γ)·KD from the prior": (
        lambda w: gradient(w, "gift", **{"reliance.beta": 2.0}),
        gift_as_mixture,
    ),
    "ASFT is (p+λ)·CE to its mixture": (lambda w: gradient(w, "asft"), asft_as_scaled_mixture),
    "PSFT unclipped is token-wise iw-SFT": (
        lambda w: gradient(w, "psft", **{"weight.epsilon": 1e9, "weight.source": "prior"}),
        lambda w: gradient(w, "iw_sft_token", **{"weight.low": 0.0, "weight.high": 1e9}),
    ),
    "a tail bucket is CE to a target whose tail is the policy's": (bucket, bucket_as_cross_entropy),
    # In the limit, and across kinds of design:
    "GIFT at large β is SFT": (
        lambda w: gradient(w, "gift", **{"reliance.beta": 60.0}),
        lambda w: gradient(w, "sft"),
    ),
    "PSFT with the policy as old is SFT": (
        lambda w: gradient(w, "psft", {"old": Reference.full(w.logits.log_softmax(-1))}),
        lambda w: gradient(w, "sft"),
    ),
    "iw-SFT on sequences of one token is token-wise": (
        lambda w: gradient(alone(w), "iw_sft"),
        lambda w: gradient(w, "iw_sft_token", **{"weight.low": 0.0, "weight.high": 16.0}),
    ),
    "T=1 changes nothing": (
        lambda w: gradient(w, "kd_temperature", **{"objective.temperature": 1.0}),
        lambda w: gradient(w, "kd"),
    ),
    "JSD at β=1 is reverse KL": (
        lambda w: gradient(w, "kd_jsd", **{"objective.beta": 1.0}),
        lambda w: gradient(w, "kd_reverse"),
    ),
    "JSD at β=0 is forward KL": (
        lambda w: gradient(w, "kd_jsd", **{"objective.beta": 0.0}),
        lambda w: gradient(w, "kd"),
    ),
    "JSD is skew KL of both ways": (
        lambda w: gradient(w, "kd_jsd", **{"objective.beta": 0.3}),
        lambda w: (
            0.3 * gradient(w, "skew_kl", **{"objective.alpha": 0.3})
            + 0.7 * gradient(w, "skew_kl_reverse", **{"objective.alpha": 0.7})
        ),
    ),
    "skew KL at α=0 is forward KL": (
        lambda w: gradient(w, "skew_kl", **{"objective.alpha": 0.0}),
        lambda w: gradient(w, "kd"),
    ),
    "skew reverse KL at α=0 is reverse KL": (
        lambda w: gradient(w, "skew_kl_reverse", **{"objective.alpha": 0.0}),
        lambda w: gradient(w, "kd_reverse"),
    ),
    "SFT + KL is a mixture, scaled": (
        lambda w: gradient(w, "sft_kl", anchor=0.25),
        lambda w: 1.25 * gradient(w, "kd_hybrid", {"teacher": Reference.full(w.prior)}, **{"reliance.smoothing": 0.2}),
    ),
}


@pytest.mark.parametrize("identity", IDENTITIES)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_gradients_are_the_same(identity: str, seed: int) -> None:
    left, right = IDENTITIES[identity]
    world = World.random(seed)
    torch.testing.assert_close(left(world), right(world), atol=1e-9, rtol=1e-7)


POOLS = {
    "self": (1, 0, 0),
    "guided": (0.5, 0, 0.5),
    "prior": (0, 1, 0),
    "teacher": (0, 0, 1),
    "uniform": (0, 0, 0),
    "sharpened": (1 / 0.7, 0, 0),
}
"""Residual → the exponents of p, prior and teacher at which a pool is the same."""


def in_target_sft(world: World, part: object, **given: Any) -> Tensor:
    """The gradient with a residual in Target-SFT's place."""
    logits = world.leaf()
    design = replace(load_design("target_sft"), residual=part)
    qtarget.dense_loss(logits, world.labels, design, **{**world.given(), **given}).total.backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_is_every_residual_that_it_reduces_to(name: str) -> None:
    world, shipped = World.random(13), load_design("target_sft", residual=name).residual
    pool = Pool(*POOLS[name])
    torch.testing.assert_close(in_target_sft(world, pool), in_target_sft(world, shipped), atol=1e-14, rtol=1e-12)
    assert pool.needs == getattr(shipped, "needs", {})
    assert pool.is_linear == getattr(shipped, "is_linear", False)


@pytest.mark.parametrize("exponents", [(0.4, 0.35, 0.25), (0.0, -0.25, 1.25), (-0.5, 0.0, 1.5), (0.1, -0.7, 0.2)])
def test_a_pool_is_the_product_of_powers(exponents: tuple[float, float, float]) -> None:
    world = World.random(14)
    p, b, q = world.logits.softmax(-1), world.prior.exp(), world.teacher.exp()
    product = p ** exponents[0] * b ** exponents[1] * q ** exponents[2]
    share = p.gather(1, world.labels[:, None])
    label = torch.nn.functional.one_hot(world.labels, 11)
    expected = p - share * label - (1 - share) * product / product.sum(-1, keepdim=True)
    torch.testing.assert_close(in_target_sft(world, Pool(*exponents)), expected, atol=1e-13, rtol=1e-11)


def test_a_pool_leaves_padded_rows_alone_and_skips_a_scheduled_zero() -> None:
    world = World.random(15)
    padded = world.changed(logits=torch.nn.functional.pad(world.logits, (0, 2), value=-torch.inf))
    gradient = in_target_sft(padded, Pool(-0.5, -0.5, 2.0))
    torch.testing.assert_close(gradient[:, :-2], in_target_sft(world, Pool(-0.5, -0.5, 2.0)))
    assert not gradient[:, -2:].any()
    top_k = world.references | {"teacher": Reference.full(world.teacher).truncated(3, tail="renormalised")}
    rising = in_target_sft(world, Pool(1.0, 0.0, "linear:0:1"), references=top_k, progress=0.0)
    torch.testing.assert_close(rising, in_target_sft(world, Pool(1.0, 0.0, 0.0)))


def test_a_pool_that_divides_by_a_reference_wants_all_of_it() -> None:
    world = World.random(16)
    top_k = world.references | {"teacher": Reference.full(world.teacher).truncated(3, tail="renormalised")}
    assert torch.isfinite(in_target_sft(world, Pool(0.5, 0.0, 0.5), references=top_k)).all()
    for exponent in (-0.5, "linear:0:-0.5"):
        with pytest.raises(qtarget.QTargetError, match=r"infinite where the teacher has no probability.*tail=bucket"):
            in_target_sft(world, Pool(1.5, 0.0, exponent), references=top_k)


# The batch case: two sequences, labels [1, 0, 3] and [2, 0], every position with the fixture's logits.

BATCH = TABLE["batch_reduction"]
LABELS = torch.tensor([[1, 0, 3], [2, 0, -100]])
REAL = torch.tensor([[True, True, True], [True, True, False]])


def batch_loss(name: str, **changes: Any) -> Any:
    common = TABLE["vectors"][0]["inputs"]

    def positions(key: str) -> Tensor:
        return torch.tensor(common[key], dtype=torch.float64).expand(2, 3, 4)

    prior = Reference.full(positions("prior_logits").log_softmax(-1).reshape(6, 4))
    design = load_design(name, **changes)
    return qtarget.dense_loss(positions("logits"), LABELS, design, references={"prior": prior, "teacher": prior})


def close(value: Tensor | float, expected: float) -> None:
    assert float(value) == pytest.approx(expected, abs=2e-6)


def test_every_way_to_divide_a_batch_is_the_tables() -> None:
    sft, dft = batch_loss("sft"), batch_loss("dft")
    close(sft.loss.mean(), BATCH["sft_token_mean"])
    close((sft.loss[:3].mean() + sft.loss[3:].mean()) / 2, BATCH["sft_sequence_mean_of_token_means"])
    close(dft.loss.mean(), BATCH["dft_token_mean"])
    close(dft.loss.sum() / dft.mass.sum(), BATCH["dft_weight_normalised"])
    kept = batch_loss("beyond_log_threshold", **{"reliance.threshold": 0.2})
    close(kept.loss.sum() / 5, BATCH["threshold_logp_q0.2_divide_by_all_valid (ProFiT rule)"])
    close(kept.loss.sum() / (kept.mass > 0).sum(), BATCH["threshold_logp_q0.2_divide_by_kept (Beyond-log code rule)"])


def test_designs_that_look_at_the_batch_are_the_tables() -> None:
    rho1 = batch_loss("rho1", **{"reliance.source": "prior"})
    assert rho1.reliance.nonzero().flatten().tolist() == BATCH["rho1_selected_k60pct"]
    close(rho1.loss.sum() / rho1.mass.sum(), BATCH["rho1_loss_divide_by_selected"])
    iw_sft = batch_loss("iw_sft")
    first, second = BATCH["iw_sft_sequence_weights"]
    assert iw_sft.weight.tolist() == pytest.approx([first] * 3 + [second] * 2, abs=1e-6)
    close(iw_sft.loss.mean(), BATCH["iw_sft_loss_divide_by_all_tokens"])
    talr = batch_loss("talr")
    assert talr.reliance.tolist() == pytest.approx(BATCH["talr_weights(tau=lower)"], abs=1e-6)
    close(talr.loss.mean(), BATCH["talr_loss_token_mean"])


def test_a_part_that_looks_beyond_its_token_says_so_when_called_alone() -> None:
    design = load_design("talr")
    assert isinstance(design, Mixture)
    view = qtarget.TokenView(torch.zeros(2, 3).log_softmax(-1), torch.tensor([0, 1]))
    with pytest.raises(qtarget.QTargetError, match="looks beyond single tokens: call it through"):
        design(view)
