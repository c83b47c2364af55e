"""Random logits, labels and references, for laws that hold of every design."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

import qtarget
from qtarget import Reference


@cache
def load_design(name: str, **changes: Any) -> Any:
    """Designs are immutable, and composing one takes a tenth of a second."""
    return qtarget.load_design(name, **changes)


@dataclass(frozen=True)
class World:
    """N positions over V tokens, with what any design might look at."""

    logits: Tensor
    labels: Tensor
    prior: Tensor
    teacher: Tensor

    @classmethod
    def random(
        cls, seed: int, count: int = 7, vocab: int = 11, scale: float = 2.0, dtype: Any = torch.float64
    ) -> World:
        generator = torch.Generator().manual_seed(seed)

        def draw() -> Tensor:
            return scale * torch.randn(count, vocab, generator=generator, dtype=dtype)

        return cls(
            draw(),
            torch.randint(vocab, (count,), generator=generator),
            draw().log_softmax(-1),
            draw().log_softmax(-1),
        )

    @property
    def references(self) -> dict[str, Reference]:
        return {"prior": Reference.full(self.prior), "teacher": Reference.full(self.teacher)}

    def leaf(self) -> Tensor:
        return self.logits.clone().requires_grad_()
