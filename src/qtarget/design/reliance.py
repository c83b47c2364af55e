"""Reliance γ: the share of the target that stays on the observed token. Each part maps a TokenView to [n]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qtarget.design import checks
from qtarget.math.view import TokenView


@dataclass(frozen=True)
class Constant:
    """γ_t = value in [0, 1]: 1 is standard SFT, 0 leaves the residual alone (distillation)."""

    value: float = 1.0

    def __post_init__(self) -> None:
        checks.number("value", self.value, 0, 1)

    def __call__(self, view: TokenView) -> Tensor:
        return torch.full_like(view.label_logp, self.value)

    def __str__(self) -> str:
        return f"{self.value:g}"


@dataclass(frozen=True)
class Smoothing:
    """γ_t = 1 − λ, with λ in [0, 1] (label smoothing with a uniform residual: Szegedy et al., arXiv 1512.00567)."""

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        checks.number("smoothing", self.smoothing, 0, 1)

    def __call__(self, view: TokenView) -> Tensor:
        return torch.full_like(view.label_logp, 1 - self.smoothing)

    def __str__(self) -> str:
        return f"1 − λ, λ={self.smoothing:g}"


@dataclass(frozen=True)
class Power:
    """γ_t = p(y_t)^α, α ≥ 0. DFT at α=1 (arXiv 2508.05629); the α-family of Beyond-log (arXiv 2510.00526).

    source: whose probability p is, "policy" or a reference ("prior" is PriFT's recipe, arXiv 2606.09396).
    """

    alpha: float = 1.0
    source: str = "policy"

    def __post_init__(self) -> None:
        checks.number("alpha", self.alpha, 0)
        checks.source(self.source)

    @property
    def needs(self) -> Mapping[str, str]:
        return checks.label_needs(self.source)

    def __call__(self, view: TokenView) -> Tensor:
        return (self.alpha * view.label_logp_of(self.source)).exp()

    def __str__(self) -> str:
        base = f"p_{self.source}(y)" if self.source != "policy" else "p(y)"
        return base if self.alpha == 1 else f"{base}^{self.alpha:g}"


@dataclass(frozen=True)
class OneMinus:
    """γ_t = 1 − p(y_t): learn only what `source` does not predict yet; with source="prior" the weight is frozen."""

    source: str = "prior"

    def __post_init__(self) -> None:
        checks.source(self.source)

    @property
    def needs(self) -> Mapping[str, str]:
        return checks.label_needs(self.source)

    def __call__(self, view: TokenView) -> Tensor:
        return -torch.expm1(view.label_logp_of(self.source))

    def __str__(self) -> str:
        return f"1 − p_{self.source}(y)" if self.source != "policy" else "1 − p(y)"
