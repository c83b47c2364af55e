"""What any differentiable loss really teaches: its induced target Q = p − ∂L/∂z."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qtarget.errors import QTargetError


def induced_target(loss_fn: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    """Q = p − ∂L/∂z [..., V], fp32 or better, for logits [..., V] and labels [...].

    loss_fn(logits [n, V], labels [n]) returns a scalar or [n]. It is called token by token (n = 1), so a mean and a sum
    come to the same. Every loss of softmax(z) has ΣQ = 1; entries below 0 say that it is no cross-entropy with a
    distribution, and a loss that isn't shift-invariant (a z-loss) shows by ΣQ ≠ 1.
    Raises QTargetError where the loss doesn't depend on the logits.
    """
    if logits.shape[:-1] != labels.shape:
        raise QTargetError(f"logits {tuple(logits.shape)} must be [..., V] over labels {tuple(labels.shape)}")
    flat = logits.detach().reshape(-1, logits.shape[-1])
    flat = flat if flat.dtype == torch.float64 else flat.float()
    rows = [_one(loss_fn, z, y) for z, y in zip(flat[:, None], labels.reshape(-1, 1), strict=True)]
    return torch.cat(rows).reshape(logits.shape) if rows else flat.reshape(logits.shape)


def _one(loss_fn: Callable[[Tensor, Tensor], Tensor], logits: Tensor, label: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = logits.clone().requires_grad_()
        loss = loss_fn(leaf, label).sum()
        if not loss.requires_grad:
            raise QTargetError("the loss has no gradient with respect to the logits: is everything in it detached?")
        (gradient,) = torch.autograd.grad(loss, leaf)
    return logits.softmax(-1) - gradient
