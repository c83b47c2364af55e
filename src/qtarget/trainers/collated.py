"""What a collator of transformers or TRL hands a Trainer → `Batch`: labels shifted, padding on the right, no mask."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qtarget.data.batch import Batch, step_window
from qtarget.errors import QTargetError
from qtarget.math.loss import IGNORE
from qtarget.parallel import rank_and_world

READ = {"input_ids", "labels", "attention_mask", "position_ids"}
IMPLIED = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "use_cache", "token_type_ids"}
"""Keys that say no more than those that are read: where documents begin, and that all of it is text."""


def windowed(samples: Sequence[Mapping[str, Any]], columns: Collection[str], device: torch.device) -> list[Batch]:
    """The micro-batches of one optimizer step on this rank, with their `StepWindow`. Collective."""
    _, world = rank_and_world()
    batches = [batch_of(sample, columns).to(device) for sample in samples]
    window = step_window(batches, world, device)
    return [replace(batch, window=replace(window, index=index)) for index, batch in enumerate(batches)]


def batch_of(inputs: Mapping[str, Any], columns: Collection[str] = ()) -> Batch:
    """input_ids, labels [B, T], not yet shifted; attention_mask [B, T] and position_ids [B, T] where there are any.

    Rows are moved to the left, so that masked positions stand behind and need no mask: attention is causal. Where
    position_ids don't count on, another document begins, whose first token is nobody's label. columns: names of further
    keys [B, T], aligned with labels. Raises QTargetError for keys that a policy of text wouldn't read, and for shapes
    that differ.
    """
    _check_keys(inputs, columns)
    held = {name: inputs[name] for name in (*columns, "input_ids", "labels")}
    if (positions := inputs.get("position_ids")) is not None:
        held["position_ids"] = positions
    mask = inputs.get("attention_mask")
    real = torch.ones_like(held["labels"], dtype=torch.bool) if mask is None else mask.bool()
    _check_shapes({**held, "attention_mask": real})
    if mask is not None:
        order = (~real).to(torch.int8).argsort(dim=1, stable=True)
        held = {name: value.gather(1, order) for name, value in held.items()}
        real = real.gather(1, order)
    begins = _begins(held.get("position_ids"), real)
    labels = held["labels"].masked_fill(~real, IGNORE)
    if begins is not None:
        labels = labels.masked_fill(begins, IGNORE)
    return Batch(
        input_ids=held["input_ids"],
        labels=_shifted(labels, IGNORE),
        columns={name: _shifted(held[name], 0) for name in columns},
        label_indices=torch.full_like(labels, -1),
        position_ids=None if begins is None else _positions(begins),
    )


def _check_keys(inputs: Mapping[str, Any], columns: Collection[str]) -> None:
    if missing := [name for name in ("input_ids", "labels", *columns) if name not in inputs]:
        raise QTargetError(
            f"the batch has no {' and no '.join(missing)}: give a data_collator that makes them, [B, T] each; its keys "
            f"are {', '.join(inputs)}"
        )
    unread = sorted(set(inputs) - READ - IMPLIED - set(columns))
    if unread:
        raise QTargetError(
            f"the batch has {', '.join(unread)}, which a policy of text doesn't read: leave it out of the data set or "
            "of what the data_collator returns (images, embeddings and encoder inputs can't be trained on here)"
        )


def _check_shapes(held: Mapping[str, Tensor]) -> None:
    shape = held["input_ids"].shape
    for name, value in held.items():
        if value.ndim != 2 or value.shape != shape:
            raise QTargetError(f"{name} {tuple(value.shape)} must be [B, T] like input_ids {tuple(shape)}")


def _begins(positions: Tensor | None, real: Tensor) -> Tensor | None:
    """[B, T]: where a document begins; None where every row is one."""
    if positions is None:
        return None
    begins = torch.ones_like(real)
    begins[:, 1:] = (positions[:, 1:] != positions[:, :-1] + 1) & real[:, 1:]
    return begins if bool(begins[:, 1:].any()) else None


def _positions(begins: Tensor) -> Tensor:
    """[B, T]: how many tokens of its own document stand before a position."""
    places = torch.arange(begins.shape[1], device=begins.device).expand(begins.shape)
    return places - torch.where(begins, places, 0).cummax(dim=1).values


def _shifted(values: Tensor, fill: int) -> Tensor:
    """What belongs to the next token."""
    last = torch.full_like(values[:, :1], fill)
    return torch.cat([values[:, 1:], last], dim=1)
