"""What `mass` and γ are said to be: Σ of a truncated target, and official numbers that are left out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from worlds import World, load_design

import qtarget
from qtarget.config.composing import about


def truncated(world: World, keep: int) -> dict[str, qtarget.Reference]:
    return {"teacher": qtarget.Reference.full(world.teacher).truncated(keep)}


@pytest.mark.parametrize("keep", [1, 3, 11])
def test_the_mass_of_a_truncated_teacher_is_what_it_keeps(keep: int) -> None:
    world = World.random(1)
    out = qtarget.dense_loss(world.logits, world.labels, load_design("kd_truncated"), references=truncated(world, keep))
    torch.testing.assert_close(out.mass, world.teacher.topk(keep).values.exp().sum(-1))
    whole = qtarget.dense_loss(world.logits, world.labels, load_design("kd_support"), references=truncated(world, keep))
    torch.testing.assert_close(whole.mass, torch.ones(7, dtype=torch.float64))


def test_the_mass_is_that_of_the_gradient() -> None:
    """∂L/∂z = m·p − Q with Q = 0 off the k tokens kept: there, the gradient over p is the mass."""
    world, logits = World.random(2), World.random(2).leaf()
    out = qtarget.dense_loss(logits, world.labels, load_design("kd_truncated"), references=truncated(world, 3))
    out.total.backward()
    assert logits.grad is not None
    off = world.teacher.topk(10, largest=False).indices[:, :1]
    quotient = logits.grad.gather(1, off) / world.logits.softmax(-1).gather(1, off)
    torch.testing.assert_close(out.mass, quotient.squeeze(1))


def test_a_label_beside_a_truncated_teacher_counts_in_the_mass() -> None:
    world = World.random(3)
    design = load_design("kd_truncated", **{"weight.value": 2.0}, reliance="one")
    out = qtarget.dense_loss(world.logits, world.labels, design, references=truncated(world, 3))
    torch.testing.assert_close(out.mass, 2 * (1 + world.teacher.topk(3).values.exp().sum(-1)))


@pytest.mark.parametrize("design", ["sft", "dft", "label_smoothing", "kd", "target_sft"])
def test_the_distances_are_those_between_the_policy_and_its_target(design: str) -> None:
    """½‖p − Q‖₁ and KL(Q‖p) with Q = p − ∂loss/∂z, written out; w = 1, and Q a distribution."""
    world, logits = World.random(5), World.random(5).leaf()
    out = qtarget.dense_loss(logits, world.labels, load_design(design), references=world.references)
    out.total.backward()
    assert logits.grad is not None
    p = world.logits.softmax(-1)
    target = (p - logits.grad).clamp_min(0)
    torch.testing.assert_close(out.gap, 0.5 * (p - target).abs().sum(-1))
    torch.testing.assert_close(out.kl_to_target, (torch.xlogy(target, target) - target * p.log()).sum(-1))


def official_cayley(p: Tensor) -> Tensor:
    """γ of luludus/DEFT at 5d75af4 with its three 1e-8, from the formulas of its trainer."""
    floor, far = 0.5 * p.mean(), 1 - p + 1e-8
    alpha = (floor + (1 - floor) * (1 - far) / (1 + far + 1e-8)).clamp(0.001, 1)
    return p**alpha * alpha / (alpha + 1e-8)


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0, 20.0])
def test_what_cayley_trans_leaves_out_of_the_official_code_is_as_small_as_is_said(scale: float) -> None:
    world = World.random(4, count=200, scale=scale)
    out = qtarget.dense_loss(world.logits, world.labels, load_design("cayley_trans"))
    torch.testing.assert_close(out.reliance, official_cayley((-out.nll).exp()), atol=0, rtol=2e-5)
    assert "1e-8" in about("cayley_trans")["differs"]
