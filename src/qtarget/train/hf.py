"""A target design for transformers' Trainer, TRL's included: what `compute_loss_func` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qtarget.errors import QTargetError
from qtarget.math.loss import IGNORE, dense_loss
from qtarget.math.schedule import scheduled
from qtarget.math.target import Design, columns, counted, needs, wants_negatives
from qtarget.train.step import PULLED, normalizer, scoring_passes


@dataclass(frozen=True)
class HFLoss:
    """(model outputs, labels [B, T] not yet shifted, num_items_in_batch) → scalar: see `hf_loss`."""

    design: Design
    true_vocab: int | None = None
    progress: Callable[[], float] | None = None

    def __post_init__(self) -> None:
        if normalizer(self.design) == "sequences":
            raise QTargetError("hf_loss divides by tokens, kept or weight_sum; normalize=sequences is not among them")
        wanted = [*needs(self.design), *columns(self.design), *["negatives"] * wants_negatives(self.design)]
        if wanted:
            raise QTargetError(
                f"compute_loss_func sees logits and labels only, and this design looks at {', '.join(wanted)} too: "
                "call qtarget.dense_loss in a compute_loss of your own, or train with `qtarget train`"
            )
        if self.progress is None and any(scheduled(self.design, 0.0)):
            raise QTargetError(
                "this design follows training progress: give hf_loss(…, progress=lambda: share of the training done)"
            )

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
        shifted = labels[..., 1:]
        tokens = int((shifted != IGNORE).sum())
        items = tokens if num_items_in_batch is None else int(num_items_in_batch)
        if items != tokens and scoring_passes(self.design):
            raise QTargetError(
                f"this design looks at the whole optimizer step, and this call holds {tokens} of its {items} tokens: "
                "set gradient_accumulation_steps=1 on one device, or train with `qtarget train`"
            )
        progress = self.progress() if self.progress else None
        out = dense_loss(logits[..., :-1, : self.true_vocab], shifted, self.design, progress=progress)
        pulled = normalizer(self.design) in PULLED
        divisor = float(counted(out.mass, normalizer(self.design))) if pulled else items
        return out.total / max(divisor, 1e-30)


def hf_loss(design: Design, *, true_vocab: int | None = None, progress: Callable[[], float] | None = None) -> HFLoss:
    """A loss for `Trainer(compute_loss_func=…)`: Σ loss over the supervised tokens, divided as the design says.

    The Trainer hands over the number of items of the whole accumulated step, so any gradient_accumulation_steps gives
    the same gradient. true_vocab: logits from there on belong to padded vocabulary rows and are cut off. progress: the
    share of training done, for designs with schedules.
    Raises QTargetError for designs that look at more than logits and labels, for normalize=sequences, and, when called,
    for designs that look at the whole step while the call holds a part of it.
    """
    return HFLoss(design, true_vocab, progress)
