"""Which rows of a file are held out, where a share of them is: by a hash of their prompt, so that no prompt is on both
sides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qtarget.data.example import Demonstration
from qtarget.data.overlap import position, prompt_text
from qtarget.files import file_facts, local_files


@dataclass(frozen=True)
class HeldOut:
    """The held-out side: prompts whose hash, in [0, 1), lies below `share`; or exactly `prompts`, where given."""

    share: float = 0.0
    prompts: frozenset[str] | None = None

    def holds(self, row: Demonstration) -> bool:
        prompt = prompt_text(row.prompt)
        return position(prompt) < self.share if self.prompts is None else prompt in self.prompts


class HoldsOut:
    """A source that reads once which of its rows are held out, for the rows of both sides.

    Where a local file that it reads was written since, it reads that again.
    """

    path: str

    def side(self, heldout_rows: int | None) -> HeldOut:
        """Which rows are held out."""
        key = heldout_rows, *((file, file_facts(file)) for file in self._read_files() if file.is_file())
        if key not in self._sides:
            self._sides[key] = self._held_out(heldout_rows)
        return self._sides[key]

    @cached_property
    def _sides(self) -> dict[Any, HeldOut]:
        return {}

    def _read_files(self) -> list[Path]:
        """The local files that the rows stand in."""
        return local_files(Path(self.path).expanduser())

    def _held_out(self, heldout_rows: int | None) -> HeldOut:
        """As they are read."""
        raise NotImplementedError


def held_out(rows: Iterable[Demonstration], share: float, count: int | None) -> HeldOut:
    """The side of the rows that a share holds out, one prompt at least where rows ask different things.

    count: only the prompts of the first so many of these rows, so that all others are trained on; None: all of them.
    Rows are read as far as it takes.
    """
    if not share or count == 0:
        return HeldOut()
    held: list[str] = []
    nearest, first = (1.0, ""), None
    has_others = False
    for row in rows:
        prompt = prompt_text(row.prompt)
        first = prompt if first is None else first
        has_others = has_others or prompt != first
        nearest = min(nearest, (position(prompt), prompt))
        if nearest[0] < share and count is None:
            return HeldOut(share)
        held += [prompt] * (position(prompt) < share)
        if count is not None and len(held) == count:
            break
    if not held and has_others:
        held = [nearest[1]]
    return HeldOut(prompts=frozenset(held))
