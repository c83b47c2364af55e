"""Examples → a batch. Labels are shifted here, once, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qtarget.data.batch import Batch
from qtarget.data.example import Example
from qtarget.math.loss import IGNORE


@dataclass(frozen=True)
class Collate:
    """Callable for a DataLoader: a list of examples → Batch."""

    pad_id: int

    def __call__(self, examples: Sequence[Example]) -> Batch:
        width = max(len(example) for example in examples)
        input_ids = torch.full((len(examples), width), self.pad_id)
        labels = torch.full((len(examples), width), IGNORE)
        columns = {name: torch.zeros(len(examples), width, dtype=torch.bool) for name in examples[0].columns}
        for row, example in enumerate(examples):
            ids = torch.tensor(example.input_ids)
            input_ids[row, : len(ids)] = ids
            labels[row, : len(ids) - 1] = torch.where(torch.tensor(example.supervised), ids, IGNORE)[1:]
            for name, column in columns.items():
                column[row, : len(ids) - 1] = torch.tensor(example.columns[name])[1:]
        return Batch(input_ids, labels, columns, real_tokens=sum(len(example) for example in examples))
