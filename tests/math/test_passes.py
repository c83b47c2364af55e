"""How often a loss goes over tokens × vocabulary, and that doing it less often changes nothing."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import World, few_at_once, load_design

import qtarget
from qtarget.config.composing import options
from qtarget.errors import QTargetError
from qtarget.math.head import Head
from qtarget.math.loss import OPTIONAL
from qtarget.math.products import product
from qtarget.measures import MEASURES

N, D, V = 6, 4, 501
VIEWS = {
    "as_strided",
    "detach",
    "empty",
    "expand",
    "new_empty",
    "permute",
    "slice",
    "t",
    "transpose",
    "unsqueeze",
    "view",
}
PRODUCTS = {"addmm", "mm"}
OF_LABELS = {"gather", "scatter_add_"}


class Passes(TorchDispatchMode):
    """Counts operators that read or write N × V numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        sizes = [tensor.numel() for tensor in (*args, *(kwargs or {}).values(), made) if isinstance(tensor, Tensor)]
        if name not in VIEWS | PRODUCTS | OF_LABELS and max(sizes, default=0) == N * V:
            self.counts[name] += 1
        return made


def hidden_and_head() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(N, D, generator=generator), torch.randn(V, D, generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.arange(N)


def passes(name: str, dtype: torch.dtype, **how: Any) -> Counter[str]:
    hidden, weight, labels = (tensor.detach() for tensor in hidden_and_head())
    hidden, weight = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    design, teacher = load_design(name), qtarget.Reference.full(torch.randn(N, V).log_softmax(-1))
    references = {"teacher": teacher} if name == "target_sft" else {}
    with Passes() as counted:
        qtarget.linear_loss(hidden, weight, labels, design, references=references, **how)
    return counted.counts


def test_where_the_label_alone_is_pulled_a_block_takes_five_passes() -> None:
    """Log-softmax, p, the gradient where the logits were, and p·log p with its sum; bf16 is widened and narrowed."""
    every = {"_log_softmax": 1, "exp": 1, "mul": 2, "sum": 1}
    assert passes("dft", torch.float32) == every
    assert passes("dft", torch.bfloat16) == every | {"_to_copy": 1, "copy_": 1}
    assert passes("dft", torch.float32, unmeasured=("entropy",)) == {"_log_softmax": 1, "exp": 1, "mul": 1}


def test_what_nobody_reads_is_not_made() -> None:
    whole, few = (passes("target_sft", torch.float32, unmeasured=left).total() for left in ((), ("kl_to_target",)))
    assert few <= whole - 7
    assert passes("target_sft", torch.float32, unmeasured=OPTIONAL).total() <= few - 3


def test_a_measure_left_out_is_nan_and_changes_no_other() -> None:
    hidden, weight, labels = hidden_and_head()
    design = load_design("label_smoothing")
    whole = qtarget.linear_loss(hidden, weight, labels, design)
    few = qtarget.linear_loss(hidden, weight, labels, design, unmeasured=OPTIONAL)
    for measure in MEASURES:
        left = torch.full((N,), math.nan) if measure.name in OPTIONAL else whole.of(measure.name)
        torch.testing.assert_close(few.of(measure.name), left, rtol=0, atol=0, equal_nan=True)
    gradients = [torch.autograd.grad(out.total, [hidden, weight]) for out in (whole, few)]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    with pytest.raises(QTargetError, match=r"a name in unmeasured must be one of entropy, gap, .*, got 'loss'"):
        qtarget.linear_loss(hidden, weight, labels, design, unmeasured=["loss"])


@pytest.mark.parametrize("name", few_at_once(options("target")))
def test_what_is_given_stays_as_it_was(name: str) -> None:
    """A block's gradient takes the place of its logits, which are a copy."""
    world = World.random(3, count=5, dtype=torch.float32)
    logits, hidden = world.leaf(), world.leaf()
    weight = torch.eye(logits.shape[1], requires_grad=True)
    before = [tensor.detach().clone() for tensor in (logits, hidden, weight, world.prior, world.teacher)]
    dense = qtarget.dense_loss(logits, world.labels, load_design(name), **world.given(name))
    linear = qtarget.linear_loss(hidden, weight, world.labels, load_design(name), **world.given(name))
    for tensor, kept in zip((logits, hidden, weight, world.prior, world.teacher), before, strict=True):
        assert torch.equal(tensor, kept)
    (dense.total + linear.total).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, hidden.grad)


@pytest.mark.parametrize("true_vocab", [None, V, V - 9])
def test_entropy_is_that_of_float64_with_and_without_padded_rows(true_vocab: int | None) -> None:
    hidden, weight, labels = hidden_and_head()
    head = qtarget.Head(weight, true_vocab=true_vocab)
    out = qtarget.linear_loss(hidden, head, labels, load_design("sft"))
    exact = torch.distributions.Categorical(logits=(hidden.double() @ weight.double().T)[:, :true_vocab]).entropy()
    torch.testing.assert_close(out.entropy.double(), exact, rtol=1e-5, atol=1e-6)


def test_a_bias_may_hold_minus_infinity() -> None:
    hidden, weight, labels = torch.randn(4, 6), torch.randn(8, 6), torch.tensor([0, 1, 2, 3])
    bias = torch.zeros(8).index_fill_(0, torch.tensor([6, 7]), -torch.inf)
    dense = qtarget.dense_loss(hidden @ weight.T + bias, labels, load_design("sft"))
    linear = qtarget.linear_loss(hidden, Head(weight, bias), labels, load_design("sft"))
    torch.testing.assert_close(linear.entropy, dense.entropy)
    assert linear.entropy.isfinite().all()


def test_products_stay_in_the_dtype_that_was_chosen_under_autocast_to_fp16() -> None:
    left, right = torch.randn(3, 4), torch.randn(5, 4)
    with torch.autocast("cpu", torch.float16):
        assert product(left, right).dtype == torch.float32
