"""The LightningModule: policy, frozen references and the Q-target loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from qtarget.data.batch import Batch
from qtarget.math import products
from qtarget.math.loss import IGNORE
from qtarget.math.target import Design
from qtarget.model.frozen import Frozen, check_not_shared
from qtarget.model.policy import Policy
from qtarget.model.sharding import shard
from qtarget.train.detection import NoiseDetection
from qtarget.train.fp32_products import faster_here, matters
from qtarget.train.histograms import TokenHistograms
from qtarget.train.memory import chunk_that_fits
from qtarget.train.metrics import TokenMeans
from qtarget.train.optim import AdamW
from qtarget.train.policy_loss import PolicyLoss, progress_at
from qtarget.train.step import StepNormalizer


class QTargetModule(PolicyLoss, L.LightningModule):
    """Trains `policy` towards the target of `design`.

    references: role → what stands for it. None is an nn.Module, so `train()`, `parameters()`, `state_dict()` and the
    optimizer never see it. Raises QTargetError for one that shares weights with the policy.
    """

    def __init__(
        self,
        policy: Policy,
        design: Design,
        references: Mapping[str, Frozen],
        optim: AdamW,
        *,
        total_steps: int,
        chunk_size: int | None = None,
        compiled: bool = False,
        library: str | None = None,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.design = design
        self.optim = optim
        self.total_steps = total_steps
        self.chunk_size = chunk_size
        self.compiled = compiled
        self.library = library
        self.references = dict(references)
        for role, frozen in self.references.items():
            check_not_shared(role, frozen, policy)
        self.normalizer = StepNormalizer(design, policy, self.token_table, self.token_loss)
        self.recent = TokenMeans()
        self.whole_run = TokenMeans()
        self.recent_detection = NoiseDetection()
        self.whole_detection = NoiseDetection()
        self.histograms = TokenHistograms()

    def configure_model(self) -> None:
        """Lightning calls this once it has a device mesh: only the strategy fsdp2 makes one."""
        if self.device_mesh is not None:
            shard(self.policy, self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        for frozen in self.references.values():
            frozen.to(self.device)
        if self.chunk_size is None:
            trained = sum(tensor.numel() for tensor in self.policy.parameters() if tensor.requires_grad)
            self.chunk_size = chunk_that_fits(self.policy.vocab_size, trained, self.device)
        for measured in self.measured:
            measured.to(self.device)

    def on_train_start(self) -> None:
        if self.trainer.precision == "32-true" and matters(self.policy.head.weight):
            self.library = self.trainer.strategy.broadcast(self.library or faster_here())  # on all ranks that of one
            products.pin(self.library)

    @property
    def measured(self) -> tuple[TokenMeans | NoiseDetection | TokenHistograms, ...]:
        """What looks at every token trained on: since the last line of the log or evaluation, and in the whole run."""
        return self.recent, self.whole_run, self.recent_detection, self.whole_detection, self.histograms

    def progress_at(self, step: int) -> float:
        """Training progress in [0, 1] of optimizer step `step`: 0 at the first, 1 at the last."""
        return progress_at(step, self.total_steps)

    def progress(self) -> float:
        return self.progress_at(self.global_step)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Σ_t s_t·loss_t of the micro-batch, s_t so that the step's loss is divided once, see `StepNormalizer`."""
        self.renew_snapshots(self.global_step)
        scale = self.normalizer.for_batch(batch)
        out = self.token_loss(batch, scale.scope_values, scale.token_scale)
        wrong = batch.columns["wrong"][batch.labels != IGNORE]
        for measured in self.measured:
            measured.update(out, wrong)
        return out.total

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by norm. Lightning's own refuses a fused AdamW, lest fp16's loss scale be clipped; bf16 has none."""
        if gradient_clip_val:
            clip_grad_norm_(self.policy.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> Any:
        return self.optim.configure(self.policy.parameters(), self.total_steps)
