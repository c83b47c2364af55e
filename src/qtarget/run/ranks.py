"""The processes of a run on several devices: started here, or by torchrun or srun; and which of them failed, and how.

Not torch's elastic_launch: its workers are in sessions of their own, and after a SIGKILL of their parent they write on.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.accelerators import AcceleratorRegistry

from qtarget import signals
from qtarget.config.run_config import TrainerConfig
from qtarget.errors import QTargetError
from qtarget.parallel import is_rank_zero, rank_and_world
from qtarget.run.environment import environment
from qtarget.run.rank_agreement import OtherRankError, RankAgreement
from qtarget.run.rank_report import RankError, Report
from qtarget.signals import EXIT_CODE, Terminated

T = TypeVar("T")
SECONDS_TO_END = 5.0
"""Seconds that the other processes have to end by themselves when one has failed."""


def check_started(trainer: TrainerConfig) -> None:
    """Raise QTargetError where the processes there are, or could be started, aren't those the configuration wants."""
    here, wanted = environment(), trainer.processes
    if here is None and trainer.num_nodes > 1:
        raise QTargetError(
            f"trainer.num_nodes={trainer.num_nodes}: start the same command on every node with torchrun or srun, "
            "see docs/devices.md"
        )
    if here is not None and here.world_size() != wanted:
        raise QTargetError(
            f"{here.world_size()} processes were started, and trainer.devices={trainer.devices} × "
            f"trainer.num_nodes={trainer.num_nodes} is {wanted}: make them the same"
        )


def check_devices(trainer: TrainerConfig) -> None:
    """Raise QTargetError for an accelerator that this machine lacks, and for more processes than a CPU has cores."""
    _check_accelerator(trainer.accelerator)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_cpu = not trainer.on_gpu and trainer.accelerator in ("cpu", "auto")
    if on_cpu and environment() is None and trainer.devices > max(2, cores):
        raise QTargetError(
            f"trainer.devices={trainer.devices} starts a process a device, and this machine has no GPU and {cores} "
            f"core{'s' * (cores > 1)}: at most {max(2, cores)}, or more rows per step by trainer.batch_size and "
            "trainer.accumulate"
        )


def _check_accelerator(name: str) -> None:
    """name: one of Lightning's, "gpu" for the one there is, or "auto"."""
    known = AcceleratorRegistry.available_accelerators()
    if name not in (*known, "auto", "gpu"):
        raise QTargetError(f"trainer.accelerator={name} is not known: auto, gpu, or one of {', '.join(sorted(known))}")
    here = [one for one in known if AcceleratorRegistry[one]["accelerator"].is_available()]
    wanted = {"auto": here, "gpu": ["cuda", "mps"]}.get(name, [name])
    if not set(wanted) & set(here):
        raise QTargetError(
            f"trainer.accelerator={name}, and this machine has none: it has {', '.join(sorted(here))}; "
            "set trainer.accelerator=auto for the best there is"
        )


def connect(init_method: str | None = None, store: dist.Store | None = None) -> None:
    """Join the processes of the run. By default torchrun's or srun's variables say where the others are."""
    here = environment()
    if here is None or dist.is_initialized():  # for an earlier role of the same command
        return
    if init_method is None and store is None:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = here.main_address, str(here.main_port)
    if torch.cuda.is_available():
        torch.cuda.set_device(here.local_rank() % torch.cuda.device_count())
    # counts and tables are summed on the CPU, gradients on the devices
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method, store=store, rank=here.global_rank(), world_size=here.world_size())


def as_rank_0(value: Any) -> Any:
    """What `value` is on rank 0."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def from_rank_0(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on every rank; its QTargetError is raised on all of them. Collective."""
    if rank_and_world()[1] == 1:
        return work()
    result, problem = None, ""
    if is_rank_zero():
        try:
            result = work()
        except QTargetError as error:
            problem = str(error)
    answer, problem = as_rank_0((result, problem))
    if problem:
        raise QTargetError(problem)
    value: T = answer
    return value


def check_same_configuration(identities: Sequence[str]) -> None:
    """Raise QTargetError where a rank was started with another configuration. identities: of all ranks."""
    first, *others = identities
    for rank, other in enumerate(others, start=1):
        if other != first:
            raise QTargetError(
                f"rank {rank} was started with another configuration ({other}) than rank 0 ({first}): start the same "
                "command on every node, with the same data, models and version of qtarget"
            )


def start(count: int, run: Callable[..., Any], *given: Any) -> None:
    """Call `run(*given)` in `count` new processes of this machine that are connected as ranks; wait for them.

    Raises the error of the rank that failed first: as the QTargetError it was, or as RankError. Terminated, which a
    signal raises here, asks them to stop, and is raised once they have; also where somebody has asked them.
    """
    reports = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="qtarget-ranks-") as meeting:
        arguments = (count, f"file://{meeting}/store", reports, partial(run, *given))
        context = mp.start_processes(_rank, arguments, nprocs=count, join=False, start_method="spawn")
        try:
            codes = _wait(context.processes)
        except Terminated:
            _end(context.processes, signals.GRACE)
            raise
        finally:
            _end(context.processes)
    if _were_terminated(codes):
        raise Terminated("by SIGTERM")
    if any(codes):
        _raise(codes, reports)


def start_one(job: RankAgreement, run: Callable[..., Any], *given: Any) -> None:
    """Call `run(*given)` in a new process that takes this one's rank in a job; wait for it, and for the others.

    Raises, on every rank, the error of the rank that failed first, as `start` does. A process whose rank fails alone
    leaves the others in a collective: they have SECONDS_TO_END to end by its error, and are ended then.
    """
    here = environment()
    assert here is not None
    place: dict[str, Any] = {
        "RANK": here.global_rank(),
        "LOCAL_RANK": here.local_rank(),
        "WORLD_SIZE": here.world_size(),
    }
    place |= {"GROUP_RANK": here.node_rank(), "MASTER_ADDR": here.main_address, "MASTER_PORT": here.main_port}
    arguments = ({name: str(value) for name, value in place.items()}, job.name, partial(run, *given))
    with job.agreeing():
        context = mp.start_processes(_one, arguments, nprocs=1, join=False, start_method="spawn")
        try:
            code = _watch(context.processes[0], job)
        except Terminated:
            _end(context.processes, signals.GRACE)
            raise
        finally:
            _end(context.processes)
        if code is None:
            raise OtherRankError("another rank failed")
        if _were_terminated([code]):
            raise Terminated("by SIGTERM")
        if code:
            job.report(report := Report.of_exit(job.rank, code))
            raise report.error(job.world)


def _watch(process: SpawnProcess, job: RankAgreement) -> int | None:
    """Exit code; None: still running SECONDS_TO_END after a rank has failed."""
    while process.exitcode is None and not job.failed:
        job.pause()
    process.join(SECONDS_TO_END)
    return process.exitcode


def _one(index: int, place: dict[str, str], job: str, run: Callable[[], Any]) -> None:
    os.environ.update(place)
    agreement = RankAgreement.of_job(job, keeps_store=False)
    _run_connected(partial(connect, store=agreement.group_store), run, agreement.report, agreement.rank)


def _rank(rank: int, count: int, meeting: str, reports: Any, run: Callable[[], Any]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), GROUP_RANK="0")
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    _run_connected(partial(connect, meeting), run, reports.put, rank)


def _run_connected(
    join: Callable[[], None], run: Callable[[], Any], report: Callable[[Report], None], rank: int
) -> None:
    """What a process of the run does. A failure is reported before the others see the connection close."""
    try:
        join()
        run()
        dist.destroy_process_group()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Terminated:
        sys.exit(EXIT_CODE)
    except Exception as error:
        report(Report.of(rank, error))
        sys.exit(1)


def _wait(processes: Sequence[SpawnProcess]) -> list[int | None]:
    """Exit codes by rank. Once one has failed, the others have SECONDS_TO_END; None: still running after that."""
    running, timeout = set(processes), None
    while running and wait([process.sentinel for process in running], timeout):
        running = {process for process in running if process.is_alive()}
        timeout = SECONDS_TO_END if any(process.exitcode for process in processes) else None
    return [process.exitcode for process in processes]


def _were_terminated(codes: Sequence[int | None]) -> bool:
    """By SIGTERM, and none by another signal, which the others' end would follow from."""
    by_signal = {code for code in codes if code is not None and (code < 0 or code == EXIT_CODE)}
    return bool(by_signal) and by_signal <= {EXIT_CODE, -signal.SIGTERM}


def _raise(codes: Sequence[int | None], reports: Any) -> None:
    """A rank that was killed could say nothing, and what the others say is only that it is gone."""
    for rank, code in enumerate(codes):
        if code and (code < 0 or reports.empty()):
            raise Report.of_exit(rank, code).error(len(codes))
    report: Report = reports.get()  # the first to fail is the first to report
    raise report.error(len(codes)) from RankError(f"in rank {report.rank}\n\n{report.trace}")


def _end(processes: Sequence[SpawnProcess], grace: float = 0.0) -> None:
    """End those still running: first they may close their records, then they are terminated, then killed.

    grace: they are terminated at once, and have so many seconds to end their step and save its state.
    """
    for send, seconds in (("terminate", 0.0 if grace else SECONDS_TO_END), ("kill", grace or SECONDS_TO_END)):
        deadline = time.monotonic() + seconds
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in processes:
            if process.is_alive():
                getattr(process, send)()
    for process in processes:
        process.join()
