"""The output layer on a CUDA device: torch's, ours, and other people's fused ones where they can be imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import head
import torch
from timing import Step
from torch import Tensor
from torch.nn import functional as F

import qtarget

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden [N, D], head weight [V, D], labels [N]) → the summed loss."""


def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight.T).float(), labels, reduction="sum")


def liger(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(hidden, weight, labels, reduction="sum")


def cut(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(hidden, weight, labels, reduction="sum")


def ours(name: str, compiled: bool) -> Loss:
    design = qtarget.load_design(name)

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return qtarget.linear_loss(hidden, weight, labels, design, compiled=compiled).total

    return loss


def losses(compiled: bool) -> dict[str, Loss]:
    """name → loss; the fused ones only where their package is installed."""
    fused = {"liger_kernel": ("Liger", liger), "cut_cross_entropy": ("cut cross-entropy", cut)}
    there = dict(named for module, named in fused.items() if importlib.util.find_spec(module))
    said = ", compiled" if compiled else ""
    mine = {f"{name}{said}": ours(name, compiled) for name in ("sft", "dft")}
    return {"matmul + cross_entropy": plain, **there, **mine}


def ways(tokens: int, device: torch.device | str, *, compiled: bool = True) -> dict[str, Step]:
    """name → forward and backward in bf16 of the sizes that head.py has."""
    generator = torch.Generator(device).manual_seed(0)
    drawn = partial(torch.randn, generator=generator, device=device)
    hidden = drawn(tokens, head.HIDDEN).bfloat16().requires_grad_()
    weight = (0.05 * drawn(head.VOCAB, head.HIDDEN)).bfloat16().requires_grad_()
    labels = torch.randint(head.VOCAB, (tokens,), generator=generator, device=device)
    return {name: partial(_step, loss, hidden, weight, labels) for name, loss in losses(compiled).items()}


def _step(loss: Loss, hidden: Tensor, weight: Tensor, labels: Tensor) -> None:
    hidden.grad = weight.grad = None
    loss(hidden, weight, labels).backward()
