"""One run's figures as Markdown: rows to a table, tables to sections, sections to one file."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from qtarget.record.record import git_commit, write_atomically

Row = Mapping[str, str | float | int | None]
"""Column → cell; None where there is nothing to say. Aims stand in a column of their own, as text."""

PACKAGES = ("qtarget", "torch", "transformers", "lightning", "trl", "peft", "liger-kernel", "cut-cross-entropy")
PREFACE = """\
# Benchmarks

Written by `make bench` (`python benchmarks/run.py`); every section says where and when it was measured. What a section
compares was measured on one machine in one run, and its ratios are of that run alone. The column *aim* holds what the
project sets itself, not a measurement.
"""


@dataclass(frozen=True)
class Section:
    """What one part of the suite found. part: its letter, under which a later run finds and replaces it."""

    part: str
    title: str
    tables: Sequence[tuple[str, Sequence[Row]]]  # (what was measured and how, its rows)

    @property
    def markdown(self) -> str:
        bodies = (f"{caption}\n\n{markdown(rows)}" for caption, rows in self.tables)
        return "\n\n".join((f"## ({self.part}) {self.title}", f"*{circumstances()}*", *bodies)) + "\n"


def markdown(rows: Iterable[Row]) -> str:
    """A Markdown table whose columns are the keys of all rows, in order of appearance."""
    found = list(rows)
    columns = list(dict.fromkeys(column for row in found for column in row))
    numeric = [any(isinstance(row.get(column), int | float) for row in found) for column in columns]
    lines = [columns, ["---:" if right else "---" for right in numeric]]
    lines += [[cell(row.get(column)) for column in columns] for row in found]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: str | float | int | None) -> str:
    """Three significant digits, whole numbers whole."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"
    return str(value)


def merged(text: str, section: Section) -> str:
    """The file's text with that section put in its place; sections stand in the order of their letters."""
    _, *sections = re.split(r"(?m)^(?=## \()", text)
    kept = {part[4]: part.strip() + "\n" for part in sections} | {section.part: section.markdown}
    return "\n".join((PREFACE, *(kept[part] for part in sorted(kept))))


def store(path: Path, section: Section) -> None:
    write_atomically(path, merged(path.read_text(encoding="utf-8") if path.is_file() else "", section))


def circumstances() -> str:
    """Machine, date and versions, in one line."""
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    commit = f"commit {(git_commit() or 'unknown')[:9]}"
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    return "; ".join((f"{processor()}, {threads}", day, f"Python {platform.python_version()}", *versions(), commit))


def processor() -> str:
    """The device that computes: the GPU where there is one, else the CPU's model name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    known = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    found = re.search(r"model name\s*:\s*(.+)", known)
    return found.group(1) if found else platform.processor() or platform.machine()


def versions() -> list[str]:
    """name version, of the packages that take part and are installed."""
    installed = {dist.metadata["Name"].lower() for dist in importlib.metadata.distributions()}
    return [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES if name in installed]
