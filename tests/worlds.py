"""Random logits, labels and everything that may stand beside them, for laws that hold of every design."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import qtarget
from qtarget import Reference

TOP_K = 3
NEEDS_TOP_K = ("kd_support", "kd_truncated")
"""Designs that compare only the tokens that a top-k teacher kept."""


FEW_DESIGNS = (
    "asft",  # anchored, a prior
    "cayley_trans",  # looks at a batch
    "cft",  # reads a column, divides by the tokens kept
    "dft",
    "gem",  # signed
    "iw_sft",  # looks at a sequence
    "kd_jsd",  # induced, a teacher
    "kd_truncated",  # a top-k teacher
    "label_smoothing",
    "psft",  # the old policy
    "rho1",  # looks at an optimizer step
    "sft",
    "target_sft",  # a mixture with a teacher
)
"""One of every kind, scope, reference and divisor: where each takes a second, the others are for make test-all."""


def few_at_once(names: Iterable[str], few: Container[str] = FEW_DESIGNS) -> list[Any]:
    """The names as parameters of a test, those not among the few as slow ones."""
    return [name if name in few else pytest.param(name, marks=pytest.mark.slow) for name in names]


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
    old: Tensor
    critical: Tensor
    negatives: Tensor
    sequence_ids: Tensor

    @classmethod
    def random(
        cls, seed: int, count: int = 7, vocab: int = 11, scale: float = 2.0, dtype: Any = torch.float64
    ) -> World:
        generator = torch.Generator().manual_seed(seed)

        def draw() -> Tensor:
            return scale * torch.randn(count, vocab, generator=generator, dtype=dtype)

        logits, labels = draw(), torch.randint(vocab, (count,), generator=generator)
        prior, teacher, old = (draw().log_softmax(-1) for _ in range(3))
        critical = torch.randint(2, (count,), generator=generator)
        negatives = torch.randint(vocab, (count, 4), generator=generator)
        negatives[:, -1] = qtarget.IGNORE
        return cls(logits, labels, prior, teacher, old, critical, negatives, torch.arange(count) // 3)

    def given(self, name: str = "") -> dict[str, Any]:
        """The keyword arguments that go with the labels, for the design `name`."""
        teacher = Reference.full(self.teacher)
        references = {
            "prior": Reference.full(self.prior),
            "teacher": teacher.truncated(TOP_K) if name in NEEDS_TOP_K else teacher,
            "old": Reference.full(self.old),
        }
        return {
            "references": references,
            "columns": {"critical": self.critical},
            "negatives": self.negatives,
            "sequence_ids": self.sequence_ids,
            "progress": 1.0,
        }

    @property
    def references(self) -> dict[str, Reference]:
        references: dict[str, Reference] = self.given()["references"]
        return references

    def at(self, index: Any) -> World:
        """Some of the positions."""
        return World(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def changed(self, **changes: Any) -> World:
        return replace(self, **changes)

    def leaf(self) -> Tensor:
        return self.logits.clone().requires_grad_()
