"""A frozen model that reads rows with a hint in front, scored on the demonstration's tokens: self-distillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from qtarget.errors import QTargetError
from qtarget.math.reference import Reference
from qtarget.math.tokens import IGNORE
from qtarget.model.cache import CachedRow
from qtarget.model.frozen import FrozenModel, Inputs
from qtarget.model.policy import Policy


class Privileged(FrozenModel):
    """π(y_t | hint, x, y_<t): the model's distribution at the supervised tokens, read from rows of its own.

    rows: the training examples in their order, each with a hint in its prompt and the labels that it has without; a
    batch's label_indices say which of them it holds. collate: rows → a batch.
    """

    def __init__(
        self,
        policy: Policy,
        rows: Sequence[CachedRow],
        collate: Callable[[Any], Any],
        topk: int | None = None,
        tail: str = "bucket",
    ) -> None:
        super().__init__(policy, topk, tail)
        self.rows, self.collate = [row for row in rows if row.labels], collate
        self._starts = torch.tensor([row.first_label for row in self.rows])

    @torch.no_grad()
    def exact(self, batch: Inputs) -> Reference:
        """Its distribution at the supervised positions of a batch, in their order.

        Raises QTargetError for a batch of other rows than those it was made for.
        """
        supervised = batch.labels != IGNORE
        wanted = batch.label_indices[supervised].cpu()
        numbers = (torch.searchsorted(self._starts, wanted, right=True) - 1).unique().tolist()
        # a sharded model is gathered by all ranks, whether they have something to read or not
        hinted = self.collate([self.rows[number] for number in numbers or [0]]).to(batch.input_ids.device)
        kept = hinted.labels != IGNORE
        place = torch.searchsorted(hinted.label_indices[kept].cpu(), wanted).to(kept.device)
        if not torch.equal(hinted.labels[kept][place], batch.labels[supervised]):
            raise QTargetError("a privileged reference reads the training rows that it has hints for, and no others")
        hidden = self.policy(hinted.input_ids, hinted.position_ids, hinted.lengths)[kept]
        return Reference.hidden(hidden[place], self.policy.head).of_supervised()
