"""What any loss really teaches: Q = p − ∂L/∂z."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from worlds import World, load_design

import qtarget
from qtarget import Induced, Mixture, QTargetError, TokenView
from qtarget.design import reliance, residual, weight


def dft(logits: Tensor, labels: Tensor) -> Tensor:
    nll = F.cross_entropy(logits, labels)
    return (-nll).exp().detach() * nll


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_teaches_the_label_whatever_its_reduction(reduction: str) -> None:
    world = World.random(0)
    target = qtarget.induced_target(lambda z, y: F.cross_entropy(z, y, reduction=reduction), world.logits, world.labels)
    torch.testing.assert_close(target, F.one_hot(world.labels, 11).double(), atol=1e-12, rtol=0)


def test_a_users_loss_is_the_design_it_amounts_to() -> None:
    world = World.random(1)
    p = world.logits.softmax(-1)
    label = F.one_hot(world.labels, 11).double()
    p_label = (p * label).sum(-1, keepdim=True)
    target = qtarget.induced_target(dft, world.logits.reshape(7, 1, 11), world.labels.reshape(7, 1))
    assert target.shape == (7, 1, 11)
    torch.testing.assert_close(target[:, 0], p_label * label + (1 - p_label) * p)


def test_a_z_loss_shows_by_its_sum() -> None:
    world = World.random(2)

    def with_z_loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, y) + 0.1 * z.logsumexp(-1).square().mean()

    sums = qtarget.induced_target(with_z_loss, world.logits, world.labels).sum(-1)
    torch.testing.assert_close(sums, 1 - 0.2 * world.logits.logsumexp(-1))


def test_a_loss_without_gradient_and_odd_shapes_are_refused() -> None:
    world = World.random(3)
    with pytest.raises(QTargetError, match="no gradient with respect to the logits"):
        qtarget.induced_target(lambda z, y: z.detach().sum(), world.logits, world.labels)
    with pytest.raises(QTargetError, match=r"logits \(7, 11\) must be \[\.\.\., V\] over labels \(6,\)"):
        qtarget.induced_target(dft, world.logits, world.labels[:6])


@dataclass(frozen=True)
class Margin:
    """A user's own objective: how far the likeliest token stands above the label."""

    def __call__(self, logp: Tensor, view: TokenView) -> Tensor:
        return logp.max(-1).values - logp.gather(1, view.labels[:, None]).squeeze(1)


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_a_users_objective_is_a_design(strength: float) -> None:
    world = World.random(4)
    design = Induced(reliance.Constant(1.0), Margin(), weight.Constant(1.0), strength=strength)
    logits = world.leaf()
    out = qtarget.dense_loss(logits, world.labels, design)
    out.total.backward()
    expected = world.leaf()
    nll = F.cross_entropy(expected, world.labels, reduction="sum")
    margin = (expected.max(-1).values - expected.gather(1, world.labels[:, None]).squeeze(1)).sum()
    (nll + strength * margin).backward()
    torch.testing.assert_close(logits.grad, expected.grad)
    torch.testing.assert_close(out.total.detach(), (nll + strength * margin).detach())


Closed = Callable[[World, Tensor], Tensor]
CLOSED: dict[str, Closed] = {
    "kd_reverse": lambda w, p: p * (p.log() - w.teacher - (p * (p.log() - w.teacher)).sum(-1, keepdim=True)),
    "kd_temperature": lambda w, p: 2 * ((w.logits / 2).softmax(-1) - (w.teacher / 2).softmax(-1)),
    "confidence_penalty": lambda w, p: (
        p - F.one_hot(w.labels, 11) + 0.1 * p * (p.log() - (p * p.log()).sum(-1, keepdim=True))
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_autograd_inside_the_chunk_is_the_closed_form(name: str) -> None:
    world = World.random(5)
    logits = world.leaf()
    qtarget.dense_loss(logits, world.labels, load_design(name), **world.given(name)).total.backward()
    torch.testing.assert_close(logits.grad, CLOSED[name](world, world.logits.softmax(-1)))


def test_the_kinds_are_one_algebra() -> None:
    """Anchored at γ=1, λ=1 is a half-and-half mixture with twice the step."""
    world, one = World.random(6), weight.Constant(1.0)
    anchored = qtarget.Anchored(reliance.Constant(1.0), residual.Teacher(), one, anchor=1.0)
    mixed = Mixture(reliance.Constant(0.5), residual.Teacher(), weight.Constant(2.0))
    outputs = [qtarget.dense_loss(world.logits, world.labels, design, **world.given()) for design in (anchored, mixed)]
    for field in ("loss", "reliance", "weight", "mass", "trust", "gap", "kl_to_target"):
        torch.testing.assert_close(getattr(outputs[0], field), getattr(outputs[1], field))
