"""Rows, and the examples that the chat template and the tokenizer make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
