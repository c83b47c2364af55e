"""How many rows optimizer steps read: an epoch's last step ends with the epoch, and may be shorter than the others."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class EpochPlan:
    """`world` ranks read `rows` epoch by epoch, each up to batch_size·accumulate rows a step.

    A rank's share of an epoch is rows/world rounded up. Where the rows don't divide evenly, some ranks read a row that
    is not taught at the end, so that all have equally many: a step's rows are the same for every number of ranks.
    """

    rows: int
    batch_size: int
    accumulate: int = 1
    world: int = 1

    @property
    def rows_per_rank(self) -> int:
        """Rows that a rank reads in an epoch."""
        return math.ceil(self.rows / self.world)

    @property
    def batches(self) -> int:
        """Micro-batches that a rank reads in an epoch; the last may be short."""
        return math.ceil(self.rows_per_rank / self.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch; a short rest makes one, too."""
        return max(1, math.ceil(self.batches / self.accumulate))

    @property
    def rows_of_step(self) -> int:
        """Rows of a step over all ranks that does not end an epoch."""
        return self.batch_size * self.accumulate * self.world

    @property
    def rows_of_last_step(self) -> int:
        """Rows of the step that ends an epoch."""
        return self.rows - (self.steps - 1) * self.rows_of_step

    def rows_read(self, steps: int) -> int:
        """Rows that `steps` optimizer steps read."""
        return steps * self.rows_of_step - self.epoch_ends(steps) * (self.rows_of_step - self.rows_of_last_step)

    def epoch_ends(self, steps: int) -> int:
        """How many of `steps` end an epoch."""
        return steps // self.steps

    def epochs(self, steps: int) -> float:
        """How often `steps` optimizer steps read a row."""
        return self.rows_read(steps) / self.rows if self.rows else 0.0

    def in_words(self, steps: int, of: str) -> str:
        """`steps` and what they read of the rows, which are called `of`: the product is the number of rows read."""
        read, short = self.rows_read(steps), self.epoch_ends(steps)
        if read == steps * self.rows_of_step or short == steps:
            return _product(
                steps, self.rows_of_last_step if steps and short == steps else self.rows_of_step, self.epochs(steps), of
            )
        mean = round(read / steps)
        if abs(steps * mean - read) <= ROUNDED * read:
            return _product(steps, mean, self.epochs(steps), of)
        whole = steps - short
        parts = _product(whole, self.rows_of_step, whole * self.rows_of_step / self.rows, of)
        ends = f"{short} × {self.rows_of_last_step} rows = {short * self.rows_of_last_step / self.rows:.3g}"
        return f"{steps} steps, {self.epochs(steps):.3g} epochs: {parts} and {ends}"

    def why(self, steps: int) -> str:
        """Why steps are shorter than batch_size × accumulate × ranks; empty where none is."""
        last, others = self.rows_of_last_step, self.rows_of_step
        if not self.epoch_ends(steps) or last == others:
            return ""
        return f"; an epoch's last step ends with it and reads {last} rows instead of {others}"


ROUNDED = 0.03
"""By how much a whole number of rows a step may miss the rows read."""


def _product(steps: int, rows: int, epochs: float, of: str) -> str:
    return f"{steps} steps × {rows} rows = {epochs:.3g} epochs of {of}"


def steps_an_epoch(rows: int, *, batch_size: int, accumulate: int, world: int) -> int:
    """Optimizer steps in which `world` ranks read `rows` once; a short rest makes a micro-batch, and a step, too."""
    return EpochPlan(rows, batch_size, accumulate, world).steps
