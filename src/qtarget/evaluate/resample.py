"""95 % intervals of means over problems and seeds, by resampling both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(values: npt.NDArray[np.floating], seed: int = 0) -> Interval:
    """The mean of values [S seeds, P problems], or of differences of such, with its 95 % percentile interval.

    Rows and columns are drawn with replacement, independently (the pigeonhole bootstrap: Owen, The pigeonhole
    bootstrap, Annals of Applied Statistics 2007). With one seed only the luck of the problems is covered; with a few
    the share of the seeds is coarse, and wide rather than narrow.
    """
    seeds, problems = values.shape
    generator = np.random.default_rng(seed)
    drawn_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    drawn_problems = generator.multinomial(problems, np.full(problems, 1 / problems), RESAMPLES) / problems
    means = np.einsum("rs,sp,rp->r", drawn_seeds, values, drawn_problems, optimize=True)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))
