"""What a multirun says: which of its jobs can't run, before the first one does; how far it is; what came of it."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from omegaconf.errors import OmegaConfBaseException

from qtarget.errors import QTargetError
from qtarget.launch.outcome import Outcome
from qtarget.measures import direction
from qtarget.progress import TimeLeft
from qtarget.uncollected import uncollected
from qtarget.units import in_time

if TYPE_CHECKING:
    from pathlib import Path

    from qtarget.compare.formats import Table
    from qtarget.config.run_config import RunConfig
    from qtarget.run.disk import DiskUse


@dataclass(frozen=True)
class CheckedJob:
    """error: why it can't run, in words; finished: its result is there; disk: what it writes, where that is known;
    config: as it was composed, where it runs.
    """

    error: str = ""
    finished: bool = False
    disk: DiskUse | None = None
    config: RunConfig | None = None

    @property
    def runs(self) -> bool:
        """Whether it takes time."""
        return not self.error and not self.finished


class JobChecks:
    """What composing a multirun's jobs shows of each: Hydra's sweeper composes all of them before it launches any.

    Each is composed once. Hydra's launcher would compose it again when its turn comes, from files as they are then: an
    edit during a multirun would make other jobs of those that are left.
    """

    def __init__(self, context: Any) -> None:
        self._checked: dict[tuple[str, ...], CheckedJob] = {}
        self._composed: dict[tuple[str, ...], bytes] = {}
        self._loader: Any = context.config_loader
        self._compose = self._loader.load_sweep_config
        self._loader.load_sweep_config = self._compose_and_check

    def _compose_and_check(self, master_config: Any, sweep_overrides: list[str]) -> Any:
        key = tuple(sweep_overrides)
        if key not in self._composed:
            composed = self._compose(master_config, sweep_overrides)
            self._composed[key] = pickle.dumps(composed)  # a twentieth of what it takes as objects
            self._checked[key] = _check(composed, sweep_overrides)
        return pickle.loads(self._composed[key])

    def of(self, config: Any, jobs: Sequence[Sequence[str]]) -> list[CheckedJob]:
        """In their order; sweepers of others may not have composed them yet."""
        for overrides in jobs:
            if tuple(overrides) not in self._checked:
                self._compose_and_check(config, list(overrides))
        return [self._checked[tuple(overrides)] for overrides in jobs]


def _check(composed: Any, overrides: Sequence[str]) -> CheckedJob:
    """All that can be told before data is read. A finished job is returned whatever this build makes of it."""
    from qtarget.config.run_config import RunConfig
    from qtarget.launch.slots import Job

    try:
        if Job.from_config(composed, overrides).finished:
            return CheckedJob(finished=True)
        cfg = RunConfig.read(composed)
        with uncollected():
            from qtarget.run.disk import disk_use
            from qtarget.run.plan import check_design  # torch comes in here, where no other key is wrong
            from qtarget.run.ranks import check_devices

        check_devices(cfg.trainer)
        design, _ = check_design(cfg)
    except QTargetError as error:
        return CheckedJob(str(error))
    except OmegaConfBaseException:  # as of what only a running job can resolve: the job itself will tell
        return CheckedJob()
    try:
        return CheckedJob(disk=disk_use(cfg, design), config=cfg)
    except QTargetError:  # a model that this machine lacks: the job itself will tell
        return CheckedJob(config=cfg)


@dataclass
class Announcer:
    """Of the jobs of one multirun, in the process that launches them."""

    labels: list[str]
    checked: list[CheckedJob]
    time_left: TimeLeft
    points: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, jobs: Sequence[Sequence[str]], checked: Sequence[CheckedJob]) -> Announcer:
        points = [dict(override.partition("=")[::2] for override in job) for job in jobs]
        return cls(distinct_labels(jobs), list(checked), TimeLeft(sum(job.runs for job in checked)), points)

    def say_what_cannot_run(self) -> None:
        """Where some jobs can: those that can't will fail in their turn, and the rest is worth its time or not."""
        wrong = [(n, job.error) for n, job in enumerate(self.checked) if job.error]
        total = len(self.checked)
        if not wrong or len(wrong) == total or not speaks():
            return
        for number, error in wrong:
            print(f"job {number + 1} of {total} can't run: {self.labels[number]}: {error}", file=sys.stderr)
        print(f"the other {total - len(wrong)} go on; Ctrl-C stops them", file=sys.stderr)

    def say_what_is_written(self, folder: Path) -> None:
        """By the jobs that are still to run. folder: of results."""
        from qtarget.run.disk import total_in_words

        uses = [job.disk for job in self.checked if job.disk]
        if uses and speaks():
            print(total_in_words(uses, folder))

    def say_what_a_choice_lacks(self) -> None:
        """Where jobs differ in a learning rate or the like: a choice among them has to be prepared."""
        from qtarget.compare.selection import choice_hint

        config = next((job.config for job in self.checked if job.config), None)
        if config is None or not speaks():
            return
        if hint := choice_hint(self.points, config.eval.test_on, config.trainer.eval_every):
            print(hint)

    def begins(self, number: int) -> str:
        """job 7 of 36, 12 min left: target=dft seed=2"""
        return f"job {number + 1} of {len(self.labels)}{self.time_left}: {self.labels[number]}"

    def ended(self, number: int, seconds: float) -> None:
        if self.checked[number].runs:
            self.time_left.ended(seconds)


def speaks() -> bool:
    """Whether this process is rank 0, or the only one, of those that torchrun or srun started."""
    from qtarget.run.environment import environment

    started = environment()
    return started is None or started.global_rank() == 0


def distinct_labels(jobs: Sequence[Sequence[str]]) -> list[str]:
    """The overrides of each job that not all jobs have."""
    shared = set.intersection(*map(set, jobs)) if jobs else set()
    return [" ".join(one for one in job if one not in shared) or "defaults" for job in jobs]


def results_table(outcomes: Sequence[Outcome]) -> Table | None:
    """What finished jobs gave; None of fewer than 2. The best comes first: by accuracy, then by nll."""
    done = [outcome for outcome in outcomes if not outcome.error]
    if len(done) < 2:
        return None
    from qtarget.compare.columns import columns_of
    from qtarget.compare.formats import Table
    from qtarget.compare.sweeps import usual_metric
    from qtarget.record.runs import read_run

    now = datetime.now(UTC)
    runs = [read_run(outcome.folder, now) for outcome in done]
    metric = usual_metric(runs)
    sign = -1 if direction(metric) == "max" else 1
    labels = dict(zip((run.folder for run in runs), distinct_labels([run.overrides for run in runs]), strict=True))
    worst = float("inf")
    runs.sort(key=lambda run: (sign * run.metrics.get(metric, sign * worst), run.metrics.get("test/nll", worst)))
    columns = [column for column in columns_of(runs) if column.group == "result" and column.numeric]
    titles = ["job", *(column.title for column in columns), "training"]
    lines = [[labels[run.folder], *(column.text(run) for column in columns), _time(run.metrics)] for run in runs]
    return Table(titles, lines, [False, *[True] * (len(titles) - 1)], title=f"Results, best {metric} first")


def _time(metrics: Mapping[str, float]) -> str:
    seconds = metrics.get("train/seconds")
    return "–" if seconds is None else in_time(seconds)


def print_results(outcomes: Sequence[Outcome]) -> None:
    from qtarget.compare.formats import terminal

    with suppress(QTargetError, OSError):  # a table that fails takes nothing from what has been done
        if table := results_table(outcomes):
            terminal().print(table.rich())
