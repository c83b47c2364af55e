"""Where examples are while they are prepared, and once they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from qtarget.data.chat import ChatFormat
from qtarget.data.encoding import EncodedRows
from qtarget.data.example import Demonstration, Example
from qtarget.data.limits import KeptRows


class Storage(Protocol):
    """A place for examples."""

    def encode(self, rows: Sequence[Demonstration], chat: ChatFormat) -> EncodedRows:
        """Raises QTargetError, with its number, for the first row that can't be taught."""

    def keep(self, name: str, kept: KeptRows) -> tuple[Sequence[Example], Sequence[int]]:
        """The examples of rows, and which of the rows each is of; counts what is wrong in them meanwhile."""


class InMemory:
    """As Python's objects, in this process."""

    def encode(self, rows: Sequence[Demonstration], chat: ChatFormat) -> EncodedRows:
        groups = [chat.encode(row) for row in rows]
        starts = list(accumulate(map(len, groups), initial=0))
        return EncodedRows(rows, [example for group in groups for example in group], starts)

    def keep(self, name: str, kept: KeptRows) -> tuple[Sequence[Example], Sequence[int]]:
        examples = list(kept.examples())
        return [example for example, _ in examples], [of for _, of in examples]
