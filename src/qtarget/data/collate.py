"""Examples → a batch. Labels are shifted here, once, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from qtarget.data.batch import Batch
from qtarget.data.example import Example
from qtarget.math.loss import IGNORE

Pack = tuple[Example, ...]
"""Demonstrations that share a row."""


@dataclass(frozen=True)
class Collate:
    """Callable for a DataLoader: a list of examples, or of packs of them → Batch."""

    pad_id: int

    def __call__(self, rows: Sequence[Example] | Sequence[Pack]) -> Batch:
        packs = [row if isinstance(row, tuple) else (row,) for row in rows]
        batch = self._padding(len(packs), max(sum(map(len, pack)) for pack in packs), packs[0][0].columns)
        for row, pack in enumerate(packs):
            start = 0
            for example in pack:
                _write(batch, row, slice(start, start + len(example)), example)
                start += len(example)
        examples = [example for pack in packs for example in pack]
        return replace(
            batch,
            real_tokens=sum(map(len, examples)),
            position_ids=batch.position_ids if rows[0] is packs[0] else None,
            weights=batch.weights if any(example.weights is not None for example in examples) else None,
        )

    def _padding(self, rows: int, width: int, columns: Iterable[str]) -> Batch:
        return Batch(
            input_ids=torch.full((rows, width), self.pad_id),
            labels=torch.full((rows, width), IGNORE),
            columns={name: torch.zeros(rows, width, dtype=torch.bool) for name in columns},
            places=torch.full((rows, width), -1),
            position_ids=torch.arange(width).repeat(rows, 1),
            weights=torch.zeros(rows, width),
        )


def _write(batch: Batch, row: int, at: slice, example: Example) -> None:
    """One demonstration into its part of a row."""
    assert batch.position_ids is not None
    assert batch.weights is not None
    ids, supervised = torch.tensor(example.input_ids), torch.tensor(example.supervised)[1:]
    shifted = slice(at.start, at.stop - 1)
    batch.input_ids[row, at] = ids
    batch.position_ids[row, at] = torch.arange(len(ids))
    batch.labels[row, shifted] = torch.where(supervised, ids[1:], IGNORE)
    batch.places[row, shifted] = torch.where(supervised, example.place + supervised.cumsum(0) - 1, -1)
    weights = torch.ones(len(supervised)) if example.weights is None else torch.tensor(example.weights)[1:].float()
    batch.weights[row, shifted] = torch.where(supervised, weights, 0.0)
    for name, column in batch.columns.items():
        column[row, shifted] = torch.tensor(example.columns[name])[1:]
