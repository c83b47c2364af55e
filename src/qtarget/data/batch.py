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


@dataclass(frozen=True, eq=False)
class Batch:
    """B rows padded on the right to T positions.

    input_ids [B, T] int64; labels [B, T] int64, labels[b, t] is the token after input_ids[b, t] where that is
    supervised and −100 elsewhere; columns: name → [B, T], aligned with labels; places [B, T]: which of the data set's
    supervised tokens a label is, from 0 (−1 where there is none); position_ids [B, T] where several demonstrations
    share a row: each counts its own from 0; weights [B, T] fp32, aligned with labels: what the data multiplies a
    token's loss by, above 0 where it is supervised and 0 elsewhere (None: 1 for all); window: the optimizer step this
    micro-batch belongs to (None outside training). No attention mask: padding stands after every real token and
    attention is causal, so nothing real ever sees it; and in packed rows a mask would hide from transformers where the
    demonstrations begin.
    """

    input_ids: Tensor
    labels: Tensor
    columns: Mapping[str, Tensor]
    places: Tensor
    position_ids: Tensor | None = None
    weights: Tensor | None = None
    window: StepWindow | None = None
    real_tokens: int = 0

    @property
    def supervised(self) -> int:
        return int((self.labels != IGNORE).sum())

    @property
    def data_weights(self) -> Tensor | float:
        """Those of the supervised tokens [N], in the order of their positions; 1.0 where the data says nothing."""
        return 1.0 if self.weights is None else self.weights[self.labels != IGNORE]

    @property
    def sequence_ids(self) -> Tensor:
        """[B, T]: which demonstration of the batch a position belongs to, from 0; padding may be one of its own."""
        if self.position_ids is None:
            rows, width = self.labels.shape
            return torch.arange(rows, device=self.labels.device)[:, None].expand(rows, width)
        return ((self.position_ids == 0).flatten().cumsum(0) - 1).view_as(self.labels)

    @property
    def sequences(self) -> int:
        """Demonstrations with a supervised token."""
        return len(self.sequence_ids[self.labels != IGNORE].unique())

    @property
    def sequence_lengths(self) -> Tensor:
        """[B, T]: how many supervised tokens the demonstration of a position has."""
        ids = self.sequence_ids
        counts = torch.bincount(ids[self.labels != IGNORE], minlength=int(ids.max()) + 1)
        return counts[ids]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        columns = {name: move(column) for name, column in self.columns.items()}
        return replace(
            self,
            input_ids=move(self.input_ids),
            labels=move(self.labels),
            columns=columns,
            places=move(self.places),
            position_ids=None if self.position_ids is None else move(self.position_ids),
            weights=None if self.weights is None else move(self.weights),
        )
