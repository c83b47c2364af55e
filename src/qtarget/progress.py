"""How far a long piece of work is: a bar on a terminal, a line now and then elsewhere; both with a rate and an ETA."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from qtarget.units import in_time

SILENCE = 20.0
"""Seconds between lines where there is no terminal."""


class Progress:
    """`total` units of work called `unit`; on standard error."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self._bar = _bar()
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

    def update(self, done: int, measured: str = "") -> None:
        """measured: what else there is to say, on a line below the bar, or behind what a line says."""
        now = time.perf_counter()
        rate = (done - self._before) / max(now - self._started, 1e-9)
        rate_text = f"{rate:.{0 if rate > 100 else 2}f} {self.unit}/s"
        if self._task is not None:
            self._bar.measured = measured
            self._bar.update(self._task, completed=done, rate=rate_text)
        elif now - self._said > SILENCE or done == self.total:
            self._said = now
            left = (self.total - done) / max(rate, 1e-9)
            line = f"{self.title}: {self.unit} {done}/{self.total}, {rate_text}, {left:.0f} s left"
            print("; ".join([line, measured] if measured else [line]), file=sys.stderr)

    def stop(self) -> None:
        if self._task is not None:
            self._bar.stop()


def _bar() -> Any:
    """Rich's bar, with a line of text below it; rich is imported where something is shown."""
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Bar(Progress):
        measured = ""

        def get_renderables(self) -> Iterable[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            if self.measured:
                yield Text(self.measured, style="dim", no_wrap=True, overflow="ellipsis")

    columns = (MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    console = Console(stderr=True)
    return Bar(TextColumn("{task.description}"), BarColumn(), *columns, console=console, transient=True)


@dataclass
class TimeLeft:
    """How long it takes until all jobs have ended, from how long those took that ran. left: how many haven't ended."""

    left: int
    at_once: int = 1
    _seconds: list[float] = field(default_factory=list)

    def ended(self, seconds: float) -> None:
        self.left -= 1
        self._seconds.append(seconds)

    def __str__(self) -> str:
        """Behind other words; empty before a job has ended, and where none is left."""
        if not self._seconds or self.left <= 0:
            return ""
        mean = sum(self._seconds) / len(self._seconds)
        return f", {in_time(mean * max(1.0, self.left / self.at_once))} left"
