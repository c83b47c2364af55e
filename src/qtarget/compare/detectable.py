"""What `qtarget compare` tells apart: the power of its p-value and its interval, from components of variance.

A planned experiment has S seeds and R rows, and two designs on the same seeds and rows. Their difference in one row
under one seed is, in the model,

    d_sr = δ + seed_s + row_r + both_sr        with variances σ²_seed, σ²_row, σ²_both

so that its mean over both has the variance V = σ²_seed/S + σ²_row/R + σ²_both/(S·R). The difference is detected where

    |mean| > max(p_bound, half-width)

p_bound: beyond it p, by sign flips of the rows' means over seeds, is below α/comparisons. Flipping signs is Student's t
test of those means (Lehmann & Romano 2005, section 15.2), and half a step of their lattice later, where the values have
one (the correction for continuity). Of Holm's steps the first is the strictest: what passes α/comparisons passes all.
half-width: of the 95 % interval over seeds and rows, as evaluate/ratios.py and evaluate/scores.py make it.

Both hang on the mean squares of rows and seeds, which are multiples of χ², independent of the mean. The power is the
mean over those of what the normal distribution of the mean leaves beyond the bound; of a single seed it is that of the
noncentral t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qtarget.evaluate.ratios import TAIL
from qtarget.evaluate.scores import Values

POINTS = 512
"""Pairs of quantiles that the mean over χ² is taken at."""
DRAWS = 200
"""Of the variances, for what a pilot leaves open."""
GOLDEN, SILVER = (5**0.5 - 1) / 2, 2**0.5 - 1
"""Multiples of either fill [0, 1] evenly."""
BISECTIONS = 40


@dataclass(frozen=True)
class PlannedExperiment:
    """An experiment to come.

    comparisons: differences that p is corrected for. ratio: the metric is a sum by a sum (nll), else a mean of shares.
    step: between neighbouring values of a row, of a share; 0 where they are continuous.
    """

    seeds: int
    rows: int
    alpha: float = 0.05
    comparisons: int = 1
    ratio: bool = False
    step: float = 0.0


@dataclass(frozen=True)
class Variances:
    """Of paired differences: σ²_seed, σ²_row and σ²_both, numbers or arrays [D] of draws."""

    seed: Values
    row: Values
    both: Values

    def of_mean(self, plan: PlannedExperiment) -> Values:
        """V, of the mean over S seeds and R rows."""
        of_mean: Values = self.seed / plan.seeds + (self.row + self.both / plan.seeds) / plan.rows
        return of_mean


def variances(seed: float, row: float, both: float) -> Variances:
    return Variances(*(np.array([value], dtype=float) for value in (seed, row, both)))


@dataclass(frozen=True)
class MeanSquares:
    """Of a pilot with S seeds and R rows: the variance of seeds' means (0 of a single seed), that of rows' means, and
    what is left. pairs: how many independent pairs of designs they are means over.
    """

    seeds: int
    rows: float
    of_seeds: float
    of_rows: float
    rest: float
    pairs: float = 1.0

    @property
    def freedom(self) -> tuple[float, float, float]:
        """Degrees of freedom of the three."""
        seeds, rows = self.seeds - 1, self.rows - 1
        return seeds * self.pairs, rows * self.pairs, seeds * rows * self.pairs

    @property
    def estimate(self) -> Variances:
        """σ² of seeds, of rows, and of both, none below 0. Of a single seed all is taken for σ²_both."""
        return self._split(*(np.array([value]) for value in (self.of_seeds, self.of_rows, self.rest)))

    @property
    def draws(self) -> Variances:
        """[DRAWS]: variances that the pilot goes with: each mean square times its freedom by a χ² (fiducial)."""
        from scipy.special import chdtri

        steps = [(np.arange(DRAWS) * share + 0.5 / DRAWS) % 1 for share in (1 / DRAWS, GOLDEN, SILVER)]
        scales = [
            max(freedom, 1) / chdtri(max(freedom, 1), one) for freedom, one in zip(self.freedom, steps, strict=True)
        ]
        squares = (self.of_seeds, self.of_rows, self.rest)
        return self._split(*(square * scale for square, scale in zip(squares, scales, strict=True)))

    def _split(self, of_seeds: Values, of_rows: Values, rest: Values) -> Variances:
        if self.seeds == 1:
            return Variances(0 * of_rows, 0 * of_rows, of_rows)
        return Variances(np.maximum(0, of_seeds - rest / self.rows), np.maximum(0, of_rows - rest / self.seeds), rest)


# The bound


def _bounds(components: Variances, plan: PlannedExperiment) -> Values:
    """[D, POINTS]: how far from 0 a mean has to be, at equally likely pairs of mean squares."""
    from scipy.special import chdtri

    places = (np.arange(POINTS) + 0.5) / POINTS
    others = (np.arange(POINTS) * GOLDEN + 0.5) % 1
    row, both, seed = (value[:, None] for value in (components.row, components.both, components.seed))
    of_rows = (row + both / plan.seeds) * chdtri(plan.rows - 1, others) / (plan.rows - 1) / plan.rows
    by_p = _student(plan.rows - 1, 1 - plan.alpha / plan.comparisons / 2) * np.sqrt(of_rows)
    by_p += plan.step / (plan.seeds * plan.rows)
    of_both = both / (plan.seeds * plan.rows)
    if plan.seeds == 1:
        return np.maximum(by_p, _half_of_rows(of_rows, plan))
    of_seeds = (seed / plan.seeds + of_both) * chdtri(plan.seeds - 1, places) / (plan.seeds - 1)
    half = (_half_of_ratio if plan.ratio else _half_of_share)(of_rows, of_seeds, of_both, plan)
    return np.maximum(by_p, half)


def _half_of_rows(of_rows: Values, plan: PlannedExperiment) -> Values:
    quantile = _student(plan.rows - 1, TAIL) if plan.ratio else _student(np.inf, TAIL)
    return quantile * np.sqrt(of_rows)


def _half_of_ratio(of_rows: Values, of_seeds: Values, of_both: Values, plan: PlannedExperiment) -> Values:
    """As ratios.ratio_over_seeds has it: Student's, with Satterthwaite's degrees of freedom."""
    by_seed = np.maximum(0, of_seeds - of_both)
    total = of_rows + by_seed
    parts = of_rows**2 / (plan.rows - 1) + of_seeds**2 / (plan.seeds - 1)
    freedom = np.where(by_seed > 0, np.minimum(total**2 / parts, plan.rows - 1), plan.rows - 1)
    half: Values = _student(freedom, TAIL) * np.sqrt(total)
    return half


def _half_of_share(of_rows: Values, of_seeds: Values, of_both: Values, plan: PlannedExperiment) -> Values:
    """As scores.over_seeds has it: the spread of means over seeds and rows that are both drawn with replacement."""
    left = 1 - 1 / plan.seeds
    half: Values = _student(np.inf, TAIL) * np.sqrt(of_rows + left * (of_seeds + of_both))
    return half


def _student(freedom: Values | float, place: float) -> Values:
    from scipy.special import stdtrit

    quantile: Values = stdtrit(np.asarray(freedom, dtype=float), place)
    return quantile


# Power, and what it takes


def power(components: Variances, plan: PlannedExperiment, difference: float) -> Values:
    """[D]: how often a difference of the designs is detected; of none, how often one is seen all the same."""
    return _beyond(_bounds(components, plan), np.sqrt(components.of_mean(plan)), np.array([difference]))


def _beyond(bounds: Values, spread: Values, difference: Values) -> Values:
    from scipy.special import ndtr

    spread, difference = spread[:, None], difference[:, None]
    either: Values = (ndtr((difference - bounds) / spread) + ndtr((-difference - bounds) / spread)).mean(1)
    return either


def smallest_difference(components: Variances, plan: PlannedExperiment, wanted: float) -> Values:
    """[D]: the difference of two designs that is detected so often."""
    bounds, spread = _bounds(components, plan), np.sqrt(components.of_mean(plan))
    low, high = np.zeros(len(spread)), bounds.max(1) + 8 * spread
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = _beyond(bounds, spread, middle) >= wanted
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high


def fewest(enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest count in [low, high] that is enough, where more are never less so; None where none is."""
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
