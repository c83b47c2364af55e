"""The supervised tokens of a call, and everything that goes with them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TypedDict

import torch
from torch import Tensor

from qtarget import checks
from qtarget.choices import ROLES
from qtarget.errors import QTargetError
from qtarget.math import legal
from qtarget.math.legal import IGNORE
from qtarget.math.reference import Reference
from qtarget.math.scope_values import TokenTable
from qtarget.math.view import TokenView

__all__ = ["CHUNK_BYTES", "IGNORE", "ROLES", "EarlierTokens", "LossInputs", "Tokens", "default_chunk", "slices"]

CHUNK_BYTES = 2**27
BLOCK_BYTES = 2**22
"""Default size of one fp32 chunk × vocabulary tensor: so many tokens go through the head in one matrix product."""


class LossInputs(TypedDict, total=False):
    """What the losses take beside the labels, see `qtarget.dense_loss`."""

    references: Mapping[str, Reference] | None
    columns: Mapping[str, Tensor] | None
    sequence_ids: Tensor | None
    negatives: Tensor | EarlierTokens | None
    progress: float | None
    scope_values: Mapping[object, Tensor] | None
    statistics: Mapping[object, Tensor] | None  # the earlier name of scope_values
    token_scale: Tensor | float


@dataclass(frozen=True)
class EarlierTokens:
    """As negatives: at each position of [B, T] rows the tokens up to it, written out chunk by chunk (never B·T·T)."""

    input_ids: Tensor  # [B, T]
    positions: Tensor  # [N] among all B·T, flattened
    depth: Tensor  # [N] how many tokens of its own document stand before it

    @classmethod
    def of(cls, input_ids: Tensor, position_ids: Tensor | None = None) -> EarlierTokens:
        """At every position of [B, T] rows; position_ids where several documents share a row."""
        positions = torch.arange(input_ids.numel(), device=input_ids.device)
        depth = positions % input_ids.shape[1] if position_ids is None else position_ids.reshape(-1)
        return cls(input_ids, positions, depth)

    def __getitem__(self, index: Tensor | slice) -> EarlierTokens:
        return replace(self, positions=self.positions[index], depth=self.depth[index])

    def ids(self) -> Tensor:
        """[N, T] token ids, −100 for those that stand later or in another document."""
        width = self.input_ids.shape[1]
        before = (self.positions % width)[:, None] - torch.arange(width, device=self.positions.device)
        return self.input_ids[self.positions // width].masked_fill(
            (before < 0) | (before > self.depth[:, None]), IGNORE
        )


@dataclass(frozen=True)
class Tokens:
    """N supervised tokens, and what is known of each."""

    positions: Tensor  # [N] among all positions, flattened
    labels: Tensor  # [N]
    scale: Tensor  # [N]
    sequence_ids: Tensor | None = None  # [N]
    negatives: Tensor | EarlierTokens | None = None  # [N, K]
    references: Mapping[str, Reference] = field(default_factory=dict)
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    scope_values: Mapping[object, Tensor] = field(default_factory=dict)
    progress: float = 0.0

    @classmethod
    def keep_supervised(
        cls,
        labels: Tensor,
        shape: torch.Size,
        *,
        references: Mapping[str, Reference] | None = None,
        columns: Mapping[str, Tensor] | None = None,
        sequence_ids: Tensor | None = None,
        negatives: Tensor | EarlierTokens | None = None,
        progress: float | None = None,
        scope_values: Mapping[object, Tensor] | None = None,
        statistics: Mapping[object, Tensor] | None = None,
        token_scale: Tensor | float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> Tokens:
        """All is given per position, but scope values per supervised token. dtype: what the loss is computed in.

        Raises QTargetError where shapes differ.
        """
        checks.number("progress", progress or 0.0, 0, 1)
        _check_shapes(labels, shape, columns, sequence_ids, token_scale)
        flat = labels.reshape(-1)
        positions = (flat != IGNORE).nonzero().squeeze(1)
        if positions.numel() == 0:
            warnings.warn("no supervised token in this batch: its loss and gradient are zero", stacklevel=4)
        scale = torch.as_tensor(token_scale, dtype=dtype, device=labels.device).reshape(-1)
        ids = _rows_as_sequences(labels) if sequence_ids is None else sequence_ids
        return cls(
            positions=positions,
            labels=flat[positions],
            scale=scale[positions] if scale.numel() > 1 else scale.expand(positions.numel()),
            sequence_ids=None if ids is None else ids.reshape(-1)[positions],
            negatives=_negatives(negatives, shape, positions),
            references={
                role: _aligned(role, ref, flat.numel(), positions, flat[positions])
                for role, ref in (references or {}).items()
            },
            columns={name: column.reshape(-1)[positions] for name, column in (columns or {}).items()},
            scope_values=_check_scope_values({**(statistics or {}), **(scope_values or {})}, positions.numel()),
            progress=progress or 0.0,
        )

    def chunks(self, chunk_size: int | None, vocab_size: int) -> list[slice]:
        """Rows to go through at a time. Raises QTargetError for token ids outside the vocabulary."""
        _check_ids("labels", self.labels, vocab_size)
        if isinstance(self.negatives, Tensor):
            _check_ids("negatives", self.negatives[self.negatives != IGNORE], vocab_size)
        for role, reference in self.references.items():
            if reference.indices is not None:
                _check_ids(f"the top-k token ids of the {role}", reference.indices, vocab_size)
            if "entropy" in reference.label_scalars and not reference.is_trusted:
                legal.label_over(role, reference.label_scalars["entropy"], vocab_size)
        size = default_chunk(vocab_size) if chunk_size is None else chunk_size
        checks.whole("chunk_size", size, 1)
        return slices(self.labels.numel(), size)

    @torch.no_grad()
    def blocks(self, rows: slice, vocab_size: int) -> Iterator[tuple[slice, Tokens]]:
        """A chunk in blocks whose logits stay in a CPU's cache: rows of a block, and its tokens.

        What references hold as hidden states goes through their heads for the chunk as a whole, as the policy's does.
        """
        chunk = self.select(rows)
        chunk = replace(chunk, references={role: held.multiplied() for role, held in chunk.references.items()})
        size = rows.stop - rows.start
        if self.labels.device.type == "cpu":
            _keep_freed_memory()
            size = max(1, BLOCK_BYTES // (4 * vocab_size))
        for part in slices(rows.stop - rows.start, size):
            yield slice(rows.start + part.start, rows.start + part.stop), chunk.select(part)

    def select(self, rows: slice) -> Tokens:
        """Some of them."""
        return Tokens(
            positions=self.positions[rows],
            labels=self.labels[rows],
            scale=self.scale[rows],
            sequence_ids=None if self.sequence_ids is None else self.sequence_ids[rows],
            negatives=None if self.negatives is None else self.negatives[rows],
            references={role: reference.select(rows) for role, reference in self.references.items()},
            columns={name: column[rows] for name, column in self.columns.items()},
            scope_values={part: values[rows] for part, values in self.scope_values.items()},
            progress=self.progress,
        )

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor with a row per token."""
        yield from (self.positions, self.labels, self.scale, *self.columns.values(), *self.scope_values.values())
        if isinstance(self.negatives, EarlierTokens):
            yield from (self.negatives.positions, self.negatives.depth)
        elif self.negatives is not None:
            yield self.negatives
        if self.sequence_ids is not None:
            yield self.sequence_ids
        for reference in self.references.values():
            yield from reference.tensors()

    def view(self, logp: Tensor, *, has_zeros: bool = True) -> TokenView:
        """These tokens as a design sees them, beside the policy's log-probabilities [N, V]; has_zeros: of TokenView."""
        return TokenView(
            logp=logp,
            labels=self.labels,
            references={role: reference.at(self.labels, logp) for role, reference in self.references.items()},
            columns=self.columns,
            negatives=self.negatives.ids() if isinstance(self.negatives, EarlierTokens) else self.negatives,
            scope_values=self.scope_values,
            progress=self.progress,
            has_zeros=has_zeros,
        )

    def table(self, label_logp: Mapping[str, Tensor], entropy: Mapping[str, Tensor]) -> TokenTable:
        """What scope values are made of."""
        return TokenTable(label_logp, self.labels, self.sequence_ids, self.progress, entropy)


@cache
def _keep_freed_memory() -> None:
    """Have glibc keep what a block's temporaries leave, instead of returning it and faulting every page in anew.

    It keeps memory up to twice the largest freed block of at most 32 MiB that it had mapped: this is one. Pages that
    come back zeroed cost more than half of what the passes over them do.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def default_chunk(vocab_size: int) -> int:
    """Tokens of a chunk whose size nobody has set."""
    return max(1, CHUNK_BYTES // (4 * vocab_size))


def slices(count: int, size: int) -> list[slice]:
    """`count` rows in parts of at most `size`, as even as may be: a part of a few rows costs almost as much as any."""
    even = math.ceil(count / math.ceil(count / size)) if count else 1
    return [slice(start, min(start + even, count)) for start in range(0, count, even)]


def _rows_as_sequences(labels: Tensor) -> Tensor | None:
    """Each row of [B, T] labels is a sequence; flat labels say nothing of theirs."""
    if labels.ndim < 2:
        return None
    rows = labels.numel() // labels.shape[-1] if labels.numel() else 0
    return torch.arange(rows, device=labels.device)[:, None].expand(rows, labels.shape[-1])


def _check_ids(what: str, ids: Tensor, vocab_size: int) -> None:
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        wrong = sorted({label for label in ids.flatten().tolist() if not 0 <= label < vocab_size})
        raise QTargetError(f"{what} must lie in [0, {vocab_size}) or be {IGNORE}; got {wrong[:10]}")


def _negatives(
    negatives: Tensor | EarlierTokens | None, shape: torch.Size, positions: Tensor
) -> Tensor | EarlierTokens | None:
    if negatives is None or isinstance(negatives, EarlierTokens):
        return negatives and negatives[positions]
    if negatives.shape[:-1] != shape:
        raise QTargetError(
            f"negatives have the shape {tuple(negatives.shape)}; they must be token ids [{tuple(shape)}, K], "
            f"{IGNORE} where there are fewer than K"
        )
    return negatives.reshape(-1, negatives.shape[-1])[positions]


def _check_scope_values(given: Mapping[object, Tensor], count: int) -> Mapping[object, Tensor]:
    for part, values in given.items():
        if values.shape != (count,):
            raise QTargetError(
                f"the scope value of {part!r} has the shape {tuple(values.shape)}; there are {count} supervised tokens"
            )
    return given


def _check_shapes(
    labels: Tensor,
    shape: torch.Size,
    columns: Mapping[str, Tensor] | None,
    sequence_ids: Tensor | None,
    token_scale: Tensor | float,
) -> None:
    """Shapes that merely flatten to the right length would pair tokens with other tokens' labels."""
    shaped = {"labels": labels, **(columns or {})}
    if sequence_ids is not None:
        shaped["sequence_ids"] = sequence_ids
    if isinstance(token_scale, Tensor) and token_scale.numel() > 1:
        shaped["token_scale"] = token_scale
    for name, tensor in shaped.items():
        if tensor.shape != shape:
            raise QTargetError(
                f"{name} has the shape {tuple(tensor.shape)}, the positions {tuple(shape)}; they must be the same"
            )


def _aligned(role: str, reference: Reference, count: int, positions: Tensor, labels: Tensor) -> Reference:
    """What a reference holds of the supervised tokens."""
    checks.choice("the role of a reference", role, ROLES)
    if not isinstance(reference, Reference):
        raise QTargetError(f"the {role} must be a qtarget.Reference, got {type(reference).__name__}")
    if reference.supervised_only and len(reference) != len(positions):
        raise QTargetError(f"the {role} covers {len(reference)} supervised positions, and there are {len(positions)}")
    if not reference.supervised_only and len(reference) != count:
        raise QTargetError(
            f"the {role} covers {len(reference)} positions, the labels {count}: a reference has a row for every "
            "position, supervised or not"
        )
    aligned = (reference if reference.supervised_only else reference.select(positions)).cast()
    if aligned.labels is not None and not torch.equal(aligned.labels, labels):
        raise QTargetError(
            f"the {role}'s label scalars belong to other labels than the batch's: rows, tokenizer, template or "
            "truncation differ from those they were computed with"
        )
    return aligned
