"""One table, written four ways: for a terminal, GitHub, a spreadsheet and a paper."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table as RichTable

PIPE_WIDTH = 100
"""Columns, where the output is no terminal that could say how wide it is."""


@dataclass(frozen=True)
class Table:
    """Cells are text, as they are shown.

    numeric: which columns hold numbers (none by default). note: the text with the table. title: above it in a terminal.
    """

    titles: Sequence[str]
    lines: Sequence[Sequence[str]]
    numeric: Sequence[bool] = ()
    note: str = ""
    title: str = ""

    @property
    def columns(self) -> list[tuple[str, bool]]:
        """Title, and whether it holds numbers, of each."""
        return list(zip(self.titles, self.numeric or [False] * len(self.titles), strict=True))

    def markdown(self) -> str:
        """A GitHub table, the note under it as it is."""
        rule = ["---:" if is_number else "---" for _, is_number in self.columns]
        rows = [self.titles, rule, *([markdown_text(cell) for cell in line] for line in self.lines)]
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        return f"{table}\n\n{self.note}\n" if self.note else f"{table}\n"

    def csv(self) -> str:
        """Titles and lines alone."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.titles, *self.lines])
        return text.getvalue()

    def latex(self) -> str:
        """A tabular of booktabs, the note above it as a comment."""
        from qtarget.compare.latex import latex_table

        return latex_table(self.titles, self.lines, [is_number for _, is_number in self.columns], self.note) + "\n"

    def rich(
        self,
        widths: Sequence[int | None] | None = None,
        box: Box | None = None,
        padding: tuple[int, ...] = (0, 1, 0, 0),
    ) -> RichTable:
        """For a terminal, without the note; numbers to the right and in one line.

        widths: the largest of each column; words that are wider are folded, never cut. box: by default a rule under the
        titles is all. padding: as in CSS.
        """
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        title = Text(self.title, "table.title") if self.title else None
        around: Any = padding
        table = RichTable(title=title, title_justify="left", box=box or SIMPLE_HEAD, padding=around)
        for (text, is_number), width in zip(self.columns, widths or [None] * len(self.titles), strict=True):
            justify: Any = "right" if is_number else "left"
            table.add_column(Text(text), justify=justify, no_wrap=is_number, overflow="fold", max_width=width)
        for line in self.lines:
            table.add_row(*map(Text, line))
        return table


def markdown_text(text: str) -> str:
    """What GitHub shows as `text`, in one line."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def terminal(stderr: bool = False, width: int = PIPE_WIDTH) -> Console:
    """stdout or stderr; width: where that is no terminal."""
    from rich.console import Console

    stream: TextIO = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else width, emoji=False)
