"""A target design for transformers' Trainer, TRL's included: what `compute_loss_func` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qtarget import checks
from qtarget.errors import QTargetError
from qtarget.math.loss import IGNORE, LossOutput, dense_loss
from qtarget.math.schedule import scheduled
from qtarget.math.scope_values import UnknownSequencesError, scoped_parts
from qtarget.math.target import Design, columns, divisor_part, needs, wants_negatives
from qtarget.train.step import NEED_A_FORWARD, extra_forward_passes, normalizer

SEQUENCES = ("auto", "rows")
"""What a row of labels holds: one sequence where that can be seen, or one for certain."""


@dataclass(frozen=True)
class HFLoss:
    """(model outputs, labels [B, T] not yet shifted, num_items_in_batch) → scalar: see `hf_loss`.

    position_ids or sequence_ids [B, T]: of a flattened or packed batch, where its sequences begin.
    """

    design: Design
    true_vocab: int | None = None
    progress: Callable[[], float] | None = None
    sequences: str = "auto"

    def __post_init__(self) -> None:
        checks.choice("sequences", self.sequences, SEQUENCES)
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

    def __call__(
        self,
        outputs: Any,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
        *,
        position_ids: Tensor | None = None,
        sequence_ids: Tensor | None = None,
    ) -> Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
        shifted = labels[..., 1:]
        tokens = int((shifted != IGNORE).sum())
        items = tokens if num_items_in_batch is None else int(num_items_in_batch)
        if items != tokens and extra_forward_passes(self.design):
            raise QTargetError(
                f"this design looks at the whole optimizer step, and this call holds {tokens} of its {items} tokens: "
                "set gradient_accumulation_steps=1 on one device, or train with `qtarget train`"
            )
        ids = self._sequence_ids(labels, position_ids, sequence_ids) if scoped_parts(self.design) else None
        out = self._loss(logits[..., :-1, : self.true_vocab], shifted, ids)
        by_mass = normalizer(self.design) in NEED_A_FORWARD
        divisor = float(divisor_part(out.mass, normalizer(self.design))) if by_mass else items
        return out.total / max(divisor, 1e-30)

    def _sequence_ids(self, labels: Tensor, position_ids: Tensor | None, sequence_ids: Tensor | None) -> Tensor | None:
        """[B, T]: which sequence a position belongs to; None where that can't be told."""
        for name, ids in (("position_ids", position_ids), ("sequence_ids", sequence_ids)):
            if ids is not None and ids.shape != labels.shape:
                raise QTargetError(f"{name} {tuple(ids.shape)} must have the shape of the labels {tuple(labels.shape)}")
        if sequence_ids is not None:
            return numbered(sequence_ids[:, 1:] != sequence_ids[:, :-1])
        if position_ids is not None:
            return numbered(position_ids[:, 1:] != position_ids[:, :-1] + 1)
        if self.sequences == "auto" and pieces(labels[..., 1:] != IGNORE) > 1:
            return None
        return numbered(torch.zeros_like(labels[:, 1:], dtype=torch.bool))

    def _loss(self, logits: Tensor, labels: Tensor, sequence_ids: Tensor | None) -> LossOutput:
        progress = self.progress() if self.progress else None
        if sequence_ids is not None:
            ids = sequence_ids[:, :-1]
            return dense_loss(logits, labels, self.design, progress=progress, sequence_ids=ids)
        try:
            return dense_loss(logits.flatten(0, -2), labels.flatten(), self.design, progress=progress)
        except UnknownSequencesError:
            raise QTargetError(
                "this design looks at whole sequences, and a row holds several stretches of supervised tokens: turns "
                "of one conversation, or documents that a collator put into one row (DataCollatorWithFlattening, "
                "padding_free, packing), which compute_loss_func can't tell apart. If each row is one sequence, say "
                'hf_loss(…, sequences="rows"); if not, call loss(outputs, labels, num_items_in_batch, '
                "position_ids=inputs['position_ids']) in a compute_loss of your own, or use a collator that pads"
            ) from None


def numbered(begins: Tensor) -> Tensor:
    """[B, T] numbers of sequences, from where another one begins within a row [B, T − 1]; each row begins one."""
    first = begins.new_ones(begins.shape[0], 1)
    return torch.cat([first, begins], dim=1).flatten().cumsum(0).view(begins.shape[0], -1) - 1


def pieces(supervised: Tensor) -> int:
    """The most stretches of supervised tokens [B, T] in a row.

    One means one sequence: collators that put several into a row leave the first token of each unsupervised
    (transformers 5.23's DataCollatorWithFlattening, TRL 1.16's padding_free).
    """
    begins = supervised[..., 1:] & ~supervised[..., :-1]
    return int((begins.sum(-1) + supervised[..., 0]).max()) if supervised.numel() else 0


def hf_loss(
    design: Design,
    *,
    true_vocab: int | None = None,
    progress: Callable[[], float] | None = None,
    sequences: str = "auto",
) -> HFLoss:
    """A loss for transformers' Trainer: Σ loss over the supervised tokens, divided as the design says.

        Trainer(model, args, compute_loss_func=hf_loss(load_design("dft")), …)

    The Trainer passes the number of items of the whole accumulated step, so that every gradient_accumulation_steps
    gives the same gradient.

    true_vocab: logits from there on belong to padded vocabulary rows and are cut off.
    progress: returns the fraction of training that is done, for designs with schedules.
    sequences: for designs that look at whole sequences (talr). The Trainer passes no position_ids. "auto" takes a row
    for one sequence where its supervised tokens stand in one piece, and refuses it otherwise. "rows": each row is one.
    In a compute_loss of your own, call loss(outputs, labels, num_items_in_batch, position_ids=…) or
    (…, sequence_ids=…), each [B, T].

    Raises QTargetError for designs that read more than logits and labels, and for normalize=sequences. When called, for
    designs that look at the whole step where the call holds a part of it, or at sequences that it can't tell apart.
    """
    return HFLoss(design, true_vocab, progress, sequences)
