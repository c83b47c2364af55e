"""Matrix products of the output layer: which library makes them is measured on the machine that runs them.

For fp32 on a CPU PyTorch takes MKL, or oneDNN when asked. Which is faster depends on the processor: oneDNN takes half
of MKL's time on some (AMD EPYC), MKL four fifths of oneDNN's on others (Intel with AMX). Everything else has one way.
"""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor

TORCH, ONEDNN = "torch", "onednn"
LIBRARIES = (TORCH, ONEDNN)
SMALL = 2**24
"""Multiplications below which a product is PyTorch's, without a trial."""
TRIAL = (128, 512, 4096)
"""Tokens, width of hidden states and vocabulary of the trial: 0.27 · 10⁹ multiplications a product."""
WARM_UP, ROUNDS = 2, 5
"""Rounds that don't count, in which processors change their clock and libraries make what they keep; and that do."""

_pinned: list[str] = []


def pin(library: str | None) -> None:
    """From now on large fp32 products on a CPU go through this one of `LIBRARIES`; None: the faster one."""
    _pinned[:] = [] if library is None else [library]


def library() -> str:
    """What makes large fp32 products on this CPU: what is pinned, or was faster in a short trial."""
    return _pinned[0] if _pinned else faster(torch.get_num_threads())


@cache
def faster(threads: int) -> str:
    """The library whose three products of an output layer (forward, and both gradients) take less time here.

    They take turns, and the medians of ROUNDS count. threads: those of PyTorch now; a trial for each number of them.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return TORCH
    tokens, width, vocabulary = TRIAL
    hidden, weight = torch.ones(tokens, width), torch.ones(vocabulary, width)
    seconds: dict[str, list[float]] = {name: [] for name in LIBRARIES}
    for _ in range(WARM_UP + ROUNDS):
        for name in LIBRARIES:
            start = time.perf_counter()
            logits = _multiply(name, hidden, weight)
            _multiply(name, logits, weight.T)
            _multiply(name, logits.T, hidden.T)
            seconds[name].append(time.perf_counter() - start)
    return min(LIBRARIES, key=lambda name: sorted(seconds[name][WARM_UP:])[ROUNDS // 2])


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left rightᵀ: [n, K], [m, K] → [n, m]; `out`: where PyTorch's own writes it."""
    if _by_onednn(left, right):
        return _multiply(ONEDNN, left, right)
    with torch.autocast(left.device.type, enabled=False):  # the dtype was chosen before
        return left @ right.T if out is None else torch.mm(left, right.T, out=out)


def add_product(total: Tensor, left: Tensor, right: Tensor, *, is_first: bool) -> None:
    """total [n, m] += left rightᵀ; `is_first`: what total holds doesn't count."""
    if total.dtype == left.dtype and not _by_onednn(left, right):
        torch.addmm(total, left, right.T, beta=0 if is_first else 1, out=total)
    elif is_first:
        total.copy_(product(left, right))
    else:
        total.add_(product(left, right))


def _by_onednn(left: Tensor, right: Tensor) -> bool:
    if left.dtype != torch.float32 or left.device.type != "cpu" or left.shape[0] * right.numel() < SMALL:
        return False
    graph = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)  # oneDNN keeps none
    return not graph and library() == ONEDNN


def _multiply(name: str, left: Tensor, right: Tensor) -> Tensor:
    result: Tensor = _onednn(left, right) if name == ONEDNN else left @ right.T
    return result


@torch.library.custom_op("qtarget::onednn_product", mutates_args=())
def _onednn(left: Tensor, right: Tensor) -> Tensor:
    """An operator of its own, so that the compiler leaves it be: of oneDNN's it takes constant weights only."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return result


@_onednn.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[0])
