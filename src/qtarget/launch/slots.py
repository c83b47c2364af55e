"""Jobs of a multirun, a process each, as many at once as there are slots: a CUDA device each, or a share of the cores.

A job that crashes, or is killed for memory, costs itself and no other.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from qtarget import checks
from qtarget.config.composing import search_path
from qtarget.config.identity import job_hash
from qtarget.errors import QTargetError
from qtarget.launch.fork_server import ForkedJob, ForkServer, ServerLostError, can_serve
from qtarget.launch.outcome import Outcome
from qtarget.progress import TimeLeft
from qtarget.record.record import make_folder, stored_result
from qtarget.signals import GRACE, LIFELINE, Stop

LOG = "log.txt"
BAD_INPUT = 2
"""Exit code of a command whose user has something to mend."""
PAUSE = 0.1
"""Seconds between looks at the jobs that run."""


@dataclass(frozen=True)
class Slot:
    """Where one job runs: the environment that shows it its device, and the cores it may use (empty: all)."""

    name: str
    environment: dict[str, str]
    cores: tuple[int, ...] = ()

    @property
    def threads(self) -> int:
        return len(self.cores)


COMPOSED_AS = "composed-as-"
"""Begins the hydra.job.id of a job with a process of its own, which composes it anew: its identity stands behind it."""


def check_composed_alike(config: Mapping[str, Any], job_id: str | None) -> None:
    """Raise QTargetError in the process of a job that is another one than when its multirun began.

    job_id: as the job's command sets it; None in a process that no multirun started.
    """
    if job_id and job_id.startswith(COMPOSED_AS) and job_id != f"{COMPOSED_AS}{job_hash(config)}":
        raise QTargetError(
            "what makes this job (yaml files, code of your own, data or a model) has changed since its multirun began, "
            "and it would be another job. Undo the change, or keep it, and give the command again: of the finished "
            "jobs those that are the same are kept"
        )


@dataclass(frozen=True)
class Job:
    """One configuration of a multirun: its folder, its identity, the overrides that make it, and what to call it."""

    folder: Path
    identity: str
    overrides: tuple[str, ...]
    name: str = ""
    search_folders: tuple[str, ...] = ()
    """Folders of the user's, beside ./conf, where its configurations are found."""

    @classmethod
    def from_config(cls, config: Mapping[Any, Any], overrides: Sequence[str]) -> Job:
        """The job of a composed configuration, with Hydra's own settings."""
        hydra = config["hydra"]
        folder = Path(hydra["sweep"]["dir"], hydra["sweep"]["subdir"])
        return cls(folder, job_hash(config), tuple(overrides), search_folders=tuple(hydra.get("searchpath") or ()))

    @property
    def label(self) -> str:
        return self.name or " ".join(self.overrides) or "defaults"

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "qtarget", *self.arguments]

    @property
    def arguments(self) -> list[str]:
        """Of the command `qtarget`."""
        composed_as = f"hydra.job.id={COMPOSED_AS}{self.identity}"
        one_run = ["hydra.mode=RUN", "hydra/launcher=basic", f"hydra.run.dir='{self.folder}'", composed_as]
        search = [search_path(self.search_folders)] if self.search_folders else []
        return ["train", *self.overrides, *search, *one_run]

    @property
    def status(self) -> str | None:
        """Of this very configuration, as its record has it; None where there is no record of it."""
        result = stored_result(self.folder) or {}
        return str(result["status"]) if result.get("config_hash") == self.identity else None

    @property
    def finished(self) -> bool:
        return self.status == "finished"


def make_slots(count: int | None, devices: Sequence[int] | None) -> list[Slot]:
    """`count` slots, or one a device; a CUDA device may be shared by several, cores are dealt out evenly."""
    if count is not None:
        checks.whole("hydra.launcher.slots", count, 1)
    visible = _visible_devices()
    used = visible if devices is None else _select_devices(devices, visible)
    total = count or len(used) or 1
    if used:
        return [_on_device(used[index % len(used)], index) for index in range(total)]
    return [_on_cores(index, total) for index in range(total)]


def _select_devices(devices: Sequence[int], visible: Sequence[str]) -> list[str]:
    """Of the CUDA devices that this process may use, those of these numbers."""
    if isinstance(devices, int | str) or not all(type(device) is int for device in devices):
        raise QTargetError(f"hydra.launcher.devices is a list of CUDA devices, such as [0, 1], got {devices!r}")
    if not devices:
        raise QTargetError("hydra.launcher.devices is empty: name CUDA devices, such as [0, 1], or leave it null")
    absent = [device for device in devices if not 0 <= device < len(visible)]
    if absent:
        usable = f"the numbers 0 to {len(visible) - 1}" if visible else "no CUDA devices"
        raise QTargetError(f"there is no CUDA device {_joined(absent)} here: this process may use {usable}")
    return [visible[device] for device in devices]


def _visible_devices() -> list[str]:
    """The CUDA devices that this process may use, by the names CUDA_VISIBLE_DEVICES takes."""
    import torch  # seconds

    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return shown.split(",")[:count] if shown else [str(index) for index in range(count)]


def _on_device(device: str, index: int) -> Slot:
    return Slot(f"slot {index}, device {device}", {"CUDA_VISIBLE_DEVICES": device})


def _on_cores(index: int, total: int) -> Slot:
    """Every total-th of the cores this process may use; more slots than cores share them."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    mine = tuple(cores[index::total]) or (cores[index % len(cores)],)
    return Slot(f"slot {index}, core{'s' * (len(mine) > 1)} {_joined(mine)}", {"OMP_NUM_THREADS": str(len(mine))}, mine)


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def start(command: Sequence[str], slot: Slot, log: Path, *, exit_with_parent: bool = False) -> subprocess.Popen[bytes]:
    """A process in a slot, in a session of its own. Its output goes behind what `log` already holds.

    exit_with_parent: for a qtarget command, which ends itself once this process is gone and the pipe to it closes.
    """
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            env=_environment(slot) if exit_with_parent else os.environ | slot.environment,
            stdin=subprocess.PIPE if exit_with_parent else subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )
    if slot.cores and hasattr(psutil.Process, "cpu_affinity"):  # macOS has none: there the threads are counted alone
        with suppress(psutil.NoSuchProcess):
            psutil.Process(process.pid).cpu_affinity(list(slot.cores))
    return process


def _environment(slot: Slot) -> dict[str, str]:
    """Of a qtarget command that ends with this process."""
    return os.environ | slot.environment | {LIFELINE: "1"}


@dataclass
class JobStarter:
    """Starts jobs in slots. Several jobs without a device are forked: from one server for each number of threads."""

    slots: Sequence[Slot]
    forks: bool
    servers: dict[int, ForkServer] = field(default_factory=dict)

    @classmethod
    def of(cls, slots: Sequence[Slot], total: int) -> JobStarter:
        return cls(slots, total > 1 and can_serve() and all(slot.cores for slot in slots))

    def start(self, job: Job, slot: Slot) -> subprocess.Popen[bytes] | ForkedJob:
        log = job.folder / LOG
        try:
            if self.forks:
                return self._fork(job, slot, log)
        except ServerLostError:
            self.forks = False
            print(f"the server that forks jobs has ended, see {self._log}: each job imports anew", file=sys.stderr)
        return start(job.command, slot, log, exit_with_parent=True)

    def _fork(self, job: Job, slot: Slot, log: Path) -> ForkedJob:
        with log.open("ab") as out:
            for other in self.slots:
                if other.threads not in self.servers:
                    self.servers[other.threads] = ForkServer(_environment(other), out)
            return self.servers[slot.threads].start(job.arguments, slot.cores, out)

    @property
    def _log(self) -> str:
        return next(iter(self.servers.values())).log

    def close(self) -> None:
        for server in self.servers.values():
            server.close()


def run_jobs(jobs: Sequence[Job], slots: Sequence[Slot], retry: int = 0) -> list[Outcome]:
    """Run all, each in the next slot that is free; what became of them, in the order of the jobs.

    Finished ones are not run again. Ctrl-C or SIGTERM stops those that run and starts no other.
    """
    checks.whole("hydra.launcher.retry", retry, 0)
    outcomes: dict[int, Outcome] = {}
    waiting = deque(enumerate(jobs))
    time_left = TimeLeft(sum(not job.finished for job in jobs), len(slots))
    with Stop(), JobPool(slots, len(jobs), retry, time_left) as pool:
        while waiting or pool.running:
            while waiting and pool.free:
                number, job = waiting.popleft()
                if job.finished:
                    pool.say(number, job, "finished already")
                    outcomes[number] = Outcome(job.folder, job.label)
                else:
                    pool.start(number, job)
            outcomes |= {running_job.number: outcome(running_job.job, code) for running_job, code in pool.reap()}
            time.sleep(PAUSE)
    return [outcomes[number] for number in range(len(jobs))]


def say(number: int, total: int, job: Job, what: str, left: TimeLeft | str = "") -> None:
    """left: `TimeLeft` of all jobs."""
    print(f"job {number + 1} of {total}{left}: {what}: {job.label}  →  {job.folder}", file=sys.stderr, flush=True)


@dataclass(eq=False)
class RunningJob:
    """A job that runs, and where.

    tries: how often it may start again. kill_deadline: of time.monotonic(), once it is asked to stop.
    """

    number: int
    job: Job
    slot: Slot
    process: subprocess.Popen[bytes] | ForkedJob
    tries: int
    kill_deadline: float | None = None
    began: float = field(default_factory=time.monotonic)

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the job and to processes of its own, once."""
        if self.kill_deadline is None:
            self.kill_deadline = time.monotonic() + GRACE
            _signal(self.process, signal.SIGTERM)

    def kill_if_overdue(self) -> None:
        """Send SIGKILL where it was asked to stop and has had its time."""
        if self.kill_deadline is not None and time.monotonic() > self.kill_deadline:
            _signal(self.process, signal.SIGKILL)


@dataclass
class JobPool:
    """The slots, and the jobs that run in them. Leaving it ends those that still do.

    total: how many jobs there are, and time_left until all have ended, for what is said of them.
    """

    slots: Sequence[Slot]
    total: int
    retry: int = 0
    time_left: TimeLeft | None = None
    running: list[RunningJob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._starter = JobStarter.of(self.slots, self.total)

    def __enter__(self) -> JobPool:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self._starter.close()

    @property
    def free(self) -> bool:
        return len(self.running) < len(self.slots)

    def start(self, number: int, job: Job) -> None:
        """In the first slot that is free."""
        make_folder(job.folder)
        taken = {id(running_job.slot) for running_job in self.running}
        slot = next(slot for slot in self.slots if id(slot) not in taken)
        self._launch(number, job, slot, self.retry)

    def _launch(self, number: int, job: Job, slot: Slot, tries: int) -> None:
        self.say(number, job, f"starts in {slot.name}")
        process = self._starter.start(job, slot)
        self.running.append(RunningJob(number, job, slot, process, tries))

    def reap(self) -> list[tuple[RunningJob, int]]:
        """Jobs that have ended since the last call, with exit codes.

        One that crashed and has tries left starts again instead. One that was asked to stop and is overdue is killed.
        """
        ended: list[tuple[RunningJob, int]] = []
        for running_job in list(self.running):
            code = running_job.process.poll()
            if code is None:
                running_job.kill_if_overdue()
                continue
            self._forget(running_job)
            again = running_job.tries and code not in (0, BAD_INPUT) and running_job.kill_deadline is None
            if self.time_left and not again:
                self.time_left.ended(time.monotonic() - running_job.began)
            self._say_ended(running_job, code)
            if again:
                _signal(running_job.process, signal.SIGKILL)  # what it has left would hold the device
                self._launch(running_job.number, running_job.job, running_job.slot, running_job.tries - 1)
            else:
                ended.append((running_job, code))
        return ended

    def _say_ended(self, running_job: RunningJob, code: int) -> None:
        if running_job.kill_deadline is None:
            how = "finished" if code == 0 else f"FAILED ({exit_code_in_words(code)})"
            self.say(running_job.number, running_job.job, how)

    def say(self, number: int, job: Job, what: str) -> None:
        say(number, self.total, job, what, self.time_left or "")

    def stop(self) -> None:
        """Ask every job to stop, its own processes too; kill those that are overdue."""
        for running_job in self.running:
            running_job.ask_to_stop()
        for running_job in list(self.running):
            while running_job.process.poll() is None:
                running_job.kill_if_overdue()
                time.sleep(PAUSE)
            self._forget(running_job)

    def _forget(self, running_job: RunningJob) -> None:
        assert running_job.process.stdin is not None
        running_job.process.stdin.close()
        self.running.remove(running_job)


def _signal(process: subprocess.Popen[bytes] | ForkedJob, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def outcome(job: Job, code: int) -> Outcome:
    """What became of a job, by its exit code and its record."""
    if code == 0 and job.finished:
        return Outcome(job.folder, job.label)
    return Outcome(job.folder, job.label, _last_words(job, exit_code_in_words(code)), is_input=code == BAD_INPUT)


def outcome_without_code(job: Job, how: str) -> Outcome:
    """The same of a job that has left no exit code. how: in words, how it ended."""
    return Outcome(job.folder, job.label, "" if job.finished else _last_words(job, how))


def _last_words(job: Job, how: str) -> str:
    stored = stored_result(job.folder) or {}
    return str(stored.get("error") or f"{how}; its last words are in {job.folder / LOG}")


def exit_code_in_words(code: int) -> str:
    """An exit code in words; launchers and shells report a signal as 128 + its number."""
    number = -code if code < 0 else code - 128
    names = {known.value: known.name for known in signal.Signals}
    if number not in names:
        return f"exit code {code}"
    return f"killed by {names[number]}" + " (out of memory?)" * (names[number] == "SIGKILL")
