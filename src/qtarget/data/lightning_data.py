"""Prepared demonstrations as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from qtarget.data.batch import Collate, WindowedLoader
from qtarget.data.epochs import EpochPlan
from qtarget.data.example import Example
from qtarget.data.packing import Pack, Packs
from qtarget.parallel import rank_and_world


@dataclass(frozen=True)
class DataPosition:
    """How far a rank has read: `batches` of the epoch's `of` micro-batches."""

    epoch: int
    batches: int
    of: int

    @property
    def total(self) -> int:
        """Micro-batches read since the start."""
        return self.epoch * self.of + self.batches


class ResumableSampler(DistributedSampler[Any]):
    """An epoch's rows for this rank; the first pass leaves out the `read` ones that an earlier attempt has read.

    Of the n rows, row + n stands for one that fills up the epoch, see `FilledRows`: it was handed out before.
    """

    read = 0

    def __iter__(self) -> Iterator[Any]:
        read, self.read = self.read, 0
        rows = len(self.dataset)  # type: ignore[arg-type]
        marked = (
            row + rows * (at * self.num_replicas + self.rank >= rows) for at, row in enumerate(super().__iter__())
        )
        return islice(marked, read, None)


class FilledRows(Dataset[Any]):
    """n training rows, and behind them the same ones with nothing to be taught.

    With the latter ranks read equally many where n doesn't divide by their number; no loss or count sees them.
    """

    def __init__(self, rows: Sequence[Example] | Packs) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example | Pack:
        if index < len(self.rows):
            return self.rows[index]
        row = self.rows[index - len(self.rows)]
        return tuple(map(_untaught, row)) if isinstance(row, tuple) else _untaught(row)


def _untaught(example: Example) -> Example:
    return replace(example, supervised=(False,) * len(example))


class SFTData(L.LightningDataModule):
    """Training micro-batches with their StepWindow, in an order fixed by `seed` and the epoch."""

    def __init__(
        self,
        rows: Sequence[Example] | Packs,
        pad_id: int,
        *,
        batch_size: int,
        accumulate: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.rows, self.collate = rows, Collate(pad_id)
        self.batch_size, self.accumulate, self.seed = batch_size, accumulate, seed
        self._read = 0

    def resume_at(self, step: int) -> DataPosition:
        """Start behind the rows of `step` optimizer steps: seed and epoch fix the order, so their number says where."""
        epoch_plan = EpochPlan(len(self.rows), self.batch_size, self.accumulate, rank_and_world()[1])
        epoch, inside = divmod(step, epoch_plan.steps)
        position = DataPosition(epoch, inside * self.accumulate, epoch_plan.batches)
        self._read = position.batches * self.batch_size
        return position

    def train_dataloader(self) -> WindowedLoader:
        rank, world = rank_and_world()
        rows = FilledRows(self.rows)
        sampler = ResumableSampler(rows, world, rank, seed=self.seed)
        sampler.read, self._read = self._read, 0
        own = torch.Generator()  # the loader draws a number an epoch, which must not be one of the model's
        loader = DataLoader(rows, batch_size=self.batch_size, sampler=sampler, collate_fn=self.collate, generator=own)
        return WindowedLoader(loader, self.accumulate)
