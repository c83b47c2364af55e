"""(h) Rows that are prepared once, beside rows that every process prepares in its own memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timing
from table import Row, Section

from qtarget.errors import QTargetError

SCRIPT = Path(__file__).with_name("preparing.py")
BASELINE = "QTARGET_BASELINE"
"""In the environment: the `src` of another commit, which prepares in memory in place of this one's."""
WORDS = (
    "first",
    "then",
    "add",
    "carry",
    "of",
    "both",
    "columns",
    "which",
    "gives",
    "sum",
    "next",
    "line",
    "we",
    "write",
)


@dataclass(frozen=True)
class Rows:
    """How many there are, of so many lines of a worked solution each; rounds: how often each way is taken."""

    rows: int = 20_000
    lines: int = 9
    heldout: int = 100
    rounds: int = 3
    model: str = "smollm2_135m"

    def write(self, path: Path) -> None:
        with path.open("w") as file:
            file.writelines(f"{json.dumps(self._row(number))}\n" for number in range(self.rows))

    def _row(self, number: int) -> dict[str, Any]:
        start, step = 7 * number + 13, 11 * number % 9973 + 5
        lines = [
            f"Step {k}: {_word(number + k)} {_word(number * k)} {start} + {k} * {step} = {start + k * step}."
            for k in range(1, self.lines + 1)
        ]
        asked = f"Problem {number}: start with {start} and add {step} again and again, {self.lines} times over."
        answer = "\n".join([*lines, f"#### {start + self.lines * step}"])
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def _word(number: int) -> str:
    return WORDS[number % len(WORDS)]


@contextmanager
def process(way: str, rows: Rows, path: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Holds its examples until the end."""
    source = {"PYTHONPATH": os.environ[BASELINE]} if way == "memory" and BASELINE in os.environ else {}
    command = [sys.executable, str(SCRIPT), way, str(path), str(rows.heldout), str(folder), rows.model]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = subprocess.Popen(command, env=os.environ | source, text=True, **pipes)
    try:
        yield started
    finally:
        started.communicate("\n")


def answer(started: subprocess.Popen[str]) -> dict[str, float]:
    assert started.stdout
    assert started.stderr
    for line in iter(started.stdout.readline, ""):
        if line.startswith("{"):
            measured: dict[str, float] = json.loads(line)
            return measured
    raise QTargetError(f"{SCRIPT.name} failed:\n{started.stderr.read()[-2000:]}")


def one(way: str, rows: Rows, path: Path, folder: Path) -> dict[str, float]:
    with process(way, rows, path, folder) as started:
        return answer(started)


def together(rows: Rows, path: Path, folder: Path, count: int = 2) -> dict[str, float]:
    """What processes that hold the same rows at the same time take, summed."""
    with ExitStack() as held:
        processes = [held.enter_context(process("kept", rows, path, folder)) for _ in range(count)]
        for started in processes:
            answer(started)
        for started in processes:
            assert started.stdin
            started.stdin.write("\n")
            started.stdin.flush()
        measured = [answer(started) for started in processes]
    return {name: sum(each[name] for each in measured) for name in measured[0]}


def measure(rows: Rows) -> tuple[list[Row], int]:
    """Rows of the table, and tokens of the examples. Every round takes every way once."""
    taken: dict[str, list[dict[str, float]]] = {"in memory": [], "the first time": [], "again": []}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "rows.jsonl")
        rows.write(path)
        for number in range(rows.rounds):
            folder = Path(name, f"kept-{number}")
            for label, way in zip(taken, ("memory", "kept", "kept"), strict=True):
                timing.progress(f"(h) round {number + 1}/{rows.rounds}: {label}")
                taken[label].append(one(way, rows, path, folder))
        timing.progress("(h) two processes at once")
        two = together(rows, path, folder)
    timing.progress("")
    tokens = int(taken["again"][0]["tokens"])
    aims = {"in memory": (None, None), "the first time": ("≤ 0.6", "≤ 4"), "again": ("≤ 0.03", "≤ 4")}
    table = [_row(label, taken[label], taken["in memory"], tokens, *aims[label]) for label in taken]
    last: Row = {"preparation": "again, two processes together", **_bytes([two], tokens)}
    return [*table, last], tokens


def _row(
    label: str, mine: Sequence[dict[str, float]], base: Sequence[dict[str, float]], tokens: int, *aims: str | None
) -> Row:
    ratios = [one["seconds"] / other["seconds"] for one, other in zip(mine, base, strict=True)]
    seconds = statistics.median(each["seconds"] for each in mine)
    cpu = statistics.median(each["cpu"] for each in mine)
    times = {"s": seconds, "ratio": statistics.median(ratios), "aim of the ratio": aims[0], "cpu s": cpu}
    return {"preparation": label, **times, **_bytes(mine, tokens), "aim of private bytes": aims[1]}


def _bytes(measured: Sequence[dict[str, float]], tokens: int) -> dict[str, float]:
    names = {
        "private": "private bytes a token",
        "pages": "bytes of file pages a token",
        "share": "all, shared pages once",
    }
    return {said: statistics.median(each[name] for each in measured) / tokens for name, said in names.items()}


def section(quick: bool) -> Section:
    rows = Rows(rows=3000, rounds=1) if quick else Rows()
    table, tokens = measure(rows)
    return Section("h", "Rows that are prepared once", [(caption(rows, tokens), table)])


def caption(rows: Rows, tokens: int) -> str:
    base = "another commit" if BASELINE in os.environ else "this commit with data.keep=false"
    return (
        f"`prepare` of {rows.rows} rows of {tokens / rows.rows:.0f} tokens for {rows.model}, in memory ({base}) and "
        "below QTARGET_CACHE (`data.keep`), each in a process of its own, in turn; medians. Time is without the start "
        "of Python and the tokenizer's loading. Memory is what a process has more once every example was looked at: "
        "anonymous pages are its own, pages of files the machine shares. `cpu` counts all processes of a preparation."
    )
