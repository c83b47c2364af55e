"""How many rows optimizer steps read: an epoch's last step ends with the epoch, and may be shorter than the others."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class EpochReading:
    """`world` ranks read `rows` epoch by epoch, each up to batch_size·accumulate rows a step.

    A rank's share of an epoch is rows/world rounded up. Where the rows don't divide evenly, the sampler repeats the
    first of the epoch's order, so that all ranks read equally many.
    """

    rows: int
    batch_size: int
    accumulate: int = 1
    world: int = 1

    @property
    def share(self) -> int:
        """Rows that a rank reads in an epoch."""
        return math.ceil(self.rows / self.world)

    @property
    def batches(self) -> int:
        """Micro-batches that a rank reads in an epoch; the last may be short."""
        return math.ceil(self.share / self.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch; a short rest makes one, too."""
        return max(1, math.ceil(self.batches / self.accumulate))

    @property
    def full(self) -> int:
        """Rows of a step over all ranks that does not end an epoch."""
        return self.batch_size * self.accumulate * self.world

    @property
    def last(self) -> int:
        """Rows of the step that ends an epoch."""
        return self.share * self.world - (self.steps - 1) * self.full

    @property
    def repeated(self) -> int:
        """Rows that are read a second time in every epoch."""
        return self.share * self.world - self.rows

    def read(self, steps: int) -> int:
        """Rows that `steps` optimizer steps read."""
        return steps * self.full - self.short(steps) * (self.full - self.last)

    def short(self, steps: int) -> int:
        """How many of `steps` end an epoch."""
        return steps // self.steps

    def epochs(self, steps: int) -> float:
        """How often `steps` optimizer steps read a row."""
        return self.read(steps) / self.rows if self.rows else 0.0

    def in_words(self, steps: int, of: str) -> str:
        """`steps` and what they read of the rows, which are called `of`: the product is the number of rows read."""
        read, short = self.read(steps), self.short(steps)
        if read == steps * self.full or short == steps:
            return _product(steps, self.last if steps and short == steps else self.full, self.epochs(steps), of)
        mean = round(read / steps)
        if abs(steps * mean - read) <= ROUNDED * read:
            return _product(steps, mean, self.epochs(steps), of)
        whole = steps - short
        parts = _product(whole, self.full, whole * self.full / self.rows, of)
        ends = f"{short} × {self.last} rows = {short * self.last / self.rows:.3g}"
        return f"{steps} steps, {self.epochs(steps):.3g} epochs: {parts} and {ends}"

    def why(self, steps: int) -> str:
        """Why steps are shorter than batch_size × accumulate × ranks, and rows read twice; empty where neither is."""
        words = ""
        if self.short(steps) and self.last < self.full:
            words += f"; an epoch's last step ends with it and reads {self.last} rows instead of {self.full}"
        if self.repeated and steps:
            words += f"; {self.repeated} of an epoch's rows read twice, so that {self.world} devices read equally many"
        return words


ROUNDED = 0.03
"""By how much a whole number of rows a step may miss the rows read."""


def _product(steps: int, rows: int, epochs: float, of: str) -> str:
    return f"{steps} steps × {rows} rows = {epochs:.3g} epochs of {of}"


def steps_an_epoch(rows: int, *, batch_size: int, accumulate: int, world: int) -> int:
    """Optimizer steps in which `world` ranks read `rows` once; a short rest makes a micro-batch, and a step, too."""
    return EpochReading(rows, batch_size, accumulate, world).steps
