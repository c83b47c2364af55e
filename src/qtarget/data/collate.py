"""Examples → a batch. Labels are shifted here, once, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qtarget.data.example import Example
from qtarget.data.window import StepWindow
from qtarget.math.loss import IGNORE


@dataclass(frozen=True)
class Batch:
    """B rows padded on the right to T positions.

    input_ids [B, T] int64; labels [B, T] int64, labels[b, t] is the token after input_ids[b, t] where that is
    supervised and −100 elsewhere; columns: name → [B, T], aligned with labels; window: the optimizer step this
    micro-batch belongs to (None outside training). No attention mask: padding stands after every real token and
    attention is causal, so nothing real ever sees it.
    """

    input_ids: Tensor
    labels: Tensor
    columns: Mapping[str, Tensor]
    window: StepWindow | None = None
    real_tokens: int = 0

    @property
    def supervised(self) -> int:
        return int((self.labels != IGNORE).sum())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        columns = {name: move(column) for name, column in self.columns.items()}
        return replace(self, input_ids=move(self.input_ids), labels=move(self.labels), columns=columns)


@dataclass(frozen=True)
class Collate:
    """Callable for a DataLoader: a list of examples → Batch."""

    pad_id: int

    def __call__(self, examples: Sequence[Example]) -> Batch:
        width = max(len(example) for example in examples)
        input_ids = torch.full((len(examples), width), self.pad_id)
        labels = torch.full((len(examples), width), IGNORE)
        wrong = torch.zeros(len(examples), width, dtype=torch.bool)
        for row, example in enumerate(examples):
            ids = torch.tensor(example.input_ids)
            input_ids[row, : len(ids)] = ids
            labels[row, : len(ids) - 1] = torch.where(torch.tensor(example.supervised), ids, IGNORE)[1:]
            wrong[row, : len(ids) - 1] = torch.tensor(example.wrong)[1:]
        return Batch(input_ids, labels, {"wrong": wrong}, real_tokens=sum(len(example) for example in examples))
