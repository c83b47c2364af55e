"""What a Trainer logs of the tokens that a design looked at."""

from __future__ import annotations

import torch

from qtarget.math.loss import LossOutput
from qtarget.measures import HIT, MEASURES, Measure
from qtarget.parallel import all_reduce_sum
from qtarget.train.normed_adamw import exact

ACCURACY = "mean_token_accuracy"
"""As TRL calls it."""
LOGGED: dict[str, Measure] = {
    **{one.logged.removeprefix("train/"): one for one in MEASURES if one.logged and one.name != "loss"},
    ACCURACY: HIT,
}
"""Name in the log → measure: nll, entropy, target/reliance, …; `loss` is the Trainer's own."""


class LoggedMeans:
    """Means over the supervised tokens of all ranks since they were last popped."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(LOGGED), 2, dtype=exact(device), device=device)  # of values, and how many
        self._is_empty = True

    def update(self, out: LossOutput) -> None:
        """out: statistics of N tokens, with HIT among the measures."""
        self._is_empty = False
        for row, measure in zip(self._sums, LOGGED.values(), strict=True):
            values = out.of(measure.name)
            values = values[~values.isnan()] if measure.needs_prior else values
            row[0] += values.sum(dtype=row.dtype)
            row[1] += values.numel()

    def pop(self) -> dict[str, float]:
        """The means by name, without those of no token; then start again. Collective where there was any update."""
        if self._is_empty:
            return {}
        totals = all_reduce_sum(self._sums).tolist()
        self.clear()
        return {name: total / count for name, (total, count) in zip(LOGGED, totals, strict=True) if count}

    def clear(self) -> None:
        self._sums.zero_()
        self._is_empty = True
