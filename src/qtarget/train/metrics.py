"""Means over tokens: sums and counts travel, the division happens once."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from qtarget.math.loss import LossOutput

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


class TokenMeans:
    """Token-weighted means by metric name, gathered over ranks when read."""

    def __init__(self) -> None:
        names = [*PER_TOKEN, *(f"{name}_{kind}" for name in BY_TRUTH for kind in ("clean", "noisy"))]
        self._means = {name: MeanMetric(nan_strategy="error") for name in names}

    def to(self, device: torch.device) -> TokenMeans:
        for mean in self._means.values():
            mean.to(device)
        return self

    def update(self, out: LossOutput, wrong: Tensor) -> None:
        """out: statistics of N tokens; wrong [N] bool: the tokens that noise made wrong."""
        for name, field in PER_TOKEN.items():
            values = getattr(out, field)
            self._add(name, values[~values.isnan()])  # a run without a full prior knows no drift from it
        for name, field in BY_TRUTH.items():
            values = getattr(out, field)
            self._add(f"{name}_clean", values[~wrong])
            self._add(f"{name}_noisy", values[wrong])

    def _add(self, name: str, values: Tensor) -> None:
        # The sum goes in as one weighted value: a mean of means would weigh a short batch like a long one.
        if values.numel():
            self._means[name].update(values.mean(), weight=values.numel())

    def compute(self) -> dict[str, float]:
        """Means so far; a metric that has seen no token is left out."""
        seen = {name: mean for name, mean in self._means.items() if float(mean.weight) > 0}
        return {name: float(mean.compute()) for name, mean in seen.items()}

    def pop(self) -> dict[str, float]:
        """`compute`, then start again."""
        means = self.compute()
        for mean in self._means.values():
            mean.reset()
        return means
