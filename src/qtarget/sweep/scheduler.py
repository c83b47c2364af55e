"""The points of a sweep as jobs in slots: which runs next, which is stopped early, what came of each.

The folders of the jobs are the state: what has finished, or was stopped, is not run again.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qtarget.config.composing import nearest
from qtarget.errors import QTargetError
from qtarget.files import write_atomically
from qtarget.launch.slots import PAUSE, Job, JobPool, RunningJob, Slot, outcome
from qtarget.record.record import stored_result
from qtarget.record.runs import SETTLED, logged
from qtarget.signals import Stop
from qtarget.states import STATE, discard
from qtarget.sweep.file import Metric, SweepFile
from qtarget.units import in_time

HELDOUT = ("val", "test")
"""What held-out metrics are called during and after training: the same names under both."""
LOOK = 1.0
"""Seconds between looks at what running jobs have logged."""


@dataclass
class SweepPoint:
    """One point, and what became of it. value: the best that its job has logged of the sweep's metric."""

    number: int
    values: Mapping[str, Any]
    job: Job
    state: str = "waiting"
    value: float | None = None
    error: str = ""

    @property
    def settled(self) -> bool:
        """Finished, or stopped by the sweep: not to be run again."""
        result = stored_result(self.job.folder)
        return bool(result and result["status"] in SETTLED and result.get("config_hash") == self.job.identity)

    def to_dict(self) -> dict[str, Any]:
        known = {key: value for key, value in asdict(self).items() if key != "job"}
        return {**known, "folder": str(self.job.folder)}


@dataclass(frozen=True)
class Measured:
    """What a job has logged. names: all its metrics. history: the sweep's own, by step, NaN for what was no finite
    number. closing: after training.
    """

    names: frozenset[str]
    history: tuple[float, ...]
    closing: float | None

    @classmethod
    def of(cls, folder: Path, metric: str) -> Measured:
        lines = list(logged(folder / "metrics.jsonl"))
        closing = (stored_result(folder) or {}).get("metrics") or {}
        names = frozenset(name for line in (*lines, closing) for name in line) - {"step", "time"}
        by_step = {
            line["step"]: math.nan if line[metric] is None else line[metric] for line in lines if metric in line
        }  # a resumed run repeats
        return cls(names, tuple(by_step[step] for step in sorted(by_step)), closing.get(metric))

    @property
    def values(self) -> list[float]:
        """The finite ones, of which one is the best."""
        held = [*self.history, *([] if self.closing is None else [self.closing])]
        return [value for value in held if math.isfinite(value)]


@dataclass
class SweepScheduler:
    """proposals: the points in order, which a Bayesian search makes up one by one. tell: who wants to know of results.

    total: how many there will be. save: called whenever a point has changed.
    """

    file: SweepFile
    proposals: Iterator[SweepPoint]
    points: list[SweepPoint]
    tell: Callable[[SweepPoint], None]
    total: int
    save: Callable[[], None]
    _held: SweepPoint | None = None
    _metric_seen: bool = False
    _histories: dict[str, tuple[float, ...]] = field(default_factory=dict)
    _began: dict[int, float] = field(default_factory=dict)
    _seconds: list[float] = field(default_factory=list)

    @property
    def metric(self) -> Metric | None:
        return self.file.metric

    def run(self, places: Sequence[Slot], retry: int = 0) -> None:
        """Until every point is settled, or failed. Raises QTargetError where no job logs the metric."""
        looked = 0.0
        for point in self.points:  # early stopping judges by all runs that have come so far
            if point.settled:
                self._measured(point)
        with Stop(), JobPool(places, self.total, retry) as pool:
            while self._fill(pool) or pool.running:
                for running_job, code in pool.reap():
                    self._seconds.append(time.monotonic() - self._began[running_job.number])
                    self._close(self._point(running_job), code)
                    self._say(len(places))
                if time.monotonic() - looked > LOOK:
                    looked = time.monotonic()
                    self._look(pool.running)
                time.sleep(PAUSE)

    def _fill(self, pool: JobPool) -> bool:
        """Start what there are free slots for; False once nothing is left to start."""
        while pool.free:
            point = self._next(pool)
            if point is None:
                return self._held is not None
            self._began[point.number] = time.monotonic()
            point.state = "running"
            pool.start(point.number, point.job)
            self.save()
        return True

    def _next(self, pool: JobPool) -> SweepPoint | None:
        """The next point that has to run: settled ones are only noted, one whose twin is running waits for it."""
        while point := self._held or next(self.proposals, None):
            self._held = None
            if any(running_job.job.folder == point.job.folder for running_job in pool.running):
                self._held = point
                return None
            if not point.settled:
                return point
            self._close(point, 0)
        return None

    def _point(self, running_job: RunningJob) -> SweepPoint:
        return next(point for point in self.points if point.number == running_job.number)

    def _close(self, point: SweepPoint, code: int) -> None:
        """Note what became of a point, and tell the search."""
        if point.error and not point.job.finished:
            _record_stop(point.job, point.error)
        measured = self._measured(point)
        if point.settled:
            result = stored_result(point.job.folder) or {}
            point.state, point.error = result["status"], str(result.get("error") or "")
            self._require_metric(measured.names)
            self.tell(point)
        else:
            point.state, point.error = "failed", outcome(point.job, code).error
        self.save()

    def _measured(self, point: SweepPoint) -> Measured:
        """What the job has logged so far, noted."""
        measured = Measured.of(point.job.folder, self.metric.name if self.metric else "")
        if self.metric and measured.values:
            point.value = self.metric.best(measured.values)
        if self.metric and (measured.history or measured.values):
            self._metric_seen = True
            self._histories[str(point.job.folder)] = tuple(map(self.metric.lower_is_better, measured.history))
        return measured

    # While jobs run

    def _look(self, running: Sequence[RunningJob]) -> None:
        """Does any job log the metric, and has any to be stopped?"""
        if self.metric is None or (self._metric_seen and self.file.stopping is None):
            return
        for running_job in running:
            names = self._measured(self._point(running_job)).names
            heldout = {name.removeprefix("val/") for name in names if name.startswith("val/")}
            if heldout and self.metric.name.partition("/")[0] in HELDOUT:
                self._require_metric(names | {f"test/{name}" for name in heldout})
        for running_job in running:
            self._stop_if_bad(running_job)

    def _require_metric(self, names: frozenset[str]) -> None:
        """Raise where a job that has logged these names should have logged the sweep's metric, and hasn't."""
        if self.metric is None or self.metric.name in names or self._metric_seen:
            return
        raise QTargetError(
            f"{self.file.path}: no run logs the metric {self.metric.name!r}{nearest(self.metric.name, names)}. Change "
            "metric.name and give the command again: what has finished is kept"
        )

    def _stop_if_bad(self, running_job: RunningJob) -> None:
        """By the file's early_terminate."""
        name = str(running_job.job.folder)
        if self.file.stopping is None or running_job.kill_deadline is not None or name not in self._histories:
            return
        reason = self.file.stopping.condemned(name, self._histories)
        if reason is not None:
            self._point(running_job).error = f"stopped by the sweep: {reason}"
            running_job.ask_to_stop()

    def leave(self) -> None:
        """Write down that nothing runs any more."""
        for point in self.points:
            point.state = "waiting" if point.state == "running" else point.state
        self.save()

    # What is said of it

    def ranked(self) -> list[SweepPoint]:
        """Settled points that have a value, best first; stopped ones too, by their best until then."""
        metric = self.metric
        if metric is None:
            return []
        valued = [(metric.lower_is_better(one.value), one) for one in self.points if one.value is not None]
        return [one for _, one in sorted(valued, key=lambda pair: pair[0]) if one.state in SETTLED]

    def without_value(self) -> list[SweepPoint]:
        """Settled points that have none: the metric was never a finite number, or never measured."""
        return [one for one in self.points if one.value is None and one.state in SETTLED]

    def _say(self, places: int) -> None:
        """How many are done, the best so far, and the time that is left at the pace until now."""
        left = sum(point.state in ("waiting", "running") for point in self.points) + self.total - len(self.points)
        parts = [f"{self.total - left} of {self.total} points done"]
        if (best := self.ranked()) and self.metric:
            parts.append(f"best {self.metric.name} {best[0].value:.5g} at {best[0].job.label}")
        if left:
            each = sum(self._seconds) / len(self._seconds)
            parts.append(f"about {in_time(each * math.ceil(left / places))} left")
        print(f"{self.file.name}: {'; '.join(parts)}", file=sys.stderr, flush=True)


def _record_stop(job: Job, reason: str) -> None:
    """The record of a job that the sweep has stopped, whatever it could write itself."""
    result = stored_result(job.folder) or {}
    step = max((line["step"] for line in logged(job.folder / "metrics.jsonl")), default=0)
    stopped = {"status": "stopped", "config_hash": job.identity, "stopped_at_step": step, "error": reason}
    write_atomically(job.folder / "result.json", json.dumps(result | stopped, indent=1, ensure_ascii=False))
    discard(job.folder / STATE)
