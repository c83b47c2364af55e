"""The design's loss of a policy on a batch, with its references: the same under Lightning and under a Trainer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from qtarget.data.batch import Batch
from qtarget.math.loss import LossOutput, linear_loss, survey
from qtarget.math.scope_statistics import TokenTable
from qtarget.math.target import Design, wants_negatives
from qtarget.math.tokens import EarlierTokens, Given
from qtarget.model.frozen import Frozen, Snapshot
from qtarget.model.policy import Policy


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

    def progress(self) -> float:
        """Training progress in [0, 1]."""
        raise NotImplementedError

    def token_loss(
        self,
        batch: Batch,
        statistics: Mapping[object, Tensor] | None = None,
        token_scale: Tensor | float = 1.0,
        *,
        compiled: bool | None = None,
    ) -> LossOutput:
        """The design's loss on the supervised tokens of a batch; references run on the same input ids.

        compiled: `self.compiled` where it is None.
        """
        given: Given = {**self._beside(batch), "statistics": statistics, "token_scale": token_scale}
        hidden = self.policy(batch.input_ids, batch.position_ids)
        return linear_loss(
            hidden,
            self.policy.head,
            batch.labels,
            self.design,
            chunk_size=self.chunk_size,
            compiled=self.compiled if compiled is None else compiled,
            **given,
        )

    def survey(self, batch: Batch) -> TokenTable:
        """What statistics of the design are made of, for the supervised tokens of a batch."""
        hidden, given = self.policy(batch.input_ids, batch.position_ids), self._beside(batch)
        return survey(hidden, self.policy.head, batch.labels, self.design, chunk_size=self.chunk_size, **given)

    def renew_snapshots(self, step: int) -> None:
        """Copy the policy into the snapshots of it that are due after `step` optimizer steps."""
        for frozen in self.references.values():
            if isinstance(frozen, Snapshot):
                frozen.renew(self.policy, step)

    def _beside(self, batch: Batch) -> Given:
        """What stands beside the labels."""
        return {
            "references": {role: frozen.reference(batch) for role, frozen in self.references.items()},
            "columns": batch.columns,
            "sequence_ids": batch.sequence_ids,
            "negatives": self._negatives(batch) if wants_negatives(self.design) else None,
            "progress": self.progress(),
        }

    @staticmethod
    def _negatives(batch: Batch) -> EarlierTokens:
        return EarlierTokens.of(batch.input_ids, batch.position_ids)
