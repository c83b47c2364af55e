"""Scores over prompts, with 95 % intervals. The prompt is the unit: samples of one prompt are no independent evidence.

Intervals: where every prompt's value is 0 or 1 (one answer each, a pass@k), Wilson's score interval. Otherwise the
bias-corrected and accelerated bootstrap over prompts (Efron 1987). Where all prompts have one value between, resampling
has nothing to vary, and the interval is how far prompts as rare as to have stayed unseen could move the mean.

Bootstrap, permutation test and Wilson's interval are scipy's. Kept here: the bootstrap over seeds and prompts at once,
which scipy doesn't have. ratios.py has intervals of metrics that are a sum by a sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000
RESAMPLED_AT_ONCE = 2**22
"""Values drawn at a time: 32 MB of indices."""
ROUNDING = 1e-9
"""Values and sums that are closer than this are one: 0.3 − 0.1 and 0.7 − 0.5 differ in their last digit."""


@dataclass(frozen=True)
class Score:
    """A mean over prompts, and its 95 % interval."""

    mean: float
    low: float
    high: float


# A value for each prompt


def pass_at_k(correct: Sequence[int], samples: int, k: int) -> Values:
    """1 − C(n−c, k)/C(n, k) for each prompt: the chance that k of its n samples, c of them right, hold a right one.

    Unbiased (arXiv 2107.03374). 1 ≤ k ≤ n.
    """
    return np.array([1 - comb(samples - count, k) / comb(samples, k) for count in correct])


def majority(answers: Sequence[str], correct: Sequence[bool]) -> float:
    """The chance that the answer most samples agree on is right: 0 or 1, or between where answers tie.

    Among tied answers each is taken equally often. An empty answer is an abstention and has no vote; where nobody votes
    nothing is right.
    """
    votes = Counter(answer for answer in answers if answer)
    most = max(votes.values(), default=0)
    winners = [answer for answer, count in votes.items() if count == most]
    right = [
        sum(verdict for answer, verdict in zip(answers, correct, strict=True) if answer == winner) / most
        for winner in winners
    ]
    return sum(right) / len(right) if right else 0.0


def distinct(answers: Sequence[str]) -> int:
    """How many different answers there are, empty ones aside."""
    return len({answer for answer in answers if answer})


# Means and their intervals


def interval(values: Values, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Score:
    """The mean of a value for each of n ≥ 1 prompts, all of them in [low, high], and its 95 % interval."""
    mean = float(values.mean())
    if (low, high) == (0, 1) and np.isin(values, (0, 1)).all():
        return wilson(int(values.sum()), len(values))
    if np.ptp(values) < ROUNDING:
        unseen = 1 - (1 - CONFIDENCE) ** (1 / len(values))  # of prompts that none of n would show 1 time in 20
        return Score(mean, mean + unseen * (low - mean), mean + unseen * (high - mean))
    return Score(mean, *_bootstrap(values, seed))


def over_seeds(values: Values, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Score:
    """The mean of values [S seeds, P prompts], all in [low, high], and its 95 % interval over both.

    Seeds and prompts are drawn with replacement, independently (the pigeonhole bootstrap: Owen, Annals of Applied
    Statistics 2007), and the interval is that of percentiles; a few seeds make their share coarse. With one seed, or
    where nothing varies, it is the interval over prompts.
    """
    if len(values) == 1 or np.ptp(values) < ROUNDING:
        return interval(values.mean(0), low, high, seed)
    ends = np.quantile(_pigeonhole(values, np.random.default_rng(seed)), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Score(float(values.mean()), float(ends[0]), float(ends[1]))


def _pigeonhole(values: Values, generator: np.random.Generator) -> Values:
    """Means of `RESAMPLES` draws of seeds and prompts."""
    seeds, prompts = values.shape
    return np.concatenate(
        [
            ((drawn(generator, seeds, size) @ values) * drawn(generator, prompts, size)).sum(1)
            for size in pieces(prompts)
        ]
    )


def pieces(count: int) -> list[int]:
    """How many of `RESAMPLES` resamples of `count` values are drawn at a time."""
    most = at_once(count)
    return [min(most, RESAMPLES - start) for start in range(0, RESAMPLES, most)]


def drawn(generator: np.random.Generator, count: int, size: int) -> Values:
    """[size, count]: how large a share of `count` draws with replacement each of so many has."""
    shares: Values = generator.multinomial(count, np.full(count, 1 / count), size) / count
    return shares


def wilson(correct: int, count: int) -> Score:
    """The share correct/count with the Wilson score interval (Wilson 1927), which stays honest near 0 and 1."""
    from scipy.stats import binomtest  # a second, as below: only where an interval is made

    test = binomtest(correct, count)
    ends = test.proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return Score(mean=float(test.statistic), low=float(ends.low), high=float(ends.high))


def _bootstrap(values: Values, seed: int) -> tuple[float, float]:
    """Ends of the BCa interval of the mean."""
    from scipy.stats import bootstrap

    options = {"n_resamples": RESAMPLES, "batch": at_once(len(values)), "rng": np.random.default_rng(seed)}
    ends = bootstrap((values,), np.mean, confidence_level=CONFIDENCE, method="BCa", **options).confidence_interval
    return float(ends.low), float(ends.high)


def at_once(count: int) -> int:
    """Resamples of `count` values that are drawn at a time."""
    return max(1, RESAMPLED_AT_ONCE // count)


@dataclass(frozen=True)
class PairedDifference:
    """mean: of b − a over the same prompts, with its 95 % interval; p_value: two-sided, of no difference."""

    score: Score
    p_value: float


def difference(a: Values, b: Values, seed: int = 0) -> PairedDifference:
    """b − a, prompt by prompt, both in [0, 1].

    The p-value is that of the sign-flip permutation test: were the two alike, each prompt's difference would as likely
    have the other sign. It is 1 where all prompts agree. It is exact where so few prompts differ (10) that all their
    signs are no more than `RESAMPLES`; otherwise it is drawn, and at least 1/(1 + RESAMPLES).
    """
    change = b - a
    return PairedDifference(interval(change, -1.0, 1.0, seed), sign_flip(change, seed))


def difference_over_seeds(change: Values, seed: int = 0) -> PairedDifference:
    """Of differences [S seeds, P prompts] in [−1, 1]: their interval is over seeds and prompts, the p-value is of these
    seeds: that of the sign flips of each prompt's mean over them.
    """
    return PairedDifference(over_seeds(change, low=-1.0, seed=seed), sign_flip(change.mean(0), seed))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of m comparisons, corrected so that all of them together err as seldom as one: the k-th smallest
    is max over j ≤ k of min(1, (m − j + 1)·p_(j)) (Holm, Scandinavian Journal of Statistics 1979). In their order.
    """
    order = np.argsort(p_values)
    scaled = np.arange(len(p_values), 0, -1) * np.asarray(p_values)[order]
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(scaled).clip(max=1.0)
    return [float(value) for value in corrected]


def sign_flip(change: Values, seed: int) -> float:
    """P(|Σ ±change| ≥ |Σ change|). Prompts that agree add nothing under either sign and are left out."""
    change = change[np.abs(change) > ROUNDING]
    if len(change) < 2:  # one difference is as far from 0 under either sign
        return 1.0
    from scipy.stats import permutation_test

    def distance(signed: Values, axis: int) -> Values:
        return np.round(np.abs(signed.sum(axis)) / ROUNDING)

    options = {"n_resamples": RESAMPLES, "batch": at_once(len(change)), "rng": np.random.default_rng(seed)}
    test = permutation_test(
        (change,), distance, permutation_type="samples", alternative="greater", vectorized=True, **options
    )
    return float(test.pvalue)
