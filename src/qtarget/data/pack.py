"""Several demonstrations to a row: less padding, the same loss."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from qtarget.data.collate import Pack
from qtarget.data.example import Example


def pack(examples: Sequence[Example], length: int) -> list[Pack]:
    """Best fit, longest first: each example goes where the least room is left over in rows of `length` tokens.

    An example longer than `length` has a row of its own. Packs stand in the order of their first example, and an
    example's place in the data set goes with it.
    """
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, pack), sorted
    for index in sorted(range(len(examples)), key=lambda index: -len(examples[index])):
        wanted = len(examples[index])
        found = bisect_left(rooms, (wanted, 0))
        room, chosen = rooms.pop(found) if found < len(rooms) else (max(length, wanted), len(packs))
        if chosen == len(packs):
            packs.append([])
        packs[chosen].append(index)
        insort(rooms, (room - wanted, chosen))
    return [tuple(examples[index] for index in sorted(members)) for members in sorted(packs, key=min)]
