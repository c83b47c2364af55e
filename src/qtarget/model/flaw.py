"""What makes a reference worse than it is, on purpose and by a known amount: how much does a design rely on it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from qtarget.errors import QTargetError
from qtarget.settings import Checked, Listed, Nullable, Number, Whole, setting

if TYPE_CHECKING:
    from qtarget.model.policy import Policy


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
        from qtarget.model import flawed  # torch comes in there, as below

        return flawed.divided(policy, self.temperature)


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
        from qtarget.model import flawed

        return flawed.biased(policy, self.strength, flawed.drawn(policy.vocab_size, self.tokens, self.share, self.seed))


@dataclass(frozen=True)
class NoisyWeights(Checked, Flaw):
    """W + σ·std(W)·N(0, 1) for every weight matrix W, embeddings and head included, drawn by `seed`."""

    NODE_KEY: ClassVar[str] = "flaw"
    sigma: float = setting(0.05, Number(0), "standard deviation of the noise, in those of the weight matrix")
    seed: int = setting(0, Whole(0), "of the draws")

    def __call__(self, policy: Policy) -> Policy:
        from qtarget.model import flawed

        return flawed.noisy(policy, self.sigma, self.seed)
