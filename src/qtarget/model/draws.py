"""Draws of tokens from a frozen model's distribution, and how few bytes keep them (RS-KD, arXiv 2503.16870).

A position keeps the distinct tokens of its N draws and how often each was drawn: 3 bytes a distinct token and one for
how many there are. Natural text has about twelve of them in 64 draws, so about 37 bytes a position.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qtarget.choices import MOST_DRAWS

_COUNT_BITS = 6
_NARROW = 1 << 18
"""Token ids below it fit 3 bytes beside a count; others take 4."""
DISTINCT = 12
"""Distinct tokens in 64 draws of a language model, about: for reckoning sizes."""


def uniform(count: int, draws: int, seed: int, first: int) -> Tensor:
    """[count, draws] numbers in [0, 1), fp64: the same for the tokens of a batch whose first one is `first`."""
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + first) % 2**63)
    return torch.rand(count, draws, generator=generator, dtype=torch.float64)


def drawn(logp: Tensor, at: Tensor) -> Tensor:
    """Token ids [n, N], int32, ascending: independent draws from log-probabilities [n, V]; −1 where these are NaN.

    at: uniform numbers [n, N], at which the distribution function is inverted. In fp64: a running sum of 150,000 small
    terms in fp32 loses whole tokens.
    """
    cumulative = logp.double().exp().cumsum(-1)
    total = cumulative[:, -1:]
    below = at.to(cumulative.device).clamp_max(1 - 2.0**-40) * total  # rounding must not reach the end
    ids: Tensor = torch.searchsorted(cumulative, below, right=True)  # a token of probability 0 begins nowhere
    return ids.masked_fill(total.isnan(), -1).sort(-1).values.int()


def packed(ids: Tensor) -> dict[str, Tensor]:
    """ids [n, N], ascending → distinct [n] uint8 of each position, and their tokens and counts one behind the other."""
    rows = torch.arange(len(ids))[:, None].expand_as(ids)
    pairs, counts = torch.stack([rows.reshape(-1), ids.reshape(-1).long()], 1).unique_consecutive(
        dim=0, return_counts=True
    )
    together = (pairs[:, 1] << _COUNT_BITS) | (counts - 1)
    width = 3 if not len(together) or int(pairs[:, 1].max()) < _NARROW else 4
    held = torch.stack([(together >> 8 * byte) & 255 for byte in range(width)], dim=-1)
    return {
        "distinct": torch.bincount(pairs[:, 0], minlength=len(ids)).to(torch.uint8),
        "tokens": held.to(torch.uint8),
    }


def unpacked(stored: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Some positions of what `packed` made: indices and counts [m, MOST_DRAWS] int64, 0 behind the last."""
    lengths = stored["distinct"].long()
    ends = lengths.cumsum(0)
    place = torch.arange(MOST_DRAWS)
    is_held = place < lengths[rows, None]
    at = ((ends - lengths)[rows, None] + place).where(is_held, 0)
    held = stored["tokens"][at.reshape(-1)].long()
    together = sum(held[:, byte] << 8 * byte for byte in range(held.shape[-1]))
    together = together.view(at.shape)  # type: ignore[union-attr]
    return {
        "indices": (together >> _COUNT_BITS).where(is_held, 0),
        "counts": ((together & (MOST_DRAWS - 1)) + 1).where(is_held, 0),
    }
