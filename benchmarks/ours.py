"""Part (c)'s contenders that are no rival's trainer: `qtarget train`, and the loop one would write by hand."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import timing
import torch
from ground import CLIP, LR, Clock, Contender, Ground
from steps import autocast, device
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from qtarget.data.batch import Batch
from qtarget.math.loss import IGNORE
from qtarget.run import build
from qtarget.run.plan import Plan


class StepClock(L.Callback):
    """Times optimizer steps from the batch at hand to the weights updated."""

    def __init__(self) -> None:
        self.clock, self._lap = Clock(), timing.Lap()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self.clock.supervised.add(batch.supervised)
        self._lap.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.clock.seconds.append(self._lap.stop())


def qtarget(*overrides: str) -> Contender:
    """`qtarget train` of these overrides, without its record and evaluation."""

    def train(where: Ground, steps: int) -> Clock:
        plan, callback = where.plan(*overrides), StepClock()
        module = build.module(plan, *build.load_models(plan))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            _trainer(plan, steps, callback).fit(module, datamodule=build.data(plan))
        return callback.clock

    return train


def _trainer(plan: Plan, steps: int, callback: L.Callback) -> L.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False)
    chosen = plan.cfg.trainer
    return L.Trainer(
        accelerator=chosen.accelerator,
        devices=chosen.devices,
        precision=chosen.precision,
        gradient_clip_val=chosen.clip,
        max_steps=steps,
        max_epochs=-1,
        callbacks=[callback],
        use_distributed_sampler=False,
        **quiet,
    )


def plain(where: Ground, steps: int) -> Clock:
    """Head on the supervised tokens only, torch's cross-entropy, autocast, fused AdamW."""
    model, batch = where.load(), where.batch.to(device())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    taken = [timing.seconds(lambda: plain_step(model, optimizer, batch)) for _ in range(steps)]
    return Clock(taken, {batch.supervised})


def plain_step(model: Any, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    kept = batch.labels != IGNORE
    with autocast():
        hidden = model.get_decoder()(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[kept])
        loss = F.cross_entropy(logits.float(), batch.labels[kept])
    loss.backward()
    clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()
