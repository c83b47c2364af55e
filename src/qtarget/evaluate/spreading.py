"""What is read or asked is dealt out to the ranks of a run: each thing is done once, and every rank has all results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from qtarget.parallel import rank_and_world

T = TypeVar("T")
ANSWER_TIMEOUT = timedelta(days=7)
"""How long a rank waits for the others' answers. Of ranks that die the connection closes at once."""


@dataclass(frozen=True)
class Ranks:
    """This rank, how many there are, and the group that their results travel in; alone by default."""

    rank: int = 0
    world: int = 1
    group: Any = None

    def share(self, things: Sequence[T], *, in_step: bool = False) -> list[T]:
        """Every world-th of them from this rank's on.

        in_step: all ranks get as many: the last ones the first thing once more, whose second result isn't collected.
        For models whose weights are shards, which read only together.
        """
        own = list(things[self.rank :: self.world])
        missing = -(-len(things) // self.world) - len(own)
        return own + list(things[:1]) * (missing if in_step else 0)

    def collected(self, own: list[T], count: int) -> list[T]:
        """The results of all ranks' shares of `count` things, in the order of the things. Collective."""
        if self.world == 1:
            return own[:count]
        shares: list[Any] = [None] * self.world
        dist.all_gather_object(shares, own, group=self.group)
        return [shares[place % self.world][place // self.world] for place in range(count)]


ALONE = Ranks()


@contextmanager
def all_ranks() -> Iterator[Ranks]:
    """Those of the run. Collective.

    The group is gloo's, with a patience of its own: one rank may have much longer answers to write than another, and
    NCCL ends a run whose ranks wait ten minutes for each other.
    """
    rank, world = rank_and_world()
    if world == 1:
        yield ALONE
        return
    group = dist.new_group(backend="gloo", timeout=ANSWER_TIMEOUT)
    try:
        yield Ranks(rank, world, group)
    finally:
        dist.destroy_process_group(group)
