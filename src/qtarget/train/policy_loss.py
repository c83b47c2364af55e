"""The design's loss of a policy on a batch, with its references: the same under Lightning and under a Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qtarget.data.batch import Batch
from qtarget.math.loss import LossOutput, linear_loss, token_table
from qtarget.math.scope_values import TokenTable
from qtarget.math.scoring import Block, keeping_first_block
from qtarget.math.target import Design, wants_negatives
from qtarget.math.tokens import EarlierTokens, LossInputs
from qtarget.measures import Measure
from qtarget.model.frozen import Frozen, Snapshot
from qtarget.model.policy import Policy, evaluating

UNREAD = ("kl_to_target",)
"""Measures that no log, table or page takes from a run."""


def progress_at(step: int, steps: int) -> float:
    """Training progress in [0, 1] of optimizer step `step` of `steps`: 0 at the first, 1 at the last."""
    return min(1.0, step / max(1, steps - 1))


class PolicyLoss:
    """What is needed for it, as attributes of whoever inherits; `progress` says how far training is.

    references: role → what stands for it. chunk_size: tokens that go through the head at once. compiled: what a design
    makes of a chunk goes through torch.compile.
    """

    policy: Policy
    design: Design
    references: dict[str, Frozen]
    chunk_size: int | None
    compiled: bool
    measures: Sequence[Measure] = ()
    """Read of every token beside the usual ones."""

    def progress(self) -> float:
        """Training progress in [0, 1]."""
        raise NotImplementedError

    def token_loss(
        self,
        batch: Batch,
        scope_values: Mapping[object, Tensor] | None = None,
        token_scale: Tensor | float = 1.0,
        *,
        compiled: bool | None = None,
    ) -> LossOutput:
        """The design's loss on the supervised tokens of a batch; references run on the same input ids.

        compiled: `self.compiled` where it is None.
        """
        given: LossInputs = {**self._loss_inputs(batch), "scope_values": scope_values, "token_scale": token_scale}
        hidden = self.policy(batch.input_ids, batch.position_ids, batch.lengths)
        return self._loss_of(hidden, batch.labels, given, compiled=self.compiled if compiled is None else compiled)

    def first_block(self, batch: Batch) -> Block | None:
        """The first tokens of a batch as its loss scores them in training; None where the batch has none.

        Draws no random number and leaves no gradient. Collective where weights are sharded.
        """
        with evaluating(self.policy), keeping_first_block() as kept:
            given = self._loss_inputs(batch)
            with torch.no_grad():
                hidden = self.policy(batch.input_ids, batch.position_ids, batch.lengths)
            self._loss_of(hidden.requires_grad_(), batch.labels, given, compiled=False)
        return kept[0] if kept else None

    def _loss_of(self, hidden: Tensor, labels: Tensor, given: LossInputs, *, compiled: bool) -> LossOutput:
        return linear_loss(
            hidden,
            self.policy.head,
            labels,
            self.design,
            chunk_size=self.chunk_size,
            compiled=compiled,
            measures=self.measures,
            unmeasured=UNREAD,
            **given,
        )

    def token_table(self, batch: Batch) -> TokenTable:
        """What scope values of the design are made of, for the supervised tokens of a batch."""
        hidden = self.policy(batch.input_ids, batch.position_ids, batch.lengths)
        given = self._loss_inputs(batch)
        return token_table(hidden, self.policy.head, batch.labels, self.design, chunk_size=self.chunk_size, **given)

    def renew_snapshots(self, step: int) -> None:
        """Copy the policy into the snapshots of it that are due after `step` optimizer steps."""
        for frozen in self.references.values():
            if isinstance(frozen, Snapshot):
                frozen.renew(self.policy, step)

    def _loss_inputs(self, batch: Batch) -> LossInputs:
        """What the design reads beside the labels."""
        negatives = EarlierTokens.of(batch.input_ids, batch.position_ids) if wants_negatives(self.design) else None
        return {
            "references": {role: frozen.reference(batch) for role, frozen in self.references.items()},
            "columns": batch.columns,
            "sequence_ids": batch.sequence_ids,
            "negatives": negatives,
            "progress": self.progress(),
        }
