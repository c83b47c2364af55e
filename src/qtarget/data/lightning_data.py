"""Prepared demonstrations as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from qtarget.data.batch import Batch, Collate, WindowedLoader
from qtarget.data.epochs import EpochPlan
from qtarget.data.example import Example
from qtarget.data.packing import Pack, Packs
from qtarget.data.stream import Stream, StreamPlace
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

    def saved(self, step: int) -> dict[str, Any]:
        """What a state after `step` optimizer steps has to hold: nothing."""
        return {}

    def resume_at(self, step: int, saved: Mapping[str, Any] | None = None) -> DataPosition:
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


STREAM = "stream"
"""The key of its place in a saved state."""


class StreamedData(L.LightningDataModule):
    """Training micro-batches of a stream with their StepWindow, for `steps` optimizer steps, each of as many rows.

    Every rank reads all rows, and trains on every world-th: what a step reads is the same for every number of ranks.
    """

    def __init__(self, stream: Stream, pad_id: int, *, batch_size: int, accumulate: int, steps: int) -> None:
        super().__init__()
        self.stream, self.collate = stream, Collate(pad_id)
        self.batch_size, self.accumulate, self.steps = batch_size, accumulate, steps
        self._begun = 0
        self._places = {0: stream.start}

    def place(self, step: int) -> StreamPlace:
        """Behind the rows of `step` optimizer steps: the last one, or the one before."""
        return self._places[step]

    def saved(self, step: int) -> dict[str, Any]:
        """What a state after `step` optimizer steps has to hold."""
        return {STREAM: asdict(self.place(step))}

    def resume_at(self, step: int, saved: Mapping[str, Any]) -> DataPosition:
        """Start behind the rows of `step` optimizer steps. saved: what the state holds."""
        self._begun, self._places = step, {step: StreamPlace(**saved[STREAM])}
        return DataPosition(0, step * self.accumulate, len(self))

    def train_dataloader(self) -> WindowedLoader:
        return WindowedLoader(self, self.accumulate)

    def __len__(self) -> int:
        """Micro-batches of this rank in the whole run."""
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        rank, world = rank_and_world()
        examples = self.stream.examples(self.place(self._begun))
        for step in range(self._begun, self.steps):
            read = list(islice(examples, self.batch_size * self.accumulate * world))
            self._places = {step: self.place(step), step + 1: read[-1][1]}
            own = [example for example, _ in read[rank::world]]
            yield from (self.collate(own[at : at + self.batch_size]) for at in range(0, len(own), self.batch_size))


RunData = SFTData | StreamedData
