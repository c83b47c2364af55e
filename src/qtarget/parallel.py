"""Which of how many processes this is, and what they know together."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """(this process's rank, how many there are): (0, 1) where nothing is distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def leads() -> bool:
    """Whether this process prints and writes: rank 0, or the only one."""
    return rank_and_world()[0] == 0


def summed(value: Tensor) -> Tensor:
    """The sum over ranks. Every rank has to call it, as often as the others."""
    if rank_and_world()[1] > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def largest(value: Tensor) -> Tensor:
    """The largest over ranks, entry by entry. Every rank has to call it, as often as the others."""
    if rank_and_world()[1] > 1:
        value = value.clone()
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def gathered(value: T) -> list[T]:
    """What every rank has, in rank order; tensors on the CPU. Every rank has to call it, as often as the others."""
    _, world = rank_and_world()
    if world == 1:
        return [value]
    found: list[Any] = [None] * world
    dist.all_gather_object(found, value)
    return found
