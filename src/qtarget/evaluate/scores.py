"""Scores over prompts, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest


@dataclass(frozen=True)
class Score:
    """A mean in [0, 1] over prompts, and its 95 % interval."""

    mean: float
    low: float
    high: float


def accuracy(correct: Sequence[bool]) -> Score:
    """Share of correct answers with the Wilson score interval (Wilson 1927), which stays honest near 0 and 1."""
    test = binomtest(sum(correct), len(correct))
    interval = test.proportion_ci(confidence_level=0.95, method="wilson")
    return Score(mean=float(test.statistic), low=float(interval.low), high=float(interval.high))
