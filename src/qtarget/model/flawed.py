"""What the flaws of qtarget.model.flaw do to a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from qtarget.math.head import Head
from qtarget.model.policy import Policy


def divided(policy: Policy, temperature: float) -> Policy:
    """z/T = c·tanh(s·(hWᵀ + b)/c)/T, where 1/T goes into s and c."""
    return _Headed(policy, partial(_divided, temperature))


def _divided(temperature: float, head: Head) -> Head:
    softcap = None if head.softcap is None else head.softcap / temperature
    return replace(head, scale=head.scale / temperature, softcap=softcap)


def drawn(vocab_size: int, tokens: Sequence[int] | None, share: float, seed: int) -> Tensor:
    """Ids of tokens: those named, or round(share·V) of the vocabulary."""
    if tokens is not None:
        return torch.tensor(tokens, dtype=torch.int64)
    order = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(seed))
    return order[: round(share * vocab_size)]


def biased(policy: Policy, strength: float, tokens: Tensor) -> Policy:
    """z_v + strength for these tokens."""
    bias = torch.zeros(len(policy.head.weight))
    bias[tokens] = strength
    return _Headed(policy, partial(_biased, bias))


@torch.no_grad()
def noisy(policy: Policy, sigma: float, seed: int) -> Policy:
    """W + σ·std(W)·N(0, 1) for every matrix, in place."""
    generator = torch.Generator().manual_seed(seed)
    for weight in policy.parameters():
        if weight.ndim > 1:
            noise = torch.randn(weight.shape, generator=generator).to(weight.device)
            weight.copy_(weight.float() + sigma * weight.float().std(correction=0) * noise)
    return policy


class _Headed(Policy):
    """A model with another head, on the same weights."""

    def __init__(self, policy: Policy, change: Callable[[Head], Head]) -> None:
        super().__init__(policy.lm, policy.vocab_size, compiled=policy.compiled)
        self._head = lambda: change(policy.head)

    @property
    def head(self) -> Head:
        return self._head()


def _biased(bias: Tensor, head: Head) -> Head:
    added = bias.to(head.weight.device) / head.scale  # the head multiplies its bias too
    return replace(head, bias=added if head.bias is None else head.bias + added)
