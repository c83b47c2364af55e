"""How far a long piece of work is: a bar on a terminal, a line now and then elsewhere; both with a rate and an ETA."""

from __future__ import annotations

import sys
import time
from typing import Any

SILENCE = 20.0
"""Seconds between lines where there is no terminal."""


class Progress:
    """`total` units of work called `unit`; on standard error."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.title, self.total, self.unit = title, total, unit
        columns = (MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), *columns, console=Console(stderr=True), transient=True
        )
        self._task: Any = None
        self._started = self._said = time.perf_counter()
        self._before = 0

    def start(self, done: int = 0) -> None:
        """done: what an earlier attempt left, which says nothing of the rate."""
        self._started = self._said = time.perf_counter()
        self._before = done
        if sys.stderr.isatty():
            self._task = self._bar.add_task(self.title, total=self.total, completed=done, rate="")
            self._bar.start()

    def update(self, done: int) -> None:
        now = time.perf_counter()
        rate = (done - self._before) / max(now - self._started, 1e-9)
        said = f"{rate:.{0 if rate > 100 else 2}f} {self.unit}/s"
        if self._task is not None:
            self._bar.update(self._task, completed=done, rate=said)
        elif now - self._said > SILENCE or done == self.total:
            self._said = now
            left = (self.total - done) / max(rate, 1e-9)
            print(f"{self.title}: {self.unit} {done}/{self.total}, {said}, {left:.0f} s left", file=sys.stderr)

    def stop(self) -> None:
        self._bar.stop()
