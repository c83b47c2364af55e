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
from qtarget.progress import TimeLeft
from qtarget.record.record import stored_result
from qtarget.record.runs import SETTLED, logged
from qtarget.resume_folders import STATE, discard
from qtarget.signals import Stop
from qtarget.sweep.file import Metric, SweepFile

HELDOUT = ("val", "test")
"""What held-out metrics are called during and after training: the same names under both."""
CHECK_SECONDS = 1.0
"""Seconds between looks at what running jobs have logged."""


@dataclass
class SweepPoint:
    """One point, and what became of it.

    value: the best that its job has logged of the sweep's metric. error: of one that has ended. stop_reason: why early
    stopping has asked its job, which still runs, to end.
    """

    number: int
    values: Mapping[str, Any]
    job: Job
    state: str = "waiting"
    value: float | None = None
    error: str = ""
    stop_reason: str = ""

    @property
    def settled(self) -> bool:
        """Finished, or stopped by the sweep: not to be run again."""
        return self.job.status in SETTLED

    def to_dict(self) -> dict[str, Any]:
        """As `sweep.json` has it."""
        kept = {key: value for key, value in asdict(self).items() if key not in ("job", "stop_reason")}
        return {**kept, "folder": str(self.job.folder)}


@dataclass(frozen=True)
class Measured:
    """What a job has logged.

    names: all its metrics. history: the sweep's own metric by step, NaN where it was no finite number; of `val/…` the
    first is the untrained model's. closing: the same after training.
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
        closing = [] if self.closing is None else [self.closing]
        return [value for value in (*self.history, *closing) if math.isfinite(value)]


@dataclass
class SweepScheduler:
    """Runs the points of a sweep.

    proposals: the points in order; a Bayesian search makes them up one by one, from the results so far. points: those
    proposed so far. total: how many there will be.
    save: called whenever a point has changed. report_result: called with each point that has its result; None where
    proposals don't depend on results.
    """

    file: SweepFile
    proposals: Iterator[SweepPoint]
    points: list[SweepPoint]
    total: int
    save: Callable[[], None]
    report_result: Callable[[SweepPoint], None] | None = None
    _next_point: SweepPoint | None = None
    _metric_seen: bool = False
    _histories: dict[str, tuple[float, ...]] = field(default_factory=dict)
    _counted: set[int] = field(default_factory=set)

    @property
    def metric(self) -> Metric | None:
        return self.file.metric

    def run(self, slots: Sequence[Slot], retry: int = 0) -> None:
        """Until every point is settled, or failed. Raises QTargetError where no job logs the metric."""
        last_check = 0.0
        for point in self.points:  # early stopping judges by all runs that have come so far
            if point.settled:
                self._measure(point)
                self._counted.add(point.number)
        time_left = TimeLeft(self.total - len(self._counted), len(slots))
        with Stop(), JobPool(slots, self.total, retry, time_left) as pool:
            while True:
                self._fill(pool)
                if not pool.running:  # with free slots and nothing running, nothing is left to start
                    return
                for running_job, code in pool.reap():
                    self._close(self._point(running_job), code)
                    self._print_progress(time_left)
                if time.monotonic() - last_check > CHECK_SECONDS:
                    last_check = time.monotonic()
                    self._check_running(pool.running)
                time.sleep(PAUSE)

    def _fill(self, pool: JobPool) -> None:
        """Start points while there is a free slot and a point that may run."""
        while pool.free and (point := self._take_next(pool)):
            point.state = "running"
            pool.start(point.number, point.job)
            self.save()

    def _take_next(self, pool: JobPool) -> SweepPoint | None:
        """The next point that has to run, None where there is none for now.

        A settled one is only noted. One of the same configuration as a running job waits for its end.
        """
        while point := self._next_point or next(self.proposals, None):
            self._next_point = point
            if any(running_job.job.folder == point.job.folder for running_job in pool.running):
                return None
            self._next_point = None
            if not point.settled:
                return point
            self._pass_by(point, pool)
        return None

    def _pass_by(self, point: SweepPoint, pool: JobPool) -> None:
        """A point that needs no run. One that a search proposes anew takes none of the time that is left."""
        self._close(point, 0)
        if pool.time_left and point.number not in self._counted:
            pool.time_left.left -= 1

    def _point(self, running_job: RunningJob) -> SweepPoint:
        return next(point for point in self.points if point.number == running_job.number)

    def _close(self, point: SweepPoint, code: int) -> None:
        """Note what became of a point, and report it."""
        if point.stop_reason and not point.job.finished:
            _record_stop(point.job, point.stop_reason)
        measured = self._measure(point)
        if point.settled:
            result = stored_result(point.job.folder) or {}
            point.state, point.error = result["status"], str(result.get("error") or "")
            self._require_metric(measured.names)
            if self.report_result:
                self.report_result(point)
        else:
            point.state, point.error = "failed", outcome(point.job, code).error
        self.save()

    def _measure(self, point: SweepPoint) -> Measured:
        """What the job has logged so far, noted."""
        measured = Measured.of(point.job.folder, self.metric.name if self.metric else "")
        if self.metric and measured.values:
            point.value = self.metric.best(measured.values)
        if self.metric and (measured.history or measured.values):
            self._metric_seen = True
            self._histories[str(point.job.folder)] = tuple(map(self.metric.lower_is_better, measured.history))
        return measured

    # While jobs run

    def _check_running(self, running: Sequence[RunningJob]) -> None:
        """Raise where no job logs the metric; ask those to stop that early stopping gives up."""
        if self.metric is None or (self._metric_seen and self.file.stopping is None):
            return
        for running_job in running:
            names = self._measure(self._point(running_job)).names
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
        reason = self.file.stopping.stop_reason(name, self._histories)
        if reason is not None:
            self._point(running_job).stop_reason = f"stopped by the sweep: {reason}"
            running_job.ask_to_stop()

    def save_ended(self) -> None:
        """Save that nothing runs any more."""
        for point in self.points:
            point.state = "waiting" if point.state == "running" else point.state
        self.save()

    # The results

    def ranked(self) -> list[SweepPoint]:
        """Settled points that have a value, best first; stopped ones too, by their best until then."""
        metric = self.metric
        if metric is None:
            return []
        scored = [(metric.lower_is_better(point.value), point) for point in self.points if point.value is not None]
        return [point for _, point in sorted(scored, key=lambda pair: pair[0]) if point.state in SETTLED]

    def without_value(self) -> list[SweepPoint]:
        """Settled points that have none: the metric was never a finite number, or never measured."""
        return [point for point in self.points if point.value is None and point.state in SETTLED]

    def _print_progress(self, time_left: TimeLeft) -> None:
        """How many are done, the best so far, and the time that is left at the pace until now."""
        left = sum(point.state in ("waiting", "running") for point in self.points) + self.total - len(self.points)
        parts = [f"{self.total - left} of {self.total} points done{time_left}"]
        if (best := self.ranked()) and self.metric:
            parts.append(f"best {self.metric.name} {best[0].value:.5g} at {best[0].job.label}")
        print(f"{self.file.name}: {'; '.join(parts)}", file=sys.stderr, flush=True)


def _record_stop(job: Job, reason: str) -> None:
    """The record of a job that the sweep has stopped, whatever it could write itself."""
    result = stored_result(job.folder) or {}
    step = max((line["step"] for line in logged(job.folder / "metrics.jsonl")), default=0)
    stopped = {"status": "stopped", "config_hash": job.identity, "stopped_at_step": step, "error": reason}
    write_atomically(job.folder / "result.json", json.dumps(result | stopped, indent=1, ensure_ascii=False))
    discard(job.folder / STATE)
