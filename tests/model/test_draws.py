"""Sampled references (RS-KD, arXiv 2503.16870): unbiased, few bytes a token, refused by designs not linear in them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from training import eight_rows, module, other_policy
from worlds import World, load_design

import qtarget
from qtarget import Reference
from qtarget.config.composing import compose_config
from qtarget.config.identity import config_hash
from qtarget.config.run_config import RunConfig
from qtarget.data.batch import Collate
from qtarget.errors import QTargetError
from qtarget.math.loss import IGNORE
from qtarget.math.target import check_references, needs
from qtarget.math.view import TokenView
from qtarget.model import cache_build, draws
from qtarget.model.cache import Cached, CachePlan
from qtarget.model.cache_build import ensure
from qtarget.model.cached_scores import Recipe
from qtarget.model.frozen import FrozenModel
from qtarget.run.plan import check_design

N = 64
LINEAR = {("asft", "prior"), ("kd", "teacher"), ("kd_hybrid", "teacher"), ("se_kd", "teacher"), ("sft_kl", "prior")}
"""Of the designs as shipped those whose gradient is linear in a reference."""


def frequencies(logp: Tensor, times: int, seed: int = 0) -> Tensor:
    """q̂ [times, V] of one distribution [V], drawn anew each time."""
    ids = draws.drawn(logp.expand(times, -1), draws.uniform(times, N, seed, 0))
    return torch.zeros(times, len(logp), dtype=torch.float64).scatter_add_(
        1, ids.long(), torch.full(ids.shape, 1 / N, dtype=torch.float64)
    )


def standard_errors(values: Tensor, expected: Tensor) -> Tensor:
    """How many standard errors the mean over rows lies off."""
    error = values.std(0).clamp_min(1e-12) / math.sqrt(len(values))
    return (values.mean(0) - expected).abs() / error


def zipf(vocab: int) -> Tensor:
    """log π [vocab]: p ∝ 1/rank, as words are."""
    return (-torch.arange(1, vocab + 1, dtype=torch.float64).log()).log_softmax(-1)


def test_draws_are_unbiased_and_vary_as_independent_ones_do() -> None:
    logp = torch.tensor([2.0, 1.0, 0.5, -1.0, -torch.inf], dtype=torch.float64).log_softmax(-1)
    seen = frequencies(logp, 20_000)
    assert standard_errors(seen[:, :4], logp[:4].exp()).max() < 4
    assert not seen[:, 4].any()  # what has no probability is never drawn
    q = logp[:4].exp()
    torch.testing.assert_close(seen[:, :4].var(0), q * (1 - q) / N, rtol=0.05, atol=0)


def test_a_top_64_is_biased_where_64_draws_are_not() -> None:
    """Of 2,000 tokens with p ∝ 1/rank the likeliest 64 hold 58 %: renormalised they miss 42 % of the mass and have as
    much too much among themselves; the mean of draws is off by nothing but chance.
    """
    logp = zipf(2000)
    q = logp.exp()
    top = Reference.topk(torch.arange(64)[None], logp[None, :64], 2000, tail="renormalised")
    kept = top.at(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2000, dtype=torch.float64)).p[0]
    bias = float((kept - q).abs().sum())
    assert bias == pytest.approx(2 * float(q[64:].sum()), rel=1e-6)
    assert bias > 0.8
    few, many = (float((frequencies(logp, times).mean(0) - q).abs().sum()) for times in (500, 8000))
    assert many < 0.05
    assert many == pytest.approx(few / 4, rel=0.15)  # as 1/√draws: there is nothing but chance


@pytest.mark.parametrize(("design", "role"), sorted(LINEAR))
def test_gradients_of_linear_designs_are_unbiased(design: str, role: str) -> None:
    """The mean gradient over 6,000 samples of a reference against that of the whole one, entry by entry."""
    world, made, times = World.random(3, count=1), load_design(design), 6000

    def gradient(reference: Reference, count: int) -> Tensor:
        logits = world.logits.expand(count, -1).clone().requires_grad_()
        given = {"references": {role: reference}, "columns": {}, "progress": 1.0, "sequence_ids": torch.arange(count)}
        qtarget.dense_loss(logits, world.labels.expand(count), made, **given).total.backward()
        assert logits.grad is not None
        return logits.grad

    logp = getattr(world, role)[0]
    ids = draws.drawn(logp.expand(times, -1), draws.uniform(times, N, 5, 0))
    sampled = gradient(Reference.sampled(ids, torch.ones_like(ids), len(logp)), times)
    whole = gradient(Reference.full(logp[None]), 1)[0]
    assert standard_errors(sampled, whole).max() < 4.5
    assert sampled.std(0).max() > 1e-3
    top = gradient(Reference.topk(*_top(logp, 2), len(logp), tail="renormalised"), 1)[0]
    assert ((top - whole).abs() / sampled.std(0).clamp_min(1e-9) * math.sqrt(times)).max() > 20


def _top(logp: Tensor, k: int) -> tuple[Tensor, Tensor]:
    kept = logp.topk(k)
    return kept.indices[None], kept.values[None]


def test_designs_that_are_not_linear_in_it_refuse_a_sampled_reference_by_name() -> None:
    accepted = set()
    for name in qtarget.list_designs():
        design = load_design(name)
        for role in needs(design):
            held = dict.fromkeys(needs(design), "full") | {role: "sampled"}
            if (name, role) in LINEAR:
                check_references(design, held, {})
                accepted.add((name, role))
                continue
            with pytest.raises(QTargetError, match=f"not linear in the probabilities of the {role}"):
                check_references(design, held, {})
    assert accepted == LINEAR


@pytest.mark.parametrize(
    ("design", "changes"),
    [
        ("target_sft", {"residual.eta": 1}),
        ("kd_jsd", {"objective.beta": 0}),
        ("kd_temperature", {"objective.temperature": 1}),
    ],
)
def test_a_design_is_linear_at_the_values_that_make_it_plain_kd(design: str, changes: dict[str, Any]) -> None:
    check_references(load_design(design, **changes), {"teacher": "sampled"}, {})
    with pytest.raises(QTargetError, match="not linear"):
        check_references(load_design(design), {"teacher": "sampled"}, {})


def test_two_parts_that_look_at_one_sampled_reference_are_refused() -> None:
    """γ(q)·q is not linear, though each part is by itself."""
    asft = load_design("asft", reliance="one_minus_prior")
    with pytest.raises(QTargetError, match=r"one_minus is not linear .*detail=topk or hidden"):
        check_references(asft, {"prior": "sampled"}, {})
    with pytest.raises(QTargetError, match="linear_reliance and prior both look at the prior"):
        check_references(replace(asft, reliance=LinearReliance()), {"prior": "sampled"}, {})


@dataclass(frozen=True)
class LinearReliance:
    """γ = π_0(y)."""

    needs: ClassVar[dict[str, str]] = {"prior": "label"}
    is_linear: ClassVar[bool] = True

    def __call__(self, view: TokenView) -> Tensor:
        return view.of("prior").label_logp.exp()


def test_what_is_kept_is_read_back_in_any_order_at_three_bytes_a_token() -> None:
    ids = torch.tensor([[0, 0, 5, 7], [9, 9, 9, 9], [1, 2, 3, (1 << 18) - 1]], dtype=torch.int32)
    held = draws.packed(ids)
    assert held["distinct"].tolist() == [3, 1, 4]
    assert held["tokens"].shape == (8, 3)
    assert sum(tensor.nbytes for tensor in held.values()) == 3 * 8 + 3
    read = draws.unpacked(held, torch.tensor([2, 0, 1, 0]))
    assert read["indices"][:, :4].tolist() == [[1, 2, 3, (1 << 18) - 1], [0, 5, 7, 0], [9, 0, 0, 0], [0, 5, 7, 0]]
    assert read["counts"][:, :4].tolist() == [[1, 1, 1, 1], [2, 1, 1, 0], [4, 0, 0, 0], [2, 1, 1, 0]]
    assert not read["counts"][:, 4:].any()


def test_ids_beyond_18_bits_take_a_fourth_byte() -> None:
    ids = torch.tensor([[3, 1 << 18, (1 << 26) - 1]], dtype=torch.int32)
    held = draws.packed(ids)
    assert held["tokens"].shape == (3, 4)
    assert draws.unpacked(held, torch.tensor([0]))["indices"][0, :3].tolist() == ids[0].tolist()


def test_64_draws_of_one_token_are_a_count_of_64() -> None:
    held = draws.packed(torch.full((1, 64), 11, dtype=torch.int32))
    read = draws.unpacked(held, torch.tensor([0]))
    assert (int(read["indices"][0, 0]), int(read["counts"][0, 0])) == (11, 64)


def plan(folder: Path, seed: int = 0) -> CachePlan:
    recipe = Recipe("sampled", topk=5, dtype="float32", precision="32-true", seed=seed)
    return CachePlan(folder, recipe, eight_rows().train, {"kept": str(recipe)}, {}, Collate(256))


def built(made: CachePlan) -> CachePlan:
    ensure(made, lambda done: other_policy(), lambda done: None, print)
    return made


def test_a_sampled_cache_holds_draws_from_the_models_own_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many seeds the mean is the distribution; rows of several shards come in the order of the batch."""
    batch = Collate(256)(eight_rows().train)
    kept = batch.labels.flatten() != IGNORE
    labels = batch.labels.flatten()[kept]
    like = torch.empty(len(labels), 260)
    live = FrozenModel(other_policy()).exact(batch).select(kept).at(labels, like).logp.exp().double()
    monkeypatch.setattr(cache_build, "SHARD_TOKENS", 150)
    seen = []
    for seed in range(12):
        held = Cached(built(plan(tmp_path / str(seed), seed))).reference(batch)
        assert held.counts is not None
        assert held.counts.sum(-1).tolist() == [N] * len(labels)
        seen.append(held.at(labels, like).p.double())
    assert not torch.equal(seen[0], seen[1])
    off = (torch.stack(seen).mean(0) - live) / (live * (1 - live) / (N * len(seen))).sqrt()
    assert abs(float(off.mean())) < 0.05
    assert float(off.square().mean()) == pytest.approx(1, abs=0.1)  # as of independent draws


def test_a_design_trains_on_a_sampled_cache_as_on_its_frequencies(tmp_path: Path) -> None:
    held = Cached(built(plan(tmp_path / "one")))
    batch = Collate(256)(eight_rows().train)
    out = module("kd", teacher=held).token_loss(batch)
    reference = held.reference(batch)
    with torch.no_grad():
        logits = module("kd").policy.lm(batch.input_ids).logits[batch.labels != IGNORE]
    q = reference.at(batch.labels[batch.labels != IGNORE], torch.empty_like(logits)).p
    expected = -(q * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(out.loss, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("indices", "counts", "message"),
    [
        ([[0, 11]], [[1, 1]], r"token ids must lie in \[0, 11\)"),
        ([[0, 1]], [[2, -1]], "a count is at least 0"),
        ([[0, 1]], [[0, 0]], "nothing was drawn"),
        ([[0, 1]], [[1]], "must both be"),
        ([[0, 1]], [[0.5, 0.5]], "whole numbers"),
    ],
)
def test_draws_that_are_none_are_refused(indices: Any, counts: Any, message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        Reference.sampled(torch.tensor(indices), torch.tensor(counts), 11)


def test_a_token_may_stand_in_several_entries_and_padding_counts_nothing() -> None:
    reference = Reference.sampled(torch.tensor([[4, 4, 2, 0]]), torch.tensor([[1, 1, 2, 0]]), 5)
    p = reference.at(torch.tensor([2]), torch.zeros(1, 5)).p
    assert p.tolist() == [[0.0, 0.0, 0.5, 0.0, 0.5]]
    with pytest.raises(QTargetError, match="holds sampled already"):
        reference.truncated(3)


SAMPLED = ["model=tiny", "reference@references.teacher=cached", "references.teacher.name=tiny"]
SAMPLED += ["references.teacher.detail=sampled"]


def test_a_run_says_which_design_refuses_before_anything_is_read() -> None:
    check_design(RunConfig.compose([*SAMPLED, "target=kd"]))
    with pytest.raises(QTargetError, match=r"guided is not linear .* references\.teacher\.detail=topk or hidden"):
        check_design(RunConfig.compose([*SAMPLED, "target=target_sft"]))
    with pytest.raises(QTargetError, match=r"references\.teacher\.draws must be a whole number"):
        RunConfig.compose([*SAMPLED, "target=kd", "references.teacher.draws=65"])


def test_how_many_are_drawn_is_part_of_a_runs_identity() -> None:
    hashes = {
        config_hash(compose_config("train", [*SAMPLED, "target=kd", *more]))
        for more in ([], ["references.teacher.draws=16"], ["references.teacher.seed=1"])
    }
    assert len(hashes) == 3
