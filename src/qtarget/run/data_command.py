"""`qtarget data`: what training would read, printed before anything is trained."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qtarget.compare.formats import Table, terminal
from qtarget.config.composing import compose_config, to_yaml
from qtarget.config.parsers import data_parser
from qtarget.config.run_config import RunConfig
from qtarget.data.example import Example
from qtarget.errors import QTargetError
from qtarget.run.data_report import QUANTILES, DataReport, data_report

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

STYLES = {"context": "dim", "supervised": "bold green", "wrong": "bold red"}
MARKS = {"context": ("", ""), "supervised": ("⟦", "⟧"), "wrong": ("⟪", "⟫")}
"""Around text, so that it can be told apart without colours too."""
LONGEST = 2000
"""Characters of a row that are printed; of a longer one its two ends."""


def data(arguments: Sequence[str]) -> int:
    """Print the report of the rows that `qtarget train` with the same keys would read. Exit code 2: it would refuse."""
    options = data_parser().parse_intermixed_args(arguments)
    composed = compose_config("train", options.keys)
    if options.cfg:
        print(to_yaml(composed), end="")
        return 0
    report = data_report(RunConfig.read(composed))
    _print(report, terminal(), options.rows)
    if options.out is not None:
        _write_page(report, Path(options.out), options.rows)
        print(f"page: {options.out}")
    problems = report.problems()
    for problem in problems:
        print(f"training would stop: {problem}")
    if not problems:
        print(f"next: {shlex.join(['qtarget', 'train', *options.keys])}")
    return 2 if problems else 0


def _write_page(report: DataReport, path: Path, rows: int) -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), record=True, width=120, emoji=False)
    _print(report, console, rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(console.export_html(inline_styles=True), encoding="utf-8")
    except OSError as error:
        raise QTargetError(f"can't write {path}: {error}") from error


def _print(report: DataReport, console: Console, rows: int) -> None:
    prepared = report.prepared
    lines = [[what, *map(str, counts)] for what, *counts in report.rows()]
    console.print(prepared.described, style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(Table(["rows", "training", "held out"], lines).rich())
    lines = [[name, *map(str, quantiles)] for name, quantiles in report.lengths()]
    console.print(Table([f"tokens (at most {report.limit})", *QUANTILES], lines).rich())
    if prepared.roles:
        console.print(f"training messages: {', '.join(f'{count} {name}' for name, count in prepared.roles.items())}")
    for note in [*filter(None, prepared.dropped_in_words.split("; ")), prepared.few_in_words.removeprefix("; ")]:
        if note:
            console.print(f"note: {note}", markup=False)
    if prepared.train:
        console.print("\nas the model reads them: ", end="")
        console.print(_legend(report))
    for example in prepared.train[:rows]:
        console.print(f"\nrow {example.row}: {len(example)} tokens, {example.labels} supervised", style="bold")
        console.print(_text(report, example), soft_wrap=True)


def _legend(report: DataReport) -> Text:
    from rich.text import Text

    kinds = ["context", "supervised", *["wrong"] * (report.prepared.counts["noisy"] > 0)]
    parts: list[str | tuple[str, str]] = []
    for kind in kinds:
        opened, closed = MARKS[kind]
        parts += [(f"{opened}{kind}{closed}", STYLES[kind]), " "]
    return Text.assemble(*parts)


def _text(report: DataReport, example: Example) -> Text:
    """A row's text in the colours of what is learnt from it; of a long one the two ends."""
    from rich.text import Text

    text = Text()
    for piece in report.pieces(example):
        opened, closed = MARKS[piece.kind]
        text.append(f"{opened}{_printable(piece.text)}{closed}", STYLES[piece.kind])
    if len(text) <= LONGEST:
        return text
    left_out = len(text) - LONGEST
    return Text.assemble(text[: LONGEST // 2], f" … {left_out} characters … ", text[-LONGEST // 2 :])


def _printable(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in text
    )
