"""Metrics that are Σ totals / Σ sizes over rows, such as nats over tokens, with 95 % intervals over rows and seeds.

The row is the unit, with all of its tokens: they are no independent evidence. Losses of rows are skewed and seeds are
few, which percentiles of a bootstrap know nothing of. Of 60 rows with lognormal losses (σ 0.8) the intervals here cover
the truth 92, 93 and 95 times in 100 with one, three and five seeds; percentiles over both did 89, 91 and 93 times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qtarget.evaluate.scores import CONFIDENCE, ROUNDING, PairedDifference, Score, Values, drawn, pieces, sign_flip

TAIL = (1 + CONFIDENCE) / 2
FEW = 10
"""Rows; fewer are too few to resample."""


@dataclass(frozen=True)
class Ratios:
    """Runs whose value is Σ totals / Σ sizes over rows; both [S seeds, R rows], sizes > 0."""

    totals: Values
    sizes: Values

    def __getitem__(self, seeds: slice) -> Ratios:
        return Ratios(self.totals[seeds], self.sizes[seeds])

    @property
    def each(self) -> Values:
        """[S]: of each seed."""
        each: Values = self.totals.sum(1) / self.sizes.sum(1)
        return each

    @property
    def parts(self) -> Values:
        """[R]: what each row adds to the mean over seeds, which is their mean."""
        parts: Values = (self.totals / self.sizes.mean(1, keepdims=True)).mean(0)
        return parts

    @property
    def pulls(self) -> Values:
        """[S, R]: how far each row pulls a seed's value, as if that were a mean over rows; their own mean is 0."""
        pulls: Values = (self.totals - self.each[:, None] * self.sizes) / self.sizes.mean(1, keepdims=True)
        return pulls


def ratio_over_seeds(ours: Ratios, theirs: Ratios | None = None, seed: int = 0) -> Score | None:
    """The mean of ratios, or ours − theirs on the same rows and seeds, and its 95 % interval; None of fewer than two
    rows.

    Over rows: the studentised bootstrap, see `_over_rows`. With several seeds a half-width is, for each end,

        √(h² + q²·v) · t_df/q        v = max(0, (variance of seeds − variance of seed × row)/S)

    with h that over rows and q Student's quantile of R − 1 degrees of freedom: squares of half-widths add (Zou &
    Donner, Statistics in Medicine 2008). df is Satterthwaite's, between S − 1, where seeds are all that varies, and
    R − 1. Where nothing varies, as between a run and itself, the interval has no width.
    """
    seeds, rows = ours.totals.shape
    if rows < 2:
        return None
    sides = [(1.0, ours), *([(-1.0, theirs)] if theirs else [])]
    each, pulls = (sum(sign * getattr(side, name) for sign, side in sides) for name in ("each", "pulls"))
    mean = float(each.mean())
    below, above = _over_rows(sides, mean, pulls.mean(0), np.random.default_rng(seed))
    if seeds > 1:
        below, above = _with_seeds((below, above), each, pulls)
    return Score(mean, mean - below, mean + above)


Sides = Sequence[tuple[float, Ratios]]
"""Terms of a sum, with their signs."""


def _over_rows(sides: Sides, mean: float, pulls: Values, generator: np.random.Generator) -> tuple[float, float]:
    """How far the 95 % interval over rows reaches below the mean, and above it. pulls [R]: over all seeds.

    The studentised bootstrap (Efron & Tibshirani 1993, chapter 12): quantiles of (mean of a draw − mean)/(its spread)
    take the place of Student's, and follow the skewness of the rows. Student's stand where there are too few rows, or a
    draw has no spread.
    """
    if np.ptp(pulls) < ROUNDING:
        return 0.0, 0.0
    rows = len(pulls)
    sizes = pieces(rows) if rows >= FEW else []
    draws = [_drawn(sides, drawn(generator, rows, size)) for size in sizes]
    if not draws or min(spread.min() for _, spread in draws) < ROUNDING:
        half = float(_student(rows - 1) * pulls.std(ddof=1) / np.sqrt(rows))
        return half, half
    off = np.concatenate([(means - mean) / spread for means, spread in draws])
    low, high = np.quantile(off, [1 - TAIL, TAIL]) * pulls.std()
    return float(high), float(-low)


def _drawn(sides: Sides, shares: Values) -> tuple[Values, Values]:
    """The mean over seeds in draws that hold these shares of rows [B, R], and how far its pulls spread; both [B]."""
    mean, pulls = np.zeros(len(shares)), np.zeros_like(shares)
    for sign, side in sides:
        for totals, sizes in zip(side.totals, side.sizes, strict=True):
            size, share = shares @ sizes, sign / len(side.totals)
            ratio = shares @ totals / size
            mean += share * ratio
            pulls += (share / size)[:, None] * (totals - ratio[:, None] * sizes)
    return mean, np.sqrt((shares * pulls**2).sum(1))


def _with_seeds(over_rows: tuple[float, float], each: Values, pulls: Values) -> tuple[float, float]:
    """Half-widths over rows and seeds. each [S]: the seeds' values; pulls [S, R]."""
    seeds, rows = pulls.shape
    of_seeds = each.var(ddof=1) / seeds
    rest = pulls - pulls.mean(0)
    of_both = (rest**2).sum() / ((seeds - 1) * (rows - 1)) / (seeds * rows)
    of_rows = pulls.mean(0).var(ddof=1) / rows
    by_seed = max(0.0, of_seeds - of_both)
    if not by_seed:
        return over_rows
    freedom = (of_rows + by_seed) ** 2 / (of_rows**2 / (rows - 1) + of_seeds**2 / (seeds - 1))
    quantile = _student(rows - 1)
    widened = _student(min(freedom, rows - 1)) / quantile
    below, above = (float(widened * np.hypot(half, quantile * np.sqrt(by_seed))) for half in over_rows)
    return below, above


def _student(freedom: float) -> float:
    """The quantile at TAIL of Student's t with so many degrees of freedom."""
    from scipy.special import stdtrit  # as scipy.stats.t.ppf, which takes a second to import

    return float(stdtrit(freedom, TAIL))


def ratio_difference(ours: Ratios, theirs: Ratios, seed: int = 0) -> PairedDifference | None:
    """ours − theirs on the same seeds and rows, as `scores.difference_over_seeds`; None of a single row."""
    score = ratio_over_seeds(ours, theirs, seed)
    return PairedDifference(score, sign_flip(ours.parts - theirs.parts, seed)) if score else None
