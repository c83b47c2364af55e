"""Jobs of a multirun as a Slurm job array, through submitit.

Slurm keeps them whatever becomes of the process that sent them: started again, it waits for those that are still there.
A job whose time is up, or that is preempted, saves its state, is queued again and goes on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtarget import checks
from qtarget.errors import QTargetError
from qtarget.launch.multirun import launch
from qtarget.launch.outcome import Outcome
from qtarget.launch.slots import LOG, Job, outcome, outcome_without_code, say
from qtarget.record.record import make_folder
from qtarget.signals import EXIT_CODE, Stop, Terminated, run_with_error_messages

JOB_ID_FILE = "slurm_job"
"""File of a job's folder: which job of Slurm it is."""
POLL_SECONDS = 2.0
"""Seconds between looks at the queue."""
RESULT_LAG_SECONDS = 60.0
"""Seconds after which what a node has written is seen here, on a network file system."""
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"}
SUBMITIT_SETTINGS = {
    "timeout_min",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "mem_gb",
    "nodes",
    "name",
    "stderr_to_stdout",
}
"""Settings that submitit names alike for every scheduler; the others are `slurm_…` to it."""

GPUS = ("gpus_per_node", "gpus_per_task")


@dataclass(frozen=True)
class OnNode:
    """A job as submitit calls it on its node, in the folder that it was sent from. hidden: it sees no GPU."""

    arguments: tuple[str, ...]
    log: Path
    hidden: bool = False

    def __call__(self) -> int:
        """The exit code of a job that has ended. One that was stopped ends this process without a result."""
        requeue_if_signalled = _stop_on(_submitits_signal())
        _redirect_output(self.log)
        if self.hidden:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        sys.path.insert(0, os.getcwd())
        with Stop():
            code = run_with_error_messages(lambda: launch(self.arguments[1:]))
        if code == EXIT_CODE:
            requeue_if_signalled()
            sys.exit(code)
        return code

    def checkpoint(self) -> Any:
        """What submitit starts when the job comes out of the queue again: the same, which goes on from its state."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _submitits_signal() -> signal.Signals:
    from submitit.core.job_environment import JobEnvironment

    return signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]


def _stop_on(number: signal.Signals) -> Callable[[], None]:
    """From now on this signal does what SIGTERM does. Returns what puts the job into the queue again, if it came."""
    requeue, received = signal.getsignal(number), []

    def on_signal(*_: Any) -> None:
        received.append(number)
        signal.raise_signal(signal.SIGTERM)

    signal.signal(number, on_signal)
    return lambda: requeue(number, None) if received and callable(requeue) else None


def _redirect_output(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)


def run_on_slurm(jobs: Sequence[Job], settings: Mapping[str, Any]) -> list[Outcome]:
    """Send those that aren't finished, nor in the queue from an earlier start, and wait for all."""
    executor, folder = _executor(settings), Path(str(settings["submitit_folder"]))
    submitted = _still_queued(jobs, folder)
    hidden = takes_no_gpu(settings)
    left = [number for number, job in enumerate(jobs) if number not in submitted and not job.finished]
    submitted |= dict(zip(left, _submit([jobs[number] for number in left], executor, hidden), strict=True))
    for number, job in enumerate(jobs):
        say(number, len(jobs), job, f"job {submitted[number].job_id}" if number in submitted else "finished already")
    try:
        with Stop():
            ended = wait(submitted, lambda number, how: say(number, len(jobs), jobs[number], how))
    except (KeyboardInterrupt, Terminated):
        ids = " ".join(slurm_job.job_id for slurm_job in submitted.values())
        print(f"the jobs go on; the same command waits for them; to end them: scancel {ids}", file=sys.stderr)
        raise
    return [_outcome(job, ended.get(number, 0)) for number, job in enumerate(jobs)]


def _outcome(job: Job, end: int | str) -> Outcome:
    deadline = time.monotonic() + RESULT_LAG_SECONDS
    while end == 0 and not job.finished and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return outcome(job, end) if isinstance(end, int) else outcome_without_code(job, end)


def _executor(settings: Mapping[str, Any]) -> Any:
    """submitit's. Raises QTargetError where that isn't installed, or there is no Slurm, or it knows no such setting."""
    try:
        import submitit
    except ImportError as error:
        raise QTargetError("hydra/launcher=submitit_slurm needs submitit: pip install 'qtarget[slurm]'") from error
    checks.whole("hydra.launcher.max_num_timeout", settings["max_num_timeout"], 0)
    chosen = {key: value for key, value in settings.items() if value is not None and not (key in GPUS and value == 0)}
    folder, retries = chosen.pop("submitit_folder"), chosen.pop("max_num_timeout")
    try:
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=retries)
        executor.update_parameters(
            **{key if key in SUBMITIT_SETTINGS else f"slurm_{key}": value for key, value in chosen.items()}
        )
    except (RuntimeError, ValueError, TypeError, NameError) as error:
        raise QTargetError(f"hydra/launcher=submitit_slurm can't be used here: {error}") from error
    return executor


def takes_no_gpu(settings: Mapping[str, Any]) -> bool:
    """Whether the settings say that a job has none. Slurm hides GPUs that weren't asked for only where it is set up to
    (ConstrainDevices), so the job has to. null says nothing: on a cluster that doesn't count GPUs a job sees all.
    """
    counts = [settings.get(key) for key in GPUS]
    elsewhere = f"{settings.get('gres')} {settings.get('additional_parameters')}"
    return any(count == 0 for count in counts) and not any(counts) and "gpu" not in elsewhere


def _submit(jobs: Sequence[Job], executor: Any, hidden: bool) -> list[Any]:
    """Into the queue, as one array, noted in the folders of the jobs."""
    if not jobs:
        return []
    for job in jobs:
        make_folder(job.folder)
    try:
        submitted = executor.submit_array([OnNode(tuple(job.command[3:]), job.folder / LOG, hidden) for job in jobs])
    except RuntimeError as error:
        raise QTargetError(f"Slurm takes no such jobs: {str(error).strip()}") from error
    for job, slurm_job in zip(jobs, submitted, strict=True):
        (job.folder / JOB_ID_FILE).write_text(slurm_job.job_id, encoding="utf-8")
    return list(submitted)


def _still_queued(jobs: Sequence[Job], folder: Path) -> dict[int, Any]:
    """Jobs that an earlier start has sent and that haven't ended, by number."""
    import submitit

    files = {number: job.folder / JOB_ID_FILE for number, job in enumerate(jobs)}
    ids = {number: path.read_text(encoding="utf-8") for number, path in files.items() if path.is_file()}
    states = _states(ids.values())
    if states is None:
        raise QTargetError("Slurm doesn't say what is in its queue (squeue fails): try again when it answers")
    queued = {number: name for number, name in ids.items() if states.get(name, "COMPLETED") not in ENDED}
    return {number: submitit.SlurmJob(folder=folder, job_id=name) for number, name in queued.items()}


def wait(submitted: Mapping[int, Any], tell: Callable[[int, str], None]) -> dict[int, int | str]:
    """Until none is in the queue. Exit codes, or Slurm's word for jobs that have left none."""
    ended: dict[int, int | str] = {}
    missing: dict[int, float] = {}  # since when there is neither a job nor its result
    states: dict[str, str] = {}
    while len(ended) < len(submitted):
        now = _states(slurm_job.job_id for slurm_job in submitted.values())
        states |= now or {}
        for number in submitted.keys() - ended.keys():
            name = submitted[number].job_id
            if now is None or now.get(name, "gone") not in {*ENDED, "gone"}:
                missing.pop(number, None)
                continue
            end = _end_of(submitted[number])
            if end is None and time.monotonic() - missing.setdefault(number, time.monotonic()) < RESULT_LAG_SECONDS:
                continue
            ended[number] = end if end is not None else f"Slurm's job {name} has ended: {states.get(name, 'unknown')}"
            tell(number, "finished" if end == 0 else "FAILED")
        time.sleep(POLL_SECONDS)
    return ended


def _states(ids: Iterable[str]) -> dict[str, str] | None:
    """Jobs that Slurm knows of, and how they are; None where it doesn't answer."""
    names = ",".join(ids)
    if not names:
        return {}
    command = ["squeue", "--states=all", "--noheader", "--array", "--format=%i %T", f"--jobs={names}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {} if "Invalid job id" in done.stderr else None
    return dict(line.split() for line in done.stdout.splitlines() if line.strip())


def _end_of(slurm_job: Any) -> int | str | None:
    """What the job has left for submitit: its exit code, or the error that it was given up for; None: nothing."""
    if not slurm_job.paths.result_pickle.is_file():
        return None
    try:
        code: int = slurm_job.result()
    except RuntimeError as error:
        return str(error).strip().splitlines()[-1]
    return code
