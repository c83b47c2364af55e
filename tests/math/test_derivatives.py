"""First derivatives are right for every input and dtype; any other derivative is refused in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from worlds import World, load_design

import qtarget
from qtarget.errors import QTargetError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch 2.13's forward mode

N, D, V = 6, 4, 9
DESIGNS = ("sft", "dft", "label_smoothing", "gem")


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return draw(N, D), draw(V, D), draw(V), torch.randint(V, (N,), generator=generator)


def linear(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, **given: Any) -> Tensor:
    head = qtarget.Head(weight, bias, softcap=5.0)
    return qtarget.linear_loss(hidden, head, labels, load_design("sft"), **given).total


def dense(logits: Tensor, labels: Tensor) -> Tensor:
    return qtarget.dense_loss(logits, labels, load_design("sft")).total


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """The same loss by autograd alone."""
    logits = 5.0 * torch.tanh((hidden @ weight.T + bias) / 5.0)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")


# Second derivatives, forward mode and transforms


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_second_derivative_is_refused(which: int) -> None:
    *leaves, labels = inputs()
    with pytest.raises(QTargetError, match="first derivatives only, and create_graph=True asks for more"):
        torch.autograd.grad(linear(*leaves, labels), leaves[which], create_graph=True)
    (logits,) = (torch.randn(N, V, requires_grad=True),)
    with pytest.raises(QTargetError, match="a second derivative would come out as 0"):
        dense(logits, labels).backward(create_graph=True)


def test_a_gradient_penalty_beside_another_loss_is_refused() -> None:
    hidden, weight, bias, labels = inputs()
    both = linear(hidden, weight, bias, labels) + hidden.square().sum()
    with pytest.raises(QTargetError, match="first derivatives only"):
        torch.autograd.grad(both, hidden, create_graph=True)


def hessians(loss: Callable[[Tensor], Tensor], at: Tensor) -> Iterator[Callable[[], Any]]:
    direction = torch.ones_like(at)
    yield lambda: torch.autograd.functional.hessian(loss, at)
    yield lambda: torch.autograd.functional.jvp(loss, at, direction)  # by two backwards
    yield lambda: torch.func.hessian(loss)(at)
    yield lambda: torch.func.jvp(loss, (at,), (direction,))
    yield lambda: torch.func.jacfwd(loss)(at)
    yield lambda: torch.func.grad(loss)(at)
    yield lambda: torch.func.vmap(loss)(at[None])


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("kind", ["linear", "dense"])
def test_hessians_jvps_and_transforms_are_refused(kind: str, number: int) -> None:
    hidden, weight, bias, labels = inputs()
    if kind == "linear":
        call = list(hessians(lambda h: linear(h, weight, bias, labels), hidden.detach()))[number]
    else:
        call = list(hessians(lambda z: dense(z, labels), torch.randn(N, V)))[number]
    with pytest.raises(QTargetError, match=r"first derivatives only|transformed by torch\.func|no forward-mode"):
        call()


@pytest.mark.parametrize("which", range(4))
def test_a_tangent_of_any_input_is_refused(which: int) -> None:
    hidden, weight, bias, labels = inputs()
    given = [hidden.detach(), weight.detach(), bias.detach(), torch.ones(N, dtype=torch.float64)]
    with forward_ad.dual_level():
        given[which] = forward_ad.make_dual(given[which], torch.ones_like(given[which]))
        with pytest.raises(QTargetError, match="no forward-mode derivative"):
            linear(given[0], given[1], given[2], labels, token_scale=given[3])
        linear(*inputs())  # what has no tangent is none of it


# First derivatives


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_gradients_of_some_inputs_are_those_of_autograd(wanted: tuple[int, ...]) -> None:
    *leaves, labels = inputs()
    expected = torch.autograd.grad(plain(*leaves, labels), [leaves[index] for index in wanted])
    got = torch.autograd.grad(linear(*leaves, labels), [leaves[index] for index in wanted])
    torch.testing.assert_close(got, expected)
    frozen = [leaf if index in wanted else leaf.detach() for index, leaf in enumerate(leaves)]
    torch.testing.assert_close(torch.autograd.grad(linear(*frozen, labels), [frozen[i] for i in wanted]), expected)


def test_a_second_backward_through_a_kept_graph_adds_the_same_gradient() -> None:
    hidden, weight, bias, labels = inputs()
    total = linear(hidden, weight, bias, labels)
    total.backward(retain_graph=True)
    assert hidden.grad is not None
    first = hidden.grad.clone()
    hidden.grad.zero_()
    total.backward()
    torch.testing.assert_close(hidden.grad, first)


def test_token_scale_has_a_gradient_too() -> None:
    """∂total/∂s_t is the token's loss, and the gradient of what it scales is scaled by it."""
    hidden, weight, bias, labels = inputs()
    scale = torch.rand(N, dtype=torch.float64, requires_grad=True)
    head = qtarget.Head(weight, bias)
    out = qtarget.linear_loss(hidden, head, labels, load_design("sft"), token_scale=scale)
    got = torch.autograd.grad(3 * out.total, [scale, hidden])
    torch.testing.assert_close(got[0], 3 * out.loss)
    nll = torch.nn.functional.cross_entropy(hidden @ weight.T + bias, labels, reduction="none")
    torch.testing.assert_close(got[1], torch.autograd.grad(3 * (nll * scale.detach()).sum(), hidden)[0])


# Dtypes


@pytest.mark.parametrize("name", DESIGNS)
def test_float64_stays_float64(name: str) -> None:
    world = World.random(5)
    design, given = load_design(name), {"token_scale": 0.1}
    out = qtarget.dense_loss(world.logits, world.labels, design, **given)
    assert {getattr(out, field).dtype for field in ("total", "loss", "nll", "reliance", "entropy")} == {torch.float64}
    assert float(out.total - 0.1 * out.loss.sum()) == pytest.approx(0, abs=1e-15)  # 0.1 in float32 misses by 1.5e-9
    none = torch.full_like(world.labels, qtarget.IGNORE)
    with pytest.warns(UserWarning, match="no supervised token"):
        empty = qtarget.dense_loss(world.logits, none, design, **given)
    assert (empty.total.dtype, empty.loss.dtype, float(empty.total)) == (torch.float64, torch.float64, 0.0)


@pytest.mark.parametrize("logits", [torch.float32, torch.float64])
@pytest.mark.parametrize("beside", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_stands_beside_logits_does_not_change_their_precision(logits: torch.dtype, beside: torch.dtype) -> None:
    world = World.random(6, dtype=torch.float64)
    references = {
        "prior": qtarget.Reference.full(world.prior.to(beside)),
        "teacher": qtarget.Reference.full(world.teacher.to(beside)),
    }
    scope_values = {"iw_sft": torch.rand(7, dtype=torch.float64).to(beside)}
    for name in ("asft", "kd", "iw_sft", "target_sft"):
        design = load_design(name)
        given: dict[str, Any] = {"references": references, "token_scale": torch.full((7,), 0.5).to(beside)}
        if name == "iw_sft":
            given["scope_values"] = {design.weight: scope_values[name]}
        leaf = world.logits.to(logits).requires_grad_()
        out = qtarget.dense_loss(leaf, world.labels, design, **given)
        assert {out.total.dtype, out.loss.dtype, out.weight.dtype, out.kl_prior.dtype} == {logits}
        out.total.backward()
        assert leaf.grad is not None
        assert leaf.grad.dtype == logits


@pytest.mark.parametrize("name", DESIGNS)
def test_float16_states_have_the_loss_and_gradient_of_float64(name: str) -> None:
    hidden, weight, bias, labels = inputs(torch.float16)
    exact = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight, bias)]
    out = qtarget.linear_loss(hidden, qtarget.Head(weight, bias), labels, load_design(name))
    expected = qtarget.linear_loss(exact[0], qtarget.Head(exact[1], exact[2]), labels, load_design(name))
    torch.testing.assert_close(out.loss.double(), expected.loss, atol=1e-5, rtol=1e-5)
    out.total.backward()
    expected.total.backward()
    for ours, theirs in zip((hidden, weight, bias), exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.dtype == torch.float16
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dense", [True, False])
def test_a_loss_scale_saves_small_float16_gradients(dense: bool) -> None:
    """With s = 1e-9 the gradient is below 6e-8, the least that float16 holds; times a loss scale of 2³⁰ it isn't."""
    scaled, tiny = float(2**30), 1e-9
    hidden, weight, _, labels = inputs(torch.float16)
    leaf = torch.randn(N, V).half().requires_grad_() if dense else hidden

    def total(of: Tensor, by: Tensor) -> Tensor:
        if dense:
            return qtarget.dense_loss(of, labels, load_design("sft"), token_scale=tiny).total
        return qtarget.linear_loss(of, by, labels, load_design("sft"), token_scale=tiny).total

    exact = leaf.detach().double().requires_grad_()
    (got,) = torch.autograd.grad(scaled * total(leaf, weight), leaf)
    (expected,) = torch.autograd.grad(scaled * total(exact, weight.detach().double()), exact)
    torch.testing.assert_close(got.double(), expected, atol=2e-3, rtol=2e-3)
    assert got.any()


def test_logits_and_states_of_other_dtypes_are_refused() -> None:
    world = World.random(7)
    with pytest.raises(QTargetError, match="logits must be one of float64, float32, bfloat16, float16; got int64"):
        qtarget.dense_loss(world.logits.long(), world.labels, load_design("sft"))
    eight = torch.randn(N, D).to(torch.float8_e4m3fn)
    with pytest.raises(QTargetError, match=r"hidden states must be one of .*; got float8_e4m3fn"):
        qtarget.linear_loss(eight, torch.randn(V, D), torch.zeros(N, dtype=torch.long), load_design("sft"))


# What isn't finite


def test_a_token_scale_that_is_not_finite_is_named() -> None:
    world = World.random(8)
    scale = torch.ones(7).index_fill(0, torch.tensor([5]), torch.nan)
    with pytest.raises(QTargetError, match="token_scale must be finite; it is nan at supervised token 5"):
        qtarget.dense_loss(world.logits, world.labels, load_design("sft"), token_scale=scale, chunk_size=2)


def test_a_prior_of_nan_does_not_become_a_mask_of_zeros() -> None:
    """NaN ≥ threshold is false, so every token would weigh nothing."""
    world = World.random(9, dtype=torch.float32)
    broken = torch.randn(7, D).index_fill(0, torch.tensor([2]), torch.nan)
    prior = {"prior": qtarget.Reference.hidden(broken, qtarget.Head(torch.randn(11, D)))}
    with pytest.raises(QTargetError, match=r"prior is NaN at supervised token 2|row 2"):
        qtarget.dense_loss(world.logits, world.labels, load_design("prift_mass"), references=prior)
