"""How this process holds on to memory."""

from __future__ import annotations

import ctypes
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_KEEP_BELOW = 1 << 30
_RETURN_FROM = 1 << 20


LOSS_SHARE = 1 / 16
"""Of the memory that is free before the first step, what the loss may take; most of it is for activations."""
CHUNK_TENSORS = 8
"""How many fp32 tensors of chunk × vocabulary are alive at most while a chunk is scored, with room to spare."""


def chunk_that_fits(vocab_size: int, trained: int, device: torch.device) -> int | None:
    """Tokens of a chunk on a GPU, from the memory that is free before the first step; None elsewhere.

    trained: parameters that are yet to get a gradient and AdamW's two moments, 12 bytes each.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    room = LOSS_SHARE * (free - 12 * trained)
    return max(64, min(8192, int(room // (4 * vocab_size * CHUNK_TENSORS))))


def keep_freed_blocks() -> None:
    """Have glibc reuse freed blocks of up to 1 GiB instead of handing them back to the system after every step.

    A training step on a CPU frees and asks for the same gigabytes again and again; the system zeroes each page anew,
    which took a quarter of a step for a 135M-parameter model. Elsewhere than on glibc nothing happens.
    """
    if not _mallopt(_M_MMAP_THRESHOLD, _KEEP_BELOW):
        _mallopt(_M_MMAP_MAX, 0)  # older versions refuse a threshold above 32 MiB
    _mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_blocks() -> None:
    """Have glibc hand back freed blocks from 1 MiB on at once, so that what a process holds is what it uses."""
    _mallopt(_M_MMAP_THRESHOLD, _RETURN_FROM)


def _mallopt(parameter: int, value: int) -> bool:
    """Whether glibc took it."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(parameter, value))
