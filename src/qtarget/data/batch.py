"""A micro-batch, and the optimizer step it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qtarget.math.loss import IGNORE


@dataclass(frozen=True)
class StepWindow:
    """tokens, sequences: supervised tokens, and rows that have some, of the whole optimizer step over all ranks.

    undo: what a micro-batch's loss is multiplied by before it is divided once, globally. Lightning divides every
    micro-batch's loss by `accumulate` and DDP averages gradients over `world` ranks; undo = accumulate·world.
    batches: the step's micro-batches on this rank, of which this is number `index`.
    """

    tokens: int
    sequences: int
    undo: int
    batches: tuple[Batch, ...] = ()
    index: int = 0

    @property
    def loss_scale(self) -> float:
        """What one token's loss is multiplied by so that the optimizer sees Σ loss / tokens."""
        return self.undo / max(self.tokens, 1)


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

    @property
    def sequences(self) -> int:
        """Rows with a supervised token."""
        return int((self.labels != IGNORE).any(-1).sum())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        columns = {name: move(column) for name, column in self.columns.items()}
        return replace(self, input_ids=move(self.input_ids), labels=move(self.labels), columns=columns)
