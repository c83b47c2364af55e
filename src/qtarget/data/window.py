"""Micro-batches that know the optimizer step they belong to before its first backward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from itertools import islice

import torch

from qtarget.data.batch import Batch, StepWindow
from qtarget.data.ranks import rank_and_world, summed


@dataclass(frozen=True)
class WindowedLoader:
    """Wraps a loader: reads the micro-batches of a coming optimizer step, then hands them out with their StepWindow."""

    loader: Iterable[Batch]
    accumulate: int = 1

    @property
    def sampler(self) -> object:
        """Lightning looks for it here, to tell it the epoch."""
        return getattr(self.loader, "sampler", None)

    def __len__(self) -> int:
        assert isinstance(self.loader, Sized)
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while micro_batches := list(islice(batches, self.accumulate)):
            window = self._window(micro_batches)
            for index, batch in enumerate(micro_batches):
                yield replace(batch, window=replace(window, index=index))

    def _window(self, micro_batches: list[Batch]) -> StepWindow:
        counts = torch.tensor([(batch.supervised, batch.sequences) for batch in micro_batches]).sum(0)
        _, world = rank_and_world()
        tokens, sequences = summed(counts).tolist()
        return StepWindow(tokens, sequences, self.accumulate * world, tuple(micro_batches))
