"""SIGKILL at random moments of training and of caching: nothing finished is lost, and the end is that of no kill.

QTARGET_KILLS: how many; `make soak` takes more than the suite does.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing as mp
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from resuming import SMALL, assert_same_run, only_run, result

KILLS = int(os.environ.get("QTARGET_KILLS", "8"))
A_JOB = 3
"""After so many kills a job is left in peace."""
CACHED = ["reference@references.prior=cached", "references.prior.folder=caches", "references.prior.detail=hidden"]
TRAIN = ["train", *SMALL, *CACHED, "target=one_minus_prior", "checkpoint.every=1"]
CACHE = ["cache", "detail=hidden", "model=tiny", "references.prior.folder=caches", "data.rows=1500"]
READY = "ready"


def command(arguments: Sequence[str], folder: Path) -> None:
    """A process of its own, with everything imported before it was forked."""
    import torch

    from qtarget.app.cli import run
    from qtarget.model import cache

    os.chdir(folder)
    torch.set_num_threads(1)
    cache.SHARD_TOKENS = 2000  # many shards of a small data set
    Path(READY).touch()
    sys.exit(run(arguments))


def started(arguments: Sequence[str], folder: Path) -> Any:
    """At work already: what is killed is the command, not its imports."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["qtarget.app.train", "qtarget.app.launch", "qtarget.app.cache"])
    folder.mkdir(exist_ok=True)
    (folder / READY).unlink(missing_ok=True)
    process = context.Process(target=command, args=(arguments, folder))
    process.start()
    while process.is_alive() and not (folder / READY).exists():
        time.sleep(0.005)
    return process


def seconds_of(arguments: Sequence[str], folder: Path) -> float:
    """Of the command, never killed."""
    process = started(arguments, folder)
    began = time.monotonic()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


@dataclass
class Killer:
    """Runs a command, killing it up to A_JOB times, until it is done."""

    draw: random.Random
    kills: int = 0

    def run(self, arguments: Sequence[str], folder: Path, seconds: float, check: Callable[[Path], None]) -> None:
        for attempt in range(A_JOB + 1):
            process = started(arguments, folder)
            process.join(self.draw.uniform(0, seconds) if attempt < A_JOB else None)
            if process.exitcode is None:
                process.kill()
                process.join()
                self.kills += process.exitcode == -signal.SIGKILL
            check(folder)
            if process.exitcode == 0:
                return
            assert process.exitcode == -signal.SIGKILL
        raise AssertionError("a job that is left in peace ends")


def check_record(folder: Path) -> None:
    """Readable at any moment, and what is finished stays as it is."""
    for path in folder.glob("outputs/runs/*/result.json"):
        found, kept = json.loads(path.read_text()), folder / "finished.json"
        if kept.exists():
            assert json.loads(kept.read_text()) == found
        if found["status"] == "finished":
            kept.write_text(path.read_text())


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("caches/*/*") if not path.name.startswith(".")}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_random_kills_lose_nothing(tmp_path: Path) -> None:
    training, caching = seconds_of(TRAIN, tmp_path / "train"), seconds_of(CACHE, tmp_path / "cache")
    killer, attempts = Killer(random.Random(KILLS)), 0
    for number in range(100 * KILLS):
        folder = tmp_path / str(number)
        if number % 3 == 2:
            killer.run(CACHE, folder, caching, lambda _: None)
            assert files(folder) == files(tmp_path / "cache")
        else:
            killer.run(TRAIN, folder, training, check_record)
            assert_same_run(only_run(folder / "outputs"), only_run(tmp_path / "train/outputs"))
            attempts += result(only_run(folder / "outputs"))["attempts"] - 1
        if killer.kills >= KILLS:
            break
    assert killer.kills >= KILLS
    assert attempts > 0  # some went on from a state
    print(f"{killer.kills} kills, {number + 1} jobs, {attempts} times a run went on from a state")


@pytest.mark.slow
def test_the_command_answers_signals_as_schedulers_send_them(tmp_path: Path) -> None:
    """The real command, in a process of its own: SIGTERM in training, and what it leaves is what was promised."""
    arguments = [sys.executable, "-m", "qtarget", "train", *SMALL, "trainer.max_steps=400", "trainer.eval_every=0"]
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and not logged(tmp_path):
        time.sleep(0.05)
    process.terminate()
    said, _ = process.communicate()
    assert process.returncode == 143, said
    assert "the same command goes on where a state was saved" in said
    run = only_run(tmp_path / "outputs")
    assert result(run)["status"] == "interrupted"
    (state,) = run.glob("state/step-*")
    last = (run / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] == int(state.name.removeprefix("step-"))


def logged(folder: Path) -> bool:
    with contextlib.suppress(StopIteration):
        return next(folder.glob("outputs/runs/*/metrics.jsonl")).stat().st_size > 0
    return False
