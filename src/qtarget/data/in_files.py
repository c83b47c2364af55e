"""Examples in files while they are prepared, which several processes write.

They are the same as in memory, and so is the first row that is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from qtarget.data.chat import ChatFormat
from qtarget.data.encoding import EncodedRows
from qtarget.data.example import Demonstration, Example, columns_of_rows
from qtarget.data.limits import KeptRows
from qtarget.data.stored import StoredExamples, writing_examples
from qtarget.forked import can_fork, in_forks

SHARE_ROWS = 1000
"""Rows that are worth a process of their own."""


@dataclass(frozen=True)
class InFiles:
    """As files of a folder; workers: how many processes may render and tokenise."""

    folder: Path
    workers: int = 1

    def encode(self, rows: Sequence[Demonstration], chat: ChatFormat) -> EncodedRows:
        columns = columns_of_rows(rows)
        shares = _shares(len(rows), min(self.workers, len(rows) // SHARE_ROWS) if can_fork() else 1)
        paths = [self.folder / f"encoded-{share.start}-{share.stop}.arrow" for share in shares]
        tasks = [
            partial(_write, path, rows[share.start : share.stop], share.start, chat, columns)
            for path, share in zip(paths, shares, strict=True)
        ]
        if len(tasks) > 1:
            in_forks(tasks)
        else:
            tasks[0]()
        examples = StoredExamples(*paths)
        for path in paths:
            path.unlink()  # what is mapped stays until nobody looks at it
        return EncodedRows(rows, examples, np.searchsorted(examples.of, np.arange(len(rows) + 1)).tolist())

    def keep(self, name: str, kept: KeptRows) -> tuple[Sequence[Example], Sequence[int]]:
        path, encoded = self.folder / f"{name}.arrow", kept.encoded.examples
        if isinstance(encoded, StoredExamples) and not kept.cut:
            kept.noisy, kept.noisy_tokens = encoded.write(path, kept.kept)
        else:
            with writing_examples(path, columns_of_rows(kept.rows)) as writer:
                for example, of in kept.examples():
                    writer.add(example, of)
        stored = StoredExamples(path)
        return stored, stored.of


def _shares(count: int, parts: int) -> list[range]:
    """Consecutive rows, in parts that differ by one at most."""
    parts = max(1, parts)
    borders = [count * part // parts for part in range(parts + 1)]
    return [range(low, high) for low, high in pairwise(borders)]


def _write(path: Path, rows: Sequence[Demonstration], first: int, chat: ChatFormat, columns: Iterable[str]) -> None:
    with writing_examples(path, columns) as writer:
        for of, row in enumerate(rows, first):
            for example in chat.encode(row):
                writer.add(example, of)
