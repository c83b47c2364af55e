"""A distribution at n tokens: its probabilities, and scalars about the label among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor

from qtarget.errors import QTargetError

T = TypeVar("T")
TOP = 20
"""How many tokens the stored top entropy looks at (EAFT's K)."""


class lazy(Generic[T]):  # noqa: N801 (used as a decorator, like functools.cached_property)
    """functools.cached_property without its lock, which torch.compile can't trace on Python 3.11."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self.make = make
        self.name = make.__name__
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> lazy[T]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...
    def __get__(self, instance: object | None, owner: type | None = None) -> lazy[T] | T:
        if instance is None:
            return self
        value = self.make(instance)
        object.__setattr__(instance, self.name, value)  # found before this descriptor from now on
        return value


@dataclass(frozen=True)
class Distribution:
    """The policy or a reference at n tokens, beside their labels. Everything is computed on first use, fp32 or better.

    expand: makes the log-probabilities [n, V]. known: scalars [n] that were stored instead, by the names of
    `LABEL_SCALARS`, which are read where they are there: five numbers a token serve whoever reads no more. is_exact:
    whether logp is the whole distribution, not one completed from a top k, or missing. stored: that top k. has_zeros:
    whether a probability may be 0, as of padded rows.
    """

    labels: Tensor
    expand: Callable[[], Tensor]
    known: Mapping[str, Tensor] = field(default_factory=dict)
    is_exact: bool = True
    stored: Callable[[], tuple[Tensor, Tensor] | None] = lambda: None
    has_zeros: bool = True

    @lazy
    def logp(self) -> Tensor:
        """log π [n, V] over the policy's vocabulary. Raises QTargetError where only label scalars are held."""
        return self.expand()

    @lazy
    def p(self) -> Tensor:
        """π [n, V]."""
        return self.logp.exp()

    @lazy
    def finite_logp(self) -> Tensor:
        """log π [n, V] with a number for −∞, so that 0·log 0 comes out as 0; `logp` itself where there is none."""
        return finite(self.logp) if self.has_zeros else self.logp

    @lazy
    def support(self) -> tuple[Tensor, Tensor] | None:
        """Token ids and log-probabilities [n, k] of a top-k reference, as they were stored; None for any other."""
        return self.stored()

    @lazy
    def label_logp(self) -> Tensor:
        """log π(y) [n]."""
        return self._known_or("logp", lambda: self.logp.gather(1, self.labels[:, None]).squeeze(1))

    @lazy
    def entropy(self) -> Tensor:
        """H(π) = −Σ_v π_v log π_v [n], nats."""
        return self._known_or("entropy", lambda: -dot(self.p, self.finite_logp))

    @lazy
    def outranked(self) -> Tensor:
        """Σ_{v: π_v < π_y} π_v [n]: the mass of tokens less likely than the label (PriFT-mass, arXiv 2606.09396)."""
        return self._known_or(
            "outranked", lambda: torch.where(self.logp < self.label_logp[:, None], self.logp.exp(), 0.0).sum(-1)
        )

    @lazy
    def concentration(self) -> Tensor:
        """Σ_v π_v² [n] (DEFT, arXiv 2602.11424)."""
        return self._known_or("concentration", lambda: (2 * self.logp).exp().sum(-1))

    def top_entropy(self, top: int) -> Tensor:
        """Entropy [n] of the `top` likeliest tokens, renormalised among themselves (EAFT, arXiv 2601.02151)."""
        if "top_entropy" in self.known and top != TOP:
            raise QTargetError(f"this reference holds the entropy of its top {TOP} tokens, not of its top {top}")
        return self._known_or(
            "top_entropy",
            lambda: entropy(torch.log_softmax(self.logp.topk(min(top, self.logp.shape[1]), dim=-1).values, dim=-1)),
        )

    def _known_or(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        if name in self.known:
            return self.known[name]
        if self.known and not self.is_exact and self.stored() is None:
            raise QTargetError(
                f"this design reads the label scalar {name!r} of a reference that holds only {', '.join(self.known)}: "
                "give it to Reference.label, or a fuller reference"
            )
        return compute()


LABEL_SCALARS = ("logp", "entropy", "top_entropy", "outranked", "concentration")
"""What a reference by label scalars may hold of each token, fp32: 20 bytes."""


def entropy(logp: Tensor) -> Tensor:
    """H [n] in nats of log-probabilities [n, V]."""
    return -dot(logp.exp(), finite(logp))


def dot(p: Tensor, values: Tensor) -> Tensor:
    """Σ_v p_v·values_v [n]."""
    total: Tensor = torch.linalg.vecdot(p, values)
    return total


def finite(logp: Tensor) -> Tensor:
    """Log-probabilities whose −∞ (padded rows) is a number, so that 0·log 0 comes out as 0."""
    return logp.clamp_min(-1e30)
