"""A batch read without its padding: its demonstrations stand side by side in one row, and attention keeps them apart.

For a CPU, where every position costs time. All layers but attention read one row of the real tokens; attention goes
group by group, a group being demonstrations of similar length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

Lengths = Sequence[Sequence[int]]
"""Of each row of a batch, how many tokens its demonstrations have; padding stands behind them."""
SLACK = 8
"""Positions of padding that a group may hold: about as many as take the time of another call of attention."""
PRODUCTS_UP_TO = 512
"""Tokens up to which attention in bf16 is made of plain products, where the kind of attention is free.

PyTorch's fused one takes longer there for its backward, twice as long for a demonstration of 128 tokens.
"""
IN_CACHE = 2**20
"""Bytes of scores that are made at a time, so that they stay in a processor's cache."""
KINDS = ("auto", "sdpa", "eager")
"""Values of `model.attention` that read a batch without its padding; auto: each group in the faster way."""
NAME = "qtarget_groups"
"""transformers' name of the attention below."""
WINDOWS = ("sliding_window", "attention_chunk_size")
"""Keys of a configuration by which layers see less than all earlier tokens, which the attention below doesn't know."""
UNKNOWN = ("sliding_window", "softcap", "s_aux", "position_bias")
"""What a layer may ask of its attention that the one below doesn't do."""


@dataclass(frozen=True)
class Groups:
    """Demonstrations of a batch [B, T] as one row of M positions, groups of similar length one behind the other.

    sizes: of each group, how many demonstrations and their common length, to which they are padded. source [M]: which
    of the B·T positions stands there; positions [1, M]: its place in its demonstration; real: those of M that are no
    padding. kind: one of KINDS.
    """

    sizes: tuple[tuple[int, int], ...]
    source: Tensor
    positions: Tensor
    real: Tensor
    kind: str = "auto"

    @classmethod
    def of(cls, lengths: Lengths, width: int, kind: str = "auto") -> Groups:
        """width: T."""
        grouped = list(_similar(sorted(_spans(lengths, width), key=lambda span: -span[1])))
        spans = [(start, length, group[0][1]) for group in grouped for start, length in group]
        places = [torch.arange(padded) for _, _, padded in spans]
        source = torch.cat([start + place for (start, _, _), place in zip(spans, places, strict=True)])
        real = torch.cat([place < length for (_, length, _), place in zip(spans, places, strict=True)])
        last = len(lengths) * width - 1  # padding behind the last demonstration of a row without any
        sizes = tuple((len(group), group[0][1]) for group in grouped)
        return cls(sizes, source.clamp_max(last), torch.cat(places)[None], real.nonzero()[:, 0], kind)

    def row(self, batch: Tensor) -> Tensor:
        """[B, T] → [1, M]."""
        return batch.flatten()[self.source][None]

    def spread(self, row: Tensor, shape: torch.Size) -> Tensor:
        """[1, M, D] → [B, T, D], 0 at padding; shape: (B, T)."""
        source, empty = self.source[self.real], row.new_zeros(*shape, row.shape[-1])
        place = source // shape[1], source % shape[1]
        return empty.index_put(place, row[0].index_select(0, self.real))  # no view, which fsdp2 warns of

    def widths(self) -> list[int]:
        """Positions of each group."""
        return [rows * length for rows, length in self.sizes]

    def by_products(self, length: int, dtype: torch.dtype) -> bool:
        """Whether attention of a group is made of plain products."""
        faster = dtype == torch.bfloat16 and length <= PRODUCTS_UP_TO
        return self.kind == "eager" or (self.kind == "auto" and faster)


def _spans(lengths: Lengths, width: int) -> Iterator[tuple[int, int]]:
    """(start among the B·T positions, length) of each demonstration."""
    for row, inside in enumerate(lengths):
        starts = accumulate(inside, initial=row * width)
        yield from zip(starts, inside, strict=False)


def _similar(spans: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Spans, the longest first, in groups that hold up to SLACK positions of padding."""
    group = [spans[0]]
    padding = 0
    for span in spans[1:]:
        padding += group[0][1] - span[1]
        if padding > SLACK:
            yield group
            group, padding = [], 0
        group.append(span)
    yield group


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    groups: Groups,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each demonstration, [1, H, M, D] → [1, M, H, D], called as transformers calls it.

    Raises NotImplementedError for what a layer asks beyond that.
    """
    if attention_mask is not None:  # of a layer that makes its own
        raise NotImplementedError("attention without padding knows no mask")
    if asked := [name for name in UNKNOWN if others.get(name) is not None]:
        raise NotImplementedError(f"attention without padding knows no {', '.join(asked)}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mixed = []
    states = (tensor.split(groups.widths(), 2) for tensor in (query, key, value))
    for (rows, length), *of_group in zip(groups.sizes, *states, strict=True):
        q, k, v = (state[0].unflatten(1, (rows, length)).transpose(0, 1) for state in of_group)
        if groups.by_products(length, value.dtype):
            made = by_products(q, k, v, scale, dropout)
        else:
            made = sdpa_attention_forward(module, q, k, v, None, dropout=dropout, scaling=scale, is_causal=True)[0]
        mixed.append(made.flatten(0, 1))
    return torch.cat(mixed)[None], None


def by_products(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float) -> Tensor:
    """softmax(scale·q kᵀ) v over what stands before: [b, H, L, D] → [b, L, H, D].

    Heads that share a key stand below each other in one product, and as many products go at a time as fit IN_CACHE.
    """
    rows, heads, length, width = query.shape
    shared = heads // key.shape[1]
    later = query.new_full((length, length), -torch.inf).triu(1).repeat(shared, 1)
    merged = query.reshape(-1, shared * length, width), key.flatten(0, 1), value.flatten(0, 1)
    at_once = max(1, IN_CACHE // (later.numel() * 4))
    mixed = []
    for q, k, v in zip(*(states.split(at_once) for states in merged), strict=True):
        weights = torch.baddbmm(later, q, k.transpose(1, 2), alpha=scale).softmax(-1).to(v.dtype)
        mixed.append(F.dropout(weights, dropout) @ v)
    return torch.cat(mixed).view(rows, heads, length, -1).transpose(1, 2)


AttentionInterface.register(NAME, attention)


def knows_layers_of(config: Any) -> bool:
    """Whether every layer of a decoder sees all earlier tokens, as far as its configuration tells."""
    windowed = any(getattr(config, name, None) for name in WINDOWS)
    kinds = set(getattr(config, "layer_types", None) or ())
    return not windowed and kinds <= {"full_attention"} and config._attn_implementation in KINDS


@contextmanager
def apart(config: Any) -> Iterator[None]:
    """A decoder's attention is the one above meanwhile."""
    kind = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = kind
