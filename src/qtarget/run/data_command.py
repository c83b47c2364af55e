"""`qtarget data`: what training would read, printed before anything is trained."""

from __future__ import annotations

import io
import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qtarget.compare.formats import Table, terminal
from qtarget.config.composing import compose_config, to_yaml
from qtarget.config.parsers import data_parser
from qtarget.config.run_config import RunConfig
from qtarget.data.example import Example
from qtarget.data.sources.message import ROLES
from qtarget.errors import QTargetError
from qtarget.run.audit import CACHED, Audit, audit
from qtarget.run.data_report import QUANTILES, DataReport, data_report
from qtarget.run.fit import prepare_process
from qtarget.run.scripts import answered_otherwise, main_script, template_words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

STYLES = {"context": "dim", "supervised": "bold green", "wrong": "bold red"}
MARKS = {"context": ("", ""), "supervised": ("⟦", "⟧"), "wrong": ("⟪", "⟫")}
"""Around text, so that it can be told apart without colours too."""
LONGEST = 2000
"""Characters of a row that are printed; of a longer one its two ends."""
SHORT = 300
"""Characters of a template's own words that are printed."""
NAMED = 10
"""Rows that a note names."""


def data(arguments: Sequence[str]) -> int:
    """Print the report of the rows that `qtarget train` with the same keys would read. Exit code 2: it would refuse."""
    parser = data_parser()
    options = parser.parse_intermixed_args(arguments)
    if options.suspicious and not options.audit:
        parser.error("--suspicious writes what --audit finds: give that too")
    composed = compose_config("train", [*CACHED, *options.keys] if options.audit else options.keys)
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
    if problems:
        return 2
    keys = [] if not options.audit else _audited(RunConfig.read(composed), options.rows, options.suspicious)
    print(f"next: {shlex.join(['qtarget', 'train', *keys, *options.keys])}")
    return 0


def _audited(cfg: RunConfig, rows: int, path: str | None) -> list[str]:
    """Print what the model contradicts; the keys of a comparison that this suggests."""
    prepare_process(cfg.seed)
    result = audit(cfg)
    _print_audit(result, terminal(), rows)
    if path is not None:
        _write_suspicious(result, Path(path))
        print(f"suspicious rows: {path}")
    words, designs = result.advice()
    print(f"nll {result.nll:.2f} nats a token before training: {words} (docs/results, Prior strength)")
    return ["-m", f"target={designs}"] if "," in designs else [f"target={designs}"]


def _print_audit(result: Audit, console: Console, rows: int) -> None:
    from rich.text import Text

    console.print("\nthe rows that contradict the model most, and of each the token that it thinks least likely:")
    for row in result.ranked()[:rows]:
        before, token, behind, probability = result.around_worst(row)
        opened, closed = MARKS["wrong"]
        text = Text(f"row {row.example.row}, nll {row.nll:.2f}, p {probability:.1e}: …{_printable(before)}")
        text.append(f"{opened}{_printable(token)}{closed}", STYLES["wrong"]).append(f"{_printable(behind)}…")
        console.print(text, soft_wrap=True)
    odd = [row for row in result.ranked() if row.reasons]
    console.print(f"\n{len(odd)} rows repeat or contradict another, end as if cut, or hold marks of a template")
    for row in odd[:rows]:
        reasons = _printable("; ".join(row.reasons))
        console.print(f"row {row.example.row}: {reasons}", markup=False, soft_wrap=True)
    for what, area in result.detection().items():
        console.print(f"the ranking finds {what} with an AUROC of {area:.2f}")


def _write_suspicious(result: Audit, path: Path) -> None:
    lines = [
        {"row": row.example.row, "nll": row.nll, "reasons": row.reasons, "prompt": row.prompt, "completion": row.answer}
        for row in result.suspicious()
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise QTargetError(f"can't write {path}: {error}") from error


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
    console.print(Table([f"tokens an example (at most {report.limit})", *QUANTILES], lines).rich())
    _print_scripts(report, console)
    for note in report.notes():
        console.print(f"note: {note}", markup=False)
    if prepared.train:
        console.print("\nas the model reads them: ", end="")
        console.print(_legend(report))
    numbers = Counter(example.row for example in prepared.train)
    shown: Counter[int] = Counter()
    for index, example in enumerate(prepared.train[:rows]):
        shown[example.row] += 1
        several = f", example {shown[example.row]} of {numbers[example.row]}" if numbers[example.row] > 1 else ""
        console.print(f"\nrow {example.row}{several}: {len(example)} tokens, {example.labels} supervised", style="bold")
        console.print(_text(report, example), soft_wrap=True)
        for role, hinted in report.hinted.items():
            console.print(f"as the {role} reads it, with its hint: {len(hinted[index])} tokens", style="bold")
            console.print(_text(report, hinted[index]), soft_wrap=True)


def _print_scripts(report: DataReport, console: Console) -> None:
    lines = [[name, str(count), _printable(names)] for name, count, names in report.scripts()]
    console.print(Table(["training messages", "", "script of most letters"], lines).rich())
    others = [f"{count} {name}" for name, count in report.prepared.roles.items() if name not in ROLES]
    if others:
        console.print(f"among these: {', '.join(others)}")
    if words := template_words(report.tokenizer):
        text = f"the template's own words ({main_script(words)}): {_printable(words)[:SHORT]}"
        console.print(text, markup=False, soft_wrap=True)
    if numbers := answered_otherwise(report.source):
        named = ", ".join(map(str, numbers[:NAMED])) + ", …" * (len(numbers) > NAMED)
        console.print(f"note: {len(numbers)} rows are answered in another script than they ask: {named}")


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
