"""Several demonstrations in one row."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from qtarget.data.example import Example, lengths

Pack = tuple[Example, ...]
"""Demonstrations that share a row."""


@dataclass(frozen=True)
class Packs(Sequence[Pack]):
    """Rows that hold several examples; members: which."""

    examples: Sequence[Example]
    members: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.members)

    @overload
    def __getitem__(self, index: int) -> Pack: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pack]: ...
    def __getitem__(self, index: int | slice) -> Pack | list[Pack]:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        return tuple(self.examples[member] for member in self.members[index])

    @property
    def lengths(self) -> list[int]:
        """Tokens of each."""
        tokens = lengths(self.examples)
        return [sum(tokens[member] for member in members) for members in self.members]


def pack(examples: Sequence[Example], length: int) -> Packs:
    """Best fit, longest first: each example goes where the least room is left over in rows of `length` tokens.

    An example longer than `length` has a row of its own. Packs stand in the order of their first example, and an
    example's first_label goes with it.
    """
    tokens = lengths(examples)
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, pack), sorted
    for index in sorted(range(len(tokens)), key=lambda index: -tokens[index]):
        wanted = tokens[index]
        at = bisect_left(rooms, (wanted, 0))
        room, chosen = rooms.pop(at) if at < len(rooms) else (max(length, wanted), len(packs))
        if chosen == len(packs):
            packs.append([])
        packs[chosen].append(index)
        insort(rooms, (room - wanted, chosen))
    return Packs(examples, [sorted(members) for members in sorted(packs, key=min)])


def longest_row(rows: Sequence[Example] | Packs) -> int:
    """Tokens of the longest; 0 of none."""
    return max(rows.lengths if isinstance(rows, Packs) else lengths(rows), default=0)
