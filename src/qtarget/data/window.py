"""Micro-batches that know the optimizer step they belong to before its first backward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from itertools import islice

import torch
import torch.distributed as dist

from qtarget.data.batch import Batch, StepWindow


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
            yield from (replace(batch, window=window) for batch in micro_batches)

    def _window(self, micro_batches: list[Batch]) -> StepWindow:
        tokens, world = sum(batch.supervised for batch in micro_batches), 1
        if dist.is_available() and dist.is_initialized():
            count = torch.tensor(tokens)
            dist.all_reduce(count)
            tokens, world = int(count), dist.get_world_size()
        return StepWindow(tokens, self.accumulate * world / max(tokens, 1))
