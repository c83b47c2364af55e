"""Weight w: the step size of a token, where it is not already said by γ. Each part maps a TokenView to [n]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qtarget.design import checks
from qtarget.math.view import TokenView


@dataclass(frozen=True)
class Constant:
    """w_t = value ≥ 0."""

    value: float = 1.0

    def __post_init__(self) -> None:
        checks.number("value", self.value, 0)

    def __call__(self, view: TokenView) -> Tensor:
        return torch.full_like(view.label_logp, self.value)

    def __str__(self) -> str:
        return f"{self.value:g}"
