"""What makes a reference worse than it is, on purpose and by a known amount: how much does a design rely on it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from qtarget.errors import QTargetError
from qtarget.math.head import Head
from qtarget.model.policy import Policy
from qtarget.settings import Checked, Listed, Nullable, Number, Whole, setting


class Flaw(Protocol):
    """A model that nothing else reads → the same, flawed. A dataclass: its repr is part of the name of a cache."""

    def check(self, vocab_size: int) -> None:
        """Raise QTargetError where it can't be put on a model of this vocabulary; most go with any."""
        return

    def __call__(self, policy: Policy) -> Policy: ...


@dataclass(frozen=True)
class NoFlaw(Flaw):
    """The model as it is."""

    def __call__(self, policy: Policy) -> Policy:
        return policy


@dataclass(frozen=True)
class Temperature(Checked, Flaw):
    """log π(v) ∝ z_v / T: above 1 the model is less sure of everything, below 1 more."""

    NODE_KEY: ClassVar[str] = "flaw"
    temperature: float = setting(2.0, Number(0.01), "T, which logits are divided by; above 1 the model is less sure")

    def __call__(self, policy: Policy) -> Policy:
        return _Headed(policy, self._divided)

    def _divided(self, head: Head) -> Head:
        """z/T = c·tanh(s·(hWᵀ + b)/c)/T, where 1/T goes into s and c."""
        t = self.temperature
        return replace(head, scale=head.scale / t, softcap=None if head.softcap is None else head.softcap / t)


@dataclass(frozen=True)
class TokenBias(Checked, Flaw):
    """z_v + strength for some tokens v, whatever the context: words the model is too fond of, or avoids (nats).

    tokens: their ids; None: round(share·V) of the vocabulary, drawn by `seed`. A model that caps its logits has the
    bias in front of the cap.
    """

    NODE_KEY: ClassVar[str] = "flaw"
    strength: float = setting(2.0, Number(-100, 100), "nats that are added to the logits of the tokens")
    tokens: Sequence[int] | None = setting(None, Nullable(Listed(Whole(0))), "their ids; null: drawn")
    share: float = setting(0.01, Number(0, 1), "of the vocabulary, where they are drawn")
    seed: int = setting(0, Whole(0), "of the draws")

    def check(self, vocab_size: int) -> None:
        beyond = [token for token in self.tokens or () if token >= vocab_size]
        if beyond:
            raise QTargetError(f"the flaw's tokens must lie in [0, {vocab_size}), the vocabulary; got {beyond}")

    def __call__(self, policy: Policy) -> Policy:
        self.check(policy.vocab_size)
        bias = torch.zeros(len(policy.head.weight))
        bias[self._drawn(policy.vocab_size)] = self.strength
        return _Headed(policy, partial(_biased, bias))

    def _drawn(self, vocab_size: int) -> Tensor:
        if self.tokens is not None:
            return torch.tensor(self.tokens, dtype=torch.int64)
        order = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(self.seed))
        return order[: round(self.share * vocab_size)]


@dataclass(frozen=True)
class NoisyWeights(Checked, Flaw):
    """W + σ·std(W)·N(0, 1) for every weight matrix W, embeddings and head included, drawn by `seed`."""

    NODE_KEY: ClassVar[str] = "flaw"
    sigma: float = setting(0.05, Number(0), "standard deviation of the noise, in those of the weight matrix")
    seed: int = setting(0, Whole(0), "of the draws")

    @torch.no_grad()
    def __call__(self, policy: Policy) -> Policy:
        generator = torch.Generator().manual_seed(self.seed)
        for weight in policy.parameters():
            if weight.ndim > 1:
                noise = torch.randn(weight.shape, generator=generator).to(weight.device)
                weight.copy_(weight.float() + self.sigma * weight.float().std(correction=0) * noise)
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
