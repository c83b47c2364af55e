"""Which of how many processes this is, and what they know together.

A *collective* function is called by every rank, as often as by the others: one that waits alone waits for good.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """(this process's rank, how many there are): (0, 1) where nothing is distributed."""
    if "torch" not in sys.modules:  # then nothing is: a configuration is read, and refused, without it
        return 0, 1
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_rank_zero() -> bool:
    """Whether this process prints and writes: rank 0, or the only one."""
    return rank_and_world()[0] == 0


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum over ranks. Collective."""
    import torch.distributed as dist

    if rank_and_world()[1] > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def all_reduce_max(value: Tensor) -> Tensor:
    """The largest over ranks, entry by entry. Collective."""
    import torch.distributed as dist

    if rank_and_world()[1] > 1:
        value = value.clone()
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def all_gather_objects(value: T) -> list[T]:
    """What every rank has, in rank order; tensors on the CPU. Collective."""
    import torch.distributed as dist

    _, world = rank_and_world()
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    dist.all_gather_object(values, value)
    return values
