"""Rows → examples, by the chat template and the tokenizer; and where they are meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration, Example


@dataclass(frozen=True)
class EncodedRows:
    """Rows, and all examples of them in order; starts: where those of each begin, and behind the last where all end."""

    rows: Sequence[Demonstration]
    examples: Sequence[Example]
    starts: Sequence[int]

    def group(self, index: int) -> list[Example]:
        """The examples of a row."""
        return list(self.examples[self.starts[index] : self.starts[index + 1]])


class Storage(Protocol):
    """Where examples are while they are prepared, and once they are."""

    def encode(self, rows: Sequence[Demonstration], chat: ChatFormat) -> EncodedRows:
        """Raises QTargetError, with its number, for the first row that can't be taught."""

    def keep(
        self, name: str, examples: Iterable[tuple[Example, int]], columns: Iterable[str]
    ) -> tuple[Sequence[Example], Sequence[int]]:
        """The examples; and which row each is of, as it was given with it. columns: those that any may have."""


class InMemory:
    """As Python's objects, in this process."""

    def encode(self, rows: Sequence[Demonstration], chat: ChatFormat) -> EncodedRows:
        groups = [chat.encode(row) for row in rows]
        starts = list(accumulate(map(len, groups), initial=0))
        return EncodedRows(rows, [example for group in groups for example in group], starts)

    def keep(
        self, name: str, examples: Iterable[tuple[Example, int]], columns: Iterable[str]
    ) -> tuple[Sequence[Example], Sequence[int]]:
        kept = list(examples)
        return [example for example, _ in kept], [of for _, of in kept]
