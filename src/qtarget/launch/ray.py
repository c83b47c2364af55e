"""Jobs of a multirun as tasks of a Ray cluster, which finds GPUs for them on any of its nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from qtarget.errors import QTargetError
from qtarget.launch.outcome import Outcome
from qtarget.launch.slots import LOG, Job, Slot, outcome, outcome_without_code, say, start
from qtarget.record.record import make_folder
from qtarget.signals import Stop


def slot_of(remote: Mapping[str, Any]) -> Slot:
    """Where a job runs: with the GPUs that Ray shows it, or, where it takes none, with none.

    Ray 2.60 leaves CUDA_VISIBLE_DEVICES alone for a task of num_gpus=0, which then sees every GPU of its node.
    """
    return Slot("ray", {} if remote.get("num_gpus") else {"CUDA_VISIBLE_DEVICES": ""})


def run_on_worker(job: Job, folder: str, slot: Slot) -> int:
    """The exit code of the job, as a process that ends with Ray's worker, in the folder that it was sent from."""
    os.chdir(folder)
    make_folder(job.folder)
    return start(job.command, slot, job.folder / LOG, exit_with_parent=True).wait()


def run_on_ray(jobs: Sequence[Job], init: Mapping[str, Any], remote: Mapping[str, Any]) -> list[Outcome]:
    """Hand those that aren't finished to Ray, and wait for all. Ctrl-C and SIGTERM end those that run."""
    with _connected(init, remote) as ray, Stop():  # behind Ray, which takes SIGTERM
        try:
            task = ray.remote(**remote)(run_on_worker)
        except (ValueError, TypeError) as error:
            raise QTargetError(f"hydra.launcher.ray.remote can't be used: {error}") from error
        tasks: dict[Any, int] = {}
        for number, job in enumerate(jobs):
            say(number, len(jobs), job, "finished already" if job.finished else "waits for Ray")
            if not job.finished:
                tasks[task.remote(job, os.getcwd(), slot_of(remote))] = number
        outcomes = dict(_ended(ray, tasks, jobs))
    return [outcomes.get(number) or Outcome(job.folder, job.label) for number, job in enumerate(jobs)]


@contextmanager
def _connected(init: Mapping[str, Any], remote: Mapping[str, Any]) -> Iterator[Any]:
    """Ray. Raises QTargetError where it isn't installed, or can't be reached, or has no GPU that is asked for."""
    os.environ.setdefault("RAY_kill_child_processes_on_worker_exit", "0")  # left alone, a job ends by itself, in order
    try:
        import ray
    except ImportError as error:
        raise QTargetError("hydra/launcher=ray needs Ray: pip install 'qtarget[ray]'") from error
    try:
        ray.init(**init)
    except (ConnectionError, ValueError, RuntimeError, TypeError) as error:
        raise QTargetError(f"hydra/launcher=ray can't be used here: {error}") from error
    try:
        if remote.get("num_gpus") and not (init.get("address") or os.environ.get("RAY_ADDRESS")):
            _check_gpus(ray.cluster_resources().get("GPU", 0), remote["num_gpus"])
        yield ray
    finally:
        ray.shutdown()


def _check_gpus(available: float, wanted: float) -> None:
    """Raise QTargetError where this machine, to which none will be added, has fewer than a job takes."""
    if available < wanted:
        raise QTargetError(
            f"a job takes {wanted:g} GPUs and this machine has {available:g}: set hydra.launcher.ray.remote.num_gpus=0 "
            "to go without, or hydra.launcher.ray.init.address to the address of a cluster"
        )


def _ended(ray: Any, tasks: dict[Any, int], jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
    """As they end; a worker that was lost costs its job alone."""
    while tasks:
        for done in ray.wait(list(tasks), timeout=1.0)[0]:
            number = tasks.pop(done)
            try:
                ended = outcome(jobs[number], ray.get(done))
            except ray.exceptions.RayError as error:
                ended = outcome_without_code(jobs[number], f"Ray has lost it ({type(error).__name__})")
            say(number, len(jobs), jobs[number], "FAILED" if ended.error else "finished")
            yield number, ended
