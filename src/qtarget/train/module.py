"""The LightningModule: policy, frozen references and the Q-target loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from qtarget.data.batch import Batch
from qtarget.math.loss import IGNORE, LossOutput, linear_loss
from qtarget.math.target import Design
from qtarget.model.frozen import FrozenModel
from qtarget.model.policy import Policy
from qtarget.train.metrics import TokenMeans
from qtarget.train.optim import AdamW


class QTargetModule(L.LightningModule):
    """Trains `policy` towards the target of `design`.

    references: role → frozen model. A FrozenModel is no nn.Module, so `train()`, `parameters()`, `state_dict()` and the
    optimizer never see it.
    """

    def __init__(
        self,
        policy: Policy,
        design: Design,
        references: Mapping[str, FrozenModel],
        optim: AdamW,
        *,
        total_steps: int,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.design = design
        self.optim = optim
        self.total_steps = total_steps
        self.chunk_size = chunk_size
        self.references = dict(references)
        self.recent = TokenMeans()
        self.whole_run = TokenMeans()

    def on_fit_start(self) -> None:
        for frozen in self.references.values():
            frozen.to(self.device)
        self.recent.to(self.device)
        self.whole_run.to(self.device)

    def token_loss(self, batch: Batch, token_scale: float = 1.0) -> LossOutput:
        """The design's loss on the supervised tokens of a batch; references run on the same input ids."""
        return linear_loss(
            self.policy(batch.input_ids),
            self.policy.head,
            batch.labels,
            self.design,
            references={role: frozen.reference(batch.input_ids) for role, frozen in self.references.items()},
            columns=batch.columns,
            progress=min(1.0, self.global_step / max(1, self.total_steps)),
            token_scale=token_scale,
            chunk_size=self.chunk_size,
        )

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Σ loss over the micro-batch, scaled by its StepWindow: the optimizer sees the mean over the whole step."""
        assert batch.window is not None
        out = self.token_loss(batch, batch.window.loss_scale)
        wrong = batch.columns["wrong"][batch.labels != IGNORE]
        self.recent.update(out, wrong)
        self.whole_run.update(out, wrong)
        return out.total

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by norm. Lightning's own refuses a fused AdamW, lest fp16's loss scale be clipped; bf16 has none."""
        if gradient_clip_val:
            clip_grad_norm_(self.policy.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> Any:
        return self.optim.configure(self.policy.parameters(), self.total_steps)
