"""Means over tokens: sums and counts travel, the division happens once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qtarget.math.loss import LossOutput
from qtarget.measures import MEASURES
from qtarget.parallel import all_reduce_sum
from qtarget.train.normed_adamw import exact

LOGGED = {measure.logged: measure for measure in MEASURES if measure.logged}
NAMES = (*LOGGED, *(f"{name}_{kind}" for name in LOGGED if LOGGED[name].apart for kind in ("clean", "noisy")))
"""Means that are logged: a measure's own, and apart for clean and wrong tokens."""
OF_EARLIER_STATES = (
    *("train/loss", "train/nll", "target/trust", "target/reliance", "target/weight", "target/gap", "target/kl_prior"),
    *("train/entropy", "target/trust_clean", "target/trust_noisy", "target/reliance_clean", "target/reliance_noisy"),
    *("train/nll_clean", "train/nll_noisy"),
)
"""In the order of a state that doesn't name its means, as 0.1.0 saved it."""


class TokenMeans:
    """Token-weighted means by metric name, over the tokens of all ranks."""

    def __init__(self) -> None:
        self._sums = torch.zeros(len(NAMES), 2, dtype=torch.float64)  # of the values, and how many they were

    def to(self, device: torch.device) -> TokenMeans:
        self._sums = self._sums.to(device, exact(device))
        return self

    def update(self, out: LossOutput, wrong: Tensor) -> None:
        """out: measures of N tokens; wrong [N] bool: the tokens that noise made wrong."""
        for name, measure in LOGGED.items():
            values = out.of(measure.name)
            # a run without a full prior knows no drift from it; of anything else NaN is what was measured
            self._add(name, values[~values.isnan()] if measure.needs_prior else values)
            if measure.apart:
                self._add(f"{name}_clean", values[~wrong])
                self._add(f"{name}_noisy", values[wrong])

    def _add(self, name: str, values: Tensor) -> None:
        row = self._sums[NAMES.index(name)]
        row[0] += values.sum(dtype=row.dtype)
        row[1] += values.numel()

    @property
    def tokens(self) -> int:
        """How many this rank has seen."""
        return int(self._sums[NAMES.index("train/nll"), 1])

    def compute(self) -> dict[str, float]:
        """Means so far; a metric that has seen no token on any rank is left out. Collective."""
        totals = all_reduce_sum(self._sums).tolist()
        return {name: total / count for name, (total, count) in zip(NAMES, totals, strict=True) if count}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums.clone(), "names": list(NAMES)}

    def load_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from what ranks had measured, all of it in one.

        Raises KeyError for a state that lacks one of the means, as one saved before there was a new measure.
        """
        self._sums.zero_()
        for state in states:
            rows = dict(zip(state.get("names", OF_EARLIER_STATES), state["sums"], strict=True))
            self._sums += torch.stack([rows[name] for name in NAMES]).to(self._sums)

    def pop(self) -> dict[str, float]:
        """`compute`, then start again."""
        means = self.compute()
        self._sums.zero_()
        return means
