"""What holds of every design: each yaml under conf/target, alone and with every part option swapped in."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from worlds import World, load_design

import qtarget
from qtarget.app.configs import options
from qtarget.math.loss import IGNORE
from qtarget.math.target import needs

DESIGNS = options("target")
PARTS = [(part, option) for part in ("reliance", "residual", "weight") for option in options(f"target/{part}")]
seeds = st.integers(0, 2**31)


def run(world: World, design: Any, **options: Any) -> tuple[Any, Tensor]:
    logits = world.leaf()
    out = qtarget.dense_loss(logits, world.labels, design, references=world.references, **options)
    out.total.backward()
    assert logits.grad is not None
    return out, logits.grad


def published(name: str, world: World) -> Tensor:
    """The objective as its paper writes it, for autograd: independent of ours."""
    logits = world.leaf()
    logp = logits.log_softmax(-1)
    p, nll = logp.exp(), -logp.gather(1, world.labels[:, None]).squeeze(1)
    p_label = p.gather(1, world.labels[:, None]).squeeze(1).detach()
    prior_label = world.prior.exp().gather(1, world.labels[:, None]).squeeze(1)
    teacher = world.teacher.exp()
    guided = (0.5 * logp.detach() + 0.5 * world.teacher).softmax(-1)
    losses = {
        "sft": nll,
        "label_smoothing": torch.nn.functional.cross_entropy(
            logits, world.labels, label_smoothing=0.1, reduction="none"
        ),
        "dft": p_label * nll,
        "one_minus_prior": (1 - prior_label) * nll,
        "kd": torch.nn.functional.kl_div(logp, teacher, reduction="none").sum(-1),
        "target_sft": p_label * nll - (1 - p_label) * (guided * logp).sum(-1),
    }
    losses[name].sum().backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("name", DESIGNS)
@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_gradient_is_that_of_the_published_objective(name: str, seed: int) -> None:
    world = World.random(seed)
    _, gradient = run(world, load_design(name))
    torch.testing.assert_close(gradient, published(name, world), atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("name", DESIGNS)
@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_gradient_sums_to_zero_and_chunks_agree(name: str, seed: int) -> None:
    world, design = World.random(seed), load_design(name)
    whole, gradient = run(world, design)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(7, dtype=torch.float64), atol=1e-12, rtol=0)
    for size in (1, 5, 7, 8):
        out, chunked = run(world, design, chunk_size=size)
        torch.testing.assert_close(chunked, gradient)
        torch.testing.assert_close(out.trust, whole.trust)


@pytest.mark.parametrize("name", DESIGNS)
def test_unsupervised_positions_change_nothing(name: str) -> None:
    world, design = World.random(3), load_design(name)
    keep = torch.tensor([0, 2, 3, 6])
    masked = torch.full_like(world.labels, IGNORE)
    masked[keep] = world.labels[keep]
    out, gradient = run(World(world.logits, masked, world.prior, world.teacher), design)
    fewer = World(world.logits[keep], world.labels[keep], world.prior[keep], world.teacher[keep])
    expected, expected_gradient = run(fewer, design)
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(gradient[keep], expected_gradient)
    assert not gradient[torch.tensor([1, 4, 5])].any()


@pytest.mark.parametrize("name", DESIGNS)
def test_an_all_masked_batch_has_zero_gradient_and_says_so_once(name: str) -> None:
    world = World.random(4)
    empty = World(world.logits, torch.full_like(world.labels, IGNORE), world.prior, world.teacher)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out, gradient = run(empty, load_design(name))
    assert [str(warning.message)[:19] for warning in caught] == ["no supervised token"]
    assert out.total.item() == 0
    assert not gradient.any()


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(name: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([[80.0, -80.0, 0.0, -80.0], [-80.0, 80.0, 80.0, 0.0]], dtype=dtype)
    flat = torch.full((2, 4), 0.25).log()
    world = World(logits, torch.tensor([1, 0]), flat, logits.float().log_softmax(-1))
    out, gradient = run(world, load_design(name))
    assert torch.isfinite(gradient).all()
    for field in ("loss", "nll", "trust", "reliance", "weight", "gap", "entropy"):
        assert torch.isfinite(getattr(out, field)).all(), field


@pytest.mark.parametrize("name", DESIGNS)
def test_padded_vocabulary_rows_never_matter(name: str) -> None:
    world, design = World.random(5), load_design(name)
    _, expected = run(world, design)
    padded = torch.nn.functional.pad(world.logits, (0, 3), value=-torch.inf)
    out, gradient = run(World(padded, world.labels, world.prior, world.teacher), design)
    torch.testing.assert_close(gradient[:, :-3], expected)
    assert not gradient[:, -3:].any()
    assert torch.isfinite(out.loss).all()


@pytest.mark.parametrize("name", DESIGNS)
def test_bf16_near_the_prior_is_within_one_percent(name: str) -> None:
    """Every run starts where policy, prior and teacher are the same: differences there must keep their digits."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(64, 501, generator=generator)).bfloat16()
    near = logits.double() + 0.05 * torch.randn(64, 501, generator=generator, dtype=torch.float64)
    labels = torch.randint(501, (64,), generator=generator)
    exact = World(logits.double(), labels, near.log_softmax(-1), near.log_softmax(-1))
    rough = World(logits, labels, near.log_softmax(-1).float(), near.log_softmax(-1).float())
    design = load_design(name)
    _, expected = run(exact, design)
    hidden = rough.logits.float().requires_grad_()  # what the loss sees: bf16 values, fp32 arithmetic
    out = qtarget.dense_loss(hidden, labels, design, references=rough.references)
    out.total.backward()
    assert hidden.grad is not None
    assert (hidden.grad - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize(("name", "part"), list(itertools.product(DESIGNS, PARTS)), ids=str)
def test_every_design_takes_every_part_option(name: str, part: tuple[str, str]) -> None:
    design = load_design(name, **{part[0]: part[1]})
    world = World.random(6)
    out, gradient = run(world, design)
    assert torch.isfinite(out.loss).all()
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(7, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", DESIGNS)
def test_a_design_gets_by_with_what_it_declares(name: str) -> None:
    """`needs` is the truth: with the declared roles at the declared detail, a design runs; the repr is its record."""
    world, design = World.random(8), load_design(name)
    held = {}
    for role, detail in needs(design).items():
        full = world.references[role]
        assert full.rows is not None
        label = {"logp": full.rows.gather(1, world.labels[:, None]).squeeze(1)}
        held[role] = full if detail == "full" else qtarget.Reference.label(world.labels, label)
    logits = world.leaf()
    out = qtarget.dense_loss(logits, world.labels, design, references=held)
    expected, _ = run(world, design)
    torch.testing.assert_close(out.loss, expected.loss)
    assert "object at 0x" not in repr(design)


def test_a_newcomers_design_passes_the_laws(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataclass file and two yaml files in the working folder are all it takes."""
    (tmp_path / "halfway.py").write_text(
        "from dataclasses import dataclass\n\n\n"
        "@dataclass(frozen=True)\n"
        "class Halfway:\n"
        "    share: float = 0.5\n\n"
        "    def __call__(self, view):\n"
        "        return self.share + (1 - self.share) * view.label_logp.exp()\n"
    )
    parts = tmp_path / "conf" / "target" / "reliance"
    parts.mkdir(parents=True)
    (parts / "halfway.yaml").write_text("_target_: halfway.Halfway\nshare: 0.5\n")
    (tmp_path / "conf" / "target" / "halfway.yaml").write_text(
        "defaults: [{reliance: halfway}, {residual: self}, {weight: one}, _self_]\n"
        "_target_: qtarget.math.target.Mixture\nabout: {formula: mine, paper: mine, year: 2026, differs: nothing}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert "halfway" in qtarget.list_designs()
    world, design = World.random(9), load_design("halfway", **{"reliance.share": 0.25})
    out, gradient = run(world, design)
    p = world.logits.softmax(-1).gather(1, world.labels[:, None]).squeeze(1)
    torch.testing.assert_close(out.trust, 0.25 + 0.75 * p)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(7, dtype=torch.float64), atol=1e-12, rtol=0)
