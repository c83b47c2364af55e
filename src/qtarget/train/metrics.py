"""Means over tokens: sums and counts travel, the division happens once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qtarget.math.loss import LossOutput
from qtarget.parallel import summed
from qtarget.train.norm import exact

PER_TOKEN = {
    "train/loss": "loss",
    "train/nll": "nll",
    "target/trust": "trust",
    "target/reliance": "reliance",
    "target/weight": "weight",
    "target/gap": "gap",
    "target/kl_prior": "kl_prior",
    "train/entropy": "entropy",
}
BY_TRUTH = {"target/trust": "trust", "target/reliance": "reliance", "train/nll": "nll"}
"""Metrics that are also kept apart for clean and wrong tokens, as NAME_clean and NAME_noisy."""
NAMES = (*PER_TOKEN, *(f"{name}_{kind}" for name in BY_TRUTH for kind in ("clean", "noisy")))


class TokenMeans:
    """Token-weighted means by metric name, over the tokens of all ranks."""

    def __init__(self) -> None:
        self._sums = torch.zeros(len(NAMES), 2, dtype=torch.float64)  # of the values, and how many they were

    def to(self, device: torch.device) -> TokenMeans:
        self._sums = self._sums.to(device, exact(device))
        return self

    def update(self, out: LossOutput, wrong: Tensor) -> None:
        """out: statistics of N tokens; wrong [N] bool: the tokens that noise made wrong."""
        for name, field in PER_TOKEN.items():
            values = getattr(out, field)
            # a run without a full prior knows no drift from it; of anything else NaN is what was measured
            self._add(name, values[~values.isnan()] if field == "kl_prior" else values)
        for name, field in BY_TRUTH.items():
            values = getattr(out, field)
            self._add(f"{name}_clean", values[~wrong])
            self._add(f"{name}_noisy", values[wrong])

    def _add(self, name: str, values: Tensor) -> None:
        row = self._sums[NAMES.index(name)]
        row[0] += values.sum(dtype=row.dtype)
        row[1] += values.numel()

    def compute(self) -> dict[str, float]:
        """Means so far; a metric that has seen no token on any rank is left out. Every rank has to ask."""
        totals = summed(self._sums).tolist()
        return {name: total / count for name, (total, count) in zip(NAMES, totals, strict=True) if count}

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self._sums.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._sums.copy_(state["sums"])

    def pop(self) -> dict[str, float]:
        """`compute`, then start again."""
        means = self.compute()
        self._sums.zero_()
        return means
