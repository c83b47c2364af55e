"""A job that was forked is the job that was started anew: what it has, what it gives, how it ends; nothing outlives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from resuming import SMALL, assert_same_run
from resuming import result as result_of

from qtarget.launch import fork_server, slots
from qtarget.launch.slots import Job, JobPool, JobStarter, Slot, make_slots
from qtarget.resume_folders import STATE, newest

pytestmark = pytest.mark.skipif(not fork_server.can_serve(), reason="Linux's")

PARTS = """
import json, os, signal, sys, time
import torch

class Seen:
    '''Writes what the job has, then fails.'''
    def __call__(self, view):
        numbers = (signal.SIGINT, signal.SIGPIPE, signal.SIGCHLD, signal.SIGUSR1)
        seen = dict(
            environment=dict(os.environ), folder=os.getcwd(), path=sys.path, program=sys.executable, words=sys.argv,
            main=sys.modules["__main__"].__spec__.name, leads=os.getsid(0) == os.getpgrp() == os.getpid(),
            files=[os.path.basename(os.readlink(f"/proc/self/fd/{n}")) for n in range(3)],
            inherited=[os.get_inheritable(n) for n in range(3)],
            buffering=[(out.line_buffering, out.write_through, out.encoding) for out in (sys.stdout, sys.stderr)],
            signals=[str(signal.getsignal(n)) for n in numbers], blocked=len(signal.pthread_sigmask(0, ())),
            cores=sorted(os.sched_getaffinity(0)), threads=torch.get_num_threads(),
            libraries=torch.__config__.parallel_info(), cuda=torch.cuda.is_initialized(),
        )
        open("seen.json", "w").write(json.dumps(seen))
        raise RuntimeError("this design is broken")

class Killed:
    def __call__(self, view):
        os.kill(os.getpid(), signal.SIGKILL)

class Exits:
    def __call__(self, view):
        print("last words", flush=True)
        os._exit(3)
"""
QUICK = ["model=tiny", "trainer.max_steps=1", "data.rows=16", "data.heldout_rows=2", "eval.new_tokens=2"]
QUICK += ["checkpoint.save=false", "trainer.precision=32-true", "trainer.accelerator=cpu", "trainer.eval_every=0"]
LONG = [*QUICK, "trainer.max_steps=100000", "trainer.batch_size=4", "trainer.log_every=1"]


@pytest.fixture
def folder(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with parts of its own, on a machine without a CUDA device."""
    (workdir / "parts.py").write_text(PARTS)
    (workdir / "conf/target").mkdir(parents=True)
    for name in ("Seen", "Killed", "Exits"):
        (workdir / f"conf/target/{name.lower()}.yaml").write_text(f"_target_: parts.{name}\n")
    monkeypatch.syspath_prepend(workdir)  # the identity of a job is that of its own code too
    monkeypatch.delitem(sys.modules, "parts", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(workdir))
    monkeypatch.setattr(slots, "_visible_devices", list)
    return workdir


def multirun(targets: str, *more: str, count: int = 2) -> list[str]:
    return ["train", "-m", "hydra/launcher=slots", f"hydra.launcher.slots={count}", f"target={targets}", *more]


class UncheckedJob(Job):
    """Without the identity that its process compares."""

    @property
    def arguments(self) -> list[str]:
        *arguments, identity = super().arguments
        assert identity.startswith("hydra.job.id=")
        return arguments


def until(done: Callable[[], Any], seconds: float = 300) -> None:
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds
        time.sleep(0.05)


def processes(folder: Path) -> list[psutil.Process]:
    """Those that run in a folder, but this one."""
    return [
        process
        for process in psutil.process_iter(["cwd", "status"])
        if process.info["cwd"] == str(folder.resolve())
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and process.pid != os.getpid()
    ]


def training(folder: Path, attempt: int) -> int:
    """How many runs log steps in this attempt; a second is one that goes on from a saved state."""
    runs = [path.parent for path in folder.glob("outputs/runs/*/metrics.jsonl") if path.stat().st_size]
    return sum(result_of(run)["attempts"] == attempt for run in runs)


@pytest.mark.slow
def test_a_forked_job_has_what_one_that_was_started_anew_has(folder: Path) -> None:
    (slot,) = make_slots(1, None)
    slot = replace(slot, cores=slot.cores[-2:], environment={"OMP_NUM_THREADS": str(len(slot.cores[-2:]))})
    seen, codes = [], []
    for starter in (JobStarter([slot], True), JobStarter([slot], False)):
        job = UncheckedJob(Path("outputs/job"), "none", ("target=seen", *QUICK))
        job.folder.mkdir(parents=True, exist_ok=True)
        process = starter.start(job, slot)
        assert isinstance(process, subprocess.Popen) is not starter.forks
        until(lambda process=process: process.poll() is not None)
        codes.append(process.poll())
        process.stdin.close()
        starter.close()
        seen.append(json.loads(Path("seen.json").read_text()))
        Path("seen.json").unlink()
    assert seen[0] == seen[1]
    assert codes == [1, 1]
    assert seen[0]["cores"] == list(slot.cores)
    assert seen[0]["threads"] == len(slot.cores)
    assert not seen[0]["cuda"]
    assert not processes(folder)


@pytest.mark.slow
def test_a_forked_job_gives_the_same_numbers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qtarget.cli import run

    assert run(multirun("sft,dft", *SMALL, "experiment_name=forked", count=1)) == 0
    assert "imports anew" not in capsys.readouterr().err
    monkeypatch.setattr(slots, "can_serve", bool)
    assert run(multirun("sft,dft", *SMALL, "experiment_name=anew", count=1)) == 0
    forked, anew = (
        {result_of(path.parent)["name"]: path.parent for path in folder.glob(f"outputs/{name}/*/result.json")}
        for name in ("forked", "anew")
    )
    assert forked.keys() == anew.keys() == {"sft", "dft"}
    for name, path in forked.items():
        assert_same_run(path, anew[name])


@pytest.mark.slow
def test_a_job_that_is_killed_costs_itself_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from qtarget.cli import run

    assert run(multirun("killed,exits,seen,sft", *QUICK, "hydra.launcher.retry=1")) == 1
    told = capsys.readouterr().err
    assert told.count("FAILED (killed by SIGKILL (out of memory?))") == 2  # with its second try
    assert told.count("FAILED (exit code 3)") == 2
    assert "RuntimeError: this design is broken" in told
    assert "3 of 4 jobs failed" in told
    assert "imports anew" not in told
    assert sorted(path.read_text().count("last words") for path in folder.glob("outputs/*/*/log.txt")) == [0, 0, 0, 2]
    until(lambda: not processes(folder), seconds=60)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM to all", "SIGINT to the launcher", "SIGKILL to the launcher"])
def test_every_job_saves_its_state_and_no_process_is_left(how: str, folder: Path) -> None:
    number, attempts = signal.Signals[how.partition(" ")[0]], 1 + how.endswith("all")
    for attempt in range(1, 1 + attempts):
        launcher = subprocess.Popen(
            [sys.executable, "-m", "qtarget", *multirun("sft,dft", *LONG)], stderr=subprocess.DEVNULL
        )
        until(lambda attempt=attempt: training(folder, attempt) == 2)
        for process in processes(folder) if how.endswith("all") else [launcher]:
            process.send_signal(number)
        assert launcher.wait() == {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -9}[number.name]
        until(lambda: not processes(folder), seconds=60)
    states = [newest(path.parent / STATE) for path in folder.glob("outputs/runs/*/result.json")]
    assert len(list(filter(None, states))) == 2


@pytest.mark.slow
def test_jobs_outlive_a_server_that_is_killed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They end as they would have; nobody knows how. Later ones are started anew, and that is said."""
    (slot,) = make_slots(1, None)
    job, later = (UncheckedJob(Path("outputs", name), "none", (f"target={name}", *QUICK)) for name in ("sft", "dft"))
    with JobPool([slot, slot], 2) as pool:
        pool.start(0, job)
        pool._starter.servers[slot.threads]._process.kill()
        until(lambda: len(pool.reap()) == 1)
        pool.start(1, later)
        until(lambda: len(pool.reap()) == 1)
    told = capsys.readouterr().err
    assert "job 1 of 2: FAILED (killed by SIGKILL (out of memory?))" in told
    assert "the server that forks jobs has ended, see outputs/sft/log.txt: each job imports anew" in told
    assert "job 2 of 2: finished" in told
    assert not any("Warning" in (one.folder / "log.txt").read_text() for one in (job, later))
    assert {result_of(one.folder)["status"] for one in (job, later)} == {"finished"}


def test_what_is_imported_leaves_no_thread_and_asks_for_no_device() -> None:
    """OpenBLAS starts threads when it is imported, and ends them before a fork."""
    probe = (
        "import importlib, os, torch; from qtarget.launch import fork_server as f; "
        "[importlib.import_module(name) for name in f.IMPORTED]; f._check_threads(); "
        "print(len(os.listdir('/proc/self/task')), torch.cuda.is_initialized())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1 False\n"


def test_a_process_with_threads_forks_no_job() -> None:
    probe = (
        "import threading; from qtarget.launch import fork_server as f; "
        "threading.Thread(target=threading.Event().wait, daemon=True).start(); f._check_threads()"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert (done.returncode, "threads that imports have started: 1" in done.stderr) == (1, True)


def test_jobs_are_forked_where_that_is_safe_and_spares_something(monkeypatch: pytest.MonkeyPatch) -> None:
    cores, device = Slot("", {"OMP_NUM_THREADS": "1"}, (0,)), Slot("", {"CUDA_VISIBLE_DEVICES": "0"})
    for name in fork_server.BINDING:
        monkeypatch.delenv(name, raising=False)
    assert JobStarter.of([cores], 2).forks
    assert not JobStarter.of([cores], 1).forks
    assert not JobStarter.of([device], 2).forks
    monkeypatch.setenv("OMP_PLACES", "cores")
    assert not JobStarter.of([cores], 2).forks
