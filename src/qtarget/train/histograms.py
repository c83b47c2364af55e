"""How γ, w and p(y) are spread over the tokens trained on, counted as they pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qtarget.math.loss import LossOutput
from qtarget.parallel import all_reduce_sum

BINS = 40
RANGES = {"histogram/reliance": (0.0, 1.0), "histogram/weight": (0.0, 4.0), "histogram/p": (0.0, 1.0)}
"""Name → what its bins span. What lies outside is counted in the first or the last of them."""


@dataclass(frozen=True)
class Histogram:
    """Tokens in equally wide bins [·, ·) from low to high, the last one closed."""

    low: float
    high: float
    counts: list[int]


class TokenHistograms:
    """Histograms over the tokens of all ranks since `compute_until_next` was last called.

    Counts go back to 0 with the next tokens, not at once. A state saved in between is of the run before its evaluation,
    which logs these histograms once more.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(len(RANGES), BINS, dtype=torch.int64)
        self._is_logged = False

    def to(self, device: torch.device) -> TokenHistograms:
        self._counts = self._counts.to(device)
        return self

    def update(self, out: LossOutput, wrong: Tensor) -> None:
        """out: measures of N tokens. wrong isn't used."""
        if self._is_logged:
            self._counts.zero_()
            self._is_logged = False
        values = (out.reliance, out.weight, (-out.nll).exp())
        for counts, per_token, (low, high) in zip(self._counts, values, RANGES.values(), strict=True):
            known = per_token[~per_token.isnan()]
            bins = ((known - low) * (BINS / (high - low))).clamp(0, BINS - 1).long()
            counts.add_(torch.bincount(bins, minlength=BINS))

    def compute_until_next(self) -> dict[str, Histogram]:
        """Name → histogram, of those that hold a token; the next tokens start new ones. Collective."""
        self._is_logged = True
        counted = zip(RANGES.items(), all_reduce_sum(self._counts).tolist(), strict=True)
        return {name: Histogram(low, high, counts) for (name, (low, high)), counts in counted if any(counts)}

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self._counts.clone()}

    def load_states(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Go on from what ranks had counted, all of it in one."""
        self._counts.zero_()
        for state in states:
            self._counts += state["counts"].to(self._counts)
