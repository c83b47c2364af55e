"""Jobs of a multirun, a process each, as many at once as there are slots: a CUDA device each, or a share of the cores.

A job that crashes, or is killed for memory, costs itself and no other.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import psutil
from omegaconf import DictConfig

from qtarget import checks
from qtarget.app.job import config_hash
from qtarget.app.launch import Outcome
from qtarget.errors import QTargetError
from qtarget.stopping import Stop
from qtarget.track.record import make_folder, stored_result

LOG = "log.txt"
BAD_INPUT = 2
"""Exit code of a command whose user has something to mend."""
GRACE = 20.0
"""Seconds between asking a job to stop and making it."""


@dataclass(frozen=True)
class Slot:
    """Where one job runs: the environment that shows it its device, and the cores it may use (empty: all)."""

    name: str
    environment: dict[str, str]
    cores: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """One configuration of a multirun: its folder, its identity and the overrides that make it."""

    folder: Path
    identity: str
    overrides: tuple[str, ...]

    @classmethod
    def of(cls, config: DictConfig, overrides: Sequence[str]) -> Job:
        """The job of a composed configuration."""
        return cls(Path(config.hydra.sweep.dir, config.hydra.sweep.subdir), config_hash(config), tuple(overrides))

    @property
    def label(self) -> str:
        return " ".join(self.overrides) or "defaults"

    @property
    def command(self) -> list[str]:
        here = ["hydra.mode=RUN", "hydra/launcher=basic", f"hydra.run.dir='{self.folder}'"]
        return [sys.executable, "-m", "qtarget", "train", *self.overrides, *here]

    @property
    def finished(self) -> bool:
        result = stored_result(self.folder)
        return bool(result and result["status"] == "finished" and result.get("config_hash") == self.identity)


def slots(count: int | None, devices: Sequence[int] | None) -> list[Slot]:
    """`count` slots, or one a device; a CUDA device may be shared by several, cores are dealt out evenly."""
    if count is not None:
        checks.whole("hydra.launcher.slots", count, 1)
    found = _visible() if devices is None else [str(device) for device in devices]
    if devices is not None and not found:
        raise QTargetError("hydra.launcher.devices is empty: name CUDA devices, such as [0, 1], or leave it null")
    total = count or len(found) or 1
    if found:
        return [_on_device(found[index % len(found)], index) for index in range(total)]
    return [_on_cores(index, total) for index in range(total)]


def _visible() -> list[str]:
    """The CUDA devices that this process may use, by the names CUDA_VISIBLE_DEVICES takes."""
    import torch  # seconds

    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return told.split(",")[:count] if told else [str(index) for index in range(count)]


def _on_device(device: str, index: int) -> Slot:
    return Slot(f"slot {index}, device {device}", {"CUDA_VISIBLE_DEVICES": device})


def _on_cores(index: int, total: int) -> Slot:
    """Every total-th of the cores this process may use; more slots than cores share them."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    mine = tuple(cores[index::total]) or (cores[index % len(cores)],)
    return Slot(f"slot {index}, core{'s' * (len(mine) > 1)} {_listed(mine)}", {"OMP_NUM_THREADS": str(len(mine))}, mine)


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def run_jobs(jobs: Sequence[Job], places: Sequence[Slot], retry: int = 0) -> list[Outcome]:
    """Run all, each in the next slot that is free; what became of them, in the order of the jobs.

    Finished ones are not run again. Ctrl-C or SIGTERM stops those that run and starts no other.
    """
    checks.whole("hydra.launcher.retry", retry, 0)
    with Stop(), _Crew(len(jobs), places, retry) as crew, ThreadPoolExecutor(len(places)) as pool:
        futures = [pool.submit(crew.run, number, job) for number, job in enumerate(jobs)]
        try:
            return [future.result() for future in futures]
        except BaseException:
            crew.stop()
            pool.shutdown(cancel_futures=True)
            raise


@dataclass
class _Crew:
    """The slots, and the processes that run in them."""

    jobs: int
    places: Sequence[Slot]
    retry: int
    free: SimpleQueue[Slot] = field(default_factory=SimpleQueue)
    running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    stopped: bool = False

    def __enter__(self) -> _Crew:
        for place in self.places:
            self.free.put(place)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, number: int, job: Job) -> Outcome:
        """Start a job, again where it crashed, until it has finished or `retry` is used up."""
        if job.finished:
            self._say(number, job, "finished already")
            return Outcome(job.folder, job.label)
        make_folder(job.folder)
        for _ in range(self.retry + 1):
            code = self._attempt(number, job)
            if code in (0, BAD_INPUT) or self.stopped:
                break
        return _outcome(job, code)

    def _attempt(self, number: int, job: Job) -> int:
        with self._slot() as place:
            self._say(number, job, f"starts in {place.name}")
            code = self._process(job, place)
        self._say(number, job, "finished" if code == 0 else f"FAILED ({_told(code)})")
        return code

    @contextmanager
    def _slot(self) -> Iterator[Slot]:
        place = self.free.get()
        try:
            yield place
        finally:
            self.free.put(place)

    def _process(self, job: Job, place: Slot) -> int:
        if self.stopped:
            return -signal.SIGTERM
        with (job.folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                job.command,
                env=os.environ | place.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
            )
            self.running.add(process)
            try:
                if place.cores:
                    psutil.Process(process.pid).cpu_affinity(list(place.cores))
                return process.wait()
            finally:
                self.running.discard(process)

    def _say(self, number: int, job: Job, what: str) -> None:
        print(f"[{number + 1}/{self.jobs}] {what}: {job.label}  →  {job.folder}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Ask every job to stop, its own processes too; make those that don't."""
        self.stopped = True
        held = list(self.running)
        for process in held:
            _signal(process, signal.SIGTERM)
        for process in held:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _outcome(job: Job, code: int) -> Outcome:
    if code == 0 and job.finished:
        return Outcome(job.folder, job.label)
    stored = stored_result(job.folder) or {}
    said = stored.get("error") or f"{_told(code)}; its last words are in {job.folder / LOG}"
    return Outcome(job.folder, job.label, str(said), is_input=code == BAD_INPUT)


def _told(code: int) -> str:
    """An exit code in words; launchers and shells report a signal as 128 + its number."""
    number = -code if code < 0 else code - 128
    known = {one.value: one.name for one in signal.Signals}
    if number in known:
        killed = " (out of memory?)" if known[number] == "SIGKILL" else ""
        return f"killed by {known[number]}{killed}"
    return f"exit code {code}"
