"""Calibration of token probabilities: of tokens that the policy is p sure of, is it right about a share p?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qtarget.design import residual
from qtarget.math.target import Mixture
from qtarget.math.view import TokenView

BINS = 15
Bin = Mapping[str, float | int | None]


@dataclass(frozen=True)
class Confidence:
    """max_v p(v) [n], where a design has its reliance."""

    def __call__(self, view: TokenView) -> Tensor:
        return view.logp.amax(-1).exp()


@dataclass(frozen=True)
class Hit:
    """1 where the label is the likeliest token, else 0 [n], where a design has its weight."""

    def __call__(self, view: TokenView) -> Tensor:
        return (view.logp.argmax(-1) == view.labels).to(view.logp.dtype)


PROBE = Mixture(Confidence(), residual.Self(), Hit())
"""No design to train with: through its parts the loss, which goes chunk by chunk, reads what calibration is made of."""


class Reliability:
    """Sums over tokens in `BINS` equally wide bins [low, high) of confidence, the last one closed."""

    def __init__(self) -> None:
        self._sums = torch.zeros(BINS, 3, dtype=torch.float64)  # tokens, confidence, hits

    def update(self, confidence: Tensor, hit: Tensor) -> None:
        """Both [N]."""
        place = (confidence.double().cpu() * BINS).long().clamp_max(BINS - 1)
        values = torch.stack([torch.ones_like(confidence), confidence, hit], dim=-1)
        self._sums.index_add_(0, place, values.double().cpu())

    @property
    def error(self) -> float:
        """ECE = Σ_b |Σ_{t in b} confidence − hits| / N: the mean distance between the two, by bin."""
        tokens, confidence, hits = self._sums.unbind(-1)
        return float((confidence - hits).abs().sum() / tokens.sum())

    def bins(self) -> list[Bin]:
        """The reliability curve, for a diagram: confidence and accuracy are means over a bin's tokens, None of none."""
        return [_bin(place, *sums) for place, sums in enumerate(self._sums.tolist())]


def _bin(place: int, tokens: float, confidence: float, hits: float) -> Bin:
    held = {"confidence": confidence / tokens, "accuracy": hits / tokens} if tokens else {}
    edges = {"low": place / BINS, "high": (place + 1) / BINS, "tokens": int(tokens)}
    return {**edges, "confidence": held.get("confidence"), "accuracy": held.get("accuracy")}
