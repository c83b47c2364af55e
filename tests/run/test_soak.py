"""SIGKILL at random moments of training, caching and sweeping: nothing finished is lost, the end is that of no kill.

QTARGET_KILLS: how many; `make soak` takes more than the suite does.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from resuming import SMALL, assert_same_run, only_run, result
from warm import fork_ranks, forking_context

KILLS = int(os.environ.get("QTARGET_KILLS", "8"))
A_JOB = 3
"""After so many kills a job is left in peace."""
CACHED = ["reference@references.prior=cached", "references.prior.folder=caches", "references.prior.detail=hidden"]
TRAIN = ["train", *SMALL, *CACHED, "target=one_minus_prior", "checkpoint.every=1"]
CACHE = ["cache", "detail=hidden", "model=tiny", "references.prior.folder=caches", "data.rows=1500"]
SWEEP = ["sweep", "points.yaml", "--slots", "2", *SMALL, "trainer.max_steps=4", "checkpoint.every=1"]
POINTS = """
name: runs
method: grid
metric: {name: test/nll, goal: minimize}
parameters:
  target: {values: [sft, dft]}
  seed: {values: [0, 1]}
command: ["${env}", qtarget, train, "${args_no_hyphens}"]
"""
TWELVE_POINTS = POINTS.replace("[sft, dft]", "[sft, dft, focal]")
TWELVE_POINTS = TWELVE_POINTS.replace("  seed:", "  optim.lr: {values: [0.001, 0.0001]}\n  seed:")
TWELVE = ["sweep", "twelve.yaml", "--slots", "2", *SMALL, "trainer.max_steps=1", "trainer.eval_every=0"]
ON_TWO = ["train", *SMALL, "trainer.devices=2", "trainer.batch_size=2", "checkpoint.every=1", "target=psft"]
READY, PIDS = "ready", "pids"


def command(arguments: Sequence[str], folder: Path) -> None:
    """A process of its own, with everything imported before it was forked; so are the jobs that it starts."""
    import torch

    from qtarget.cli import run
    from qtarget.launch import slots
    from qtarget.model import cache_build
    from qtarget.run import train

    os.chdir(folder)
    torch.set_num_threads(1)
    cache_build.SHARD_TOKENS = 2000  # many shards of a small data set
    slots.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": Forked})  # of that module alone
    slots.can_serve = bool  # False: a server would import everything anew
    fork_ranks(pytest.MonkeyPatch())
    train.run_as_rank = noted_rank
    Path("points.yaml").write_text(POINTS)
    Path("twelve.yaml").write_text(TWELVE_POINTS)
    Path(READY).touch()
    sys.exit(run(arguments))


def noted_rank(*given: Any) -> Any:
    """A rank whose process can be found."""
    import torch.distributed as dist

    from qtarget.run import train

    rank, folder = dist.get_rank(), Path(PIDS)
    folder.mkdir(exist_ok=True)
    (folder / str(rank)).write_text(str(os.getpid()))
    return train.run_as_rank(*given)


class Forked:
    """`subprocess.Popen` of a qtarget command, as a job is started, without the seconds that its imports take."""

    def __init__(self, arguments: Sequence[str], *, env: dict[str, str], stdout: Any, **_: Any) -> None:
        ours, line = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(line)
            become(arguments[3:], env, ours, stdout.fileno())
        os.close(ours)
        self.stdin = os.fdopen(line, "wb")
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if ended else None
        return self.code


def become(arguments: Sequence[str], env: dict[str, str], stdin: int, stdout: int) -> None:
    """This process as it would be had it just been started."""
    from hydra.core.global_hydra import GlobalHydra

    from qtarget.cli import main

    os.setsid()
    for here, there in ((stdin, 0), (stdout, 1), (stdout, 2)):
        os.dup2(here, there)
    os.environ.update(env)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    GlobalHydra.instance().clear()
    code = 1
    try:
        main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def started(arguments: Sequence[str], folder: Path) -> Any:
    """At work already: what is killed is the command, not its imports."""
    context = forking_context()
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


def check_records(folder: Path) -> None:
    """Readable at any moment, and what is finished stays as it is."""
    for path in folder.glob("outputs/runs/*/result.json"):
        found, kept = json.loads(path.read_text()), folder / f"finished-{path.parent.name}.json"
        if kept.exists():
            assert json.loads(kept.read_text()) == found
        if found["status"] == "finished":
            kept.write_text(path.read_text())


def check_runs(folder: Path, unbroken: Path) -> int:
    """Each run that there is without kills, and no other. Returns how often one went on after an end."""
    runs, expected = (
        {path.parent.name: path.parent for path in there.glob("outputs/runs/*/result.json")}
        for there in (folder, unbroken)
    )
    assert runs.keys() == expected.keys()
    for name, run in runs.items():
        assert_same_run(run, expected[name])
    return sum(result(run)["attempts"] - 1 for run in runs.values())


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("caches/*/*") if not path.name.startswith(".")}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_random_kills_lose_nothing(tmp_path: Path) -> None:
    commands = {"train": TRAIN, "sweep": SWEEP, "cache": CACHE}
    seconds = {name: seconds_of(arguments, tmp_path / name) for name, arguments in commands.items()}
    killer, attempts = Killer(random.Random(KILLS)), 0
    for number, name in zip(range(100 * KILLS), itertools.cycle(commands), strict=False):
        folder, unbroken = tmp_path / str(number), tmp_path / name
        killer.run(commands[name], folder, seconds[name], check_records)
        assert files(folder) == files(unbroken)
        attempts += check_runs(folder, unbroken)
        if killer.kills >= KILLS:
            break
    assert killer.kills >= KILLS
    assert attempts > 0 or KILLS < 20  # some went on from a state
    print(f"{killer.kills} kills, {number + 1} jobs, {attempts} times a run went on from a state")


def kill_rank(process: Any, folder: Path, rank: int, seconds: float) -> bool:
    """So long after it was connected; whether it was there to be killed."""
    while process.is_alive() and not (folder / PIDS / str(rank)).exists():
        time.sleep(0.005)
    process.join(seconds)
    try:
        os.kill(int((folder / PIDS / str(rank)).read_text()), signal.SIGKILL)
    except (OSError, ValueError):  # it has ended
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ranks_killed_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """The other one and the command that started them end, and the same command goes on from the state."""
    commands = {name: [*ON_TWO, f"trainer.strategy={name}"] for name in ("ddp", "fsdp2")}
    seconds = {name: seconds_of(arguments, tmp_path / name) for name, arguments in commands.items()}
    draw, kills, attempts, enough = random.Random(KILLS), 0, 0, max(1, 2 * KILLS // 3)
    for number, name in zip(range(100 * enough), itertools.cycle(commands), strict=False):
        folder, code = tmp_path / str(number), None
        for attempt in itertools.count():
            process = started(commands[name], folder)
            if attempt < A_JOB and kills < enough:
                kills += kill_rank(process, folder, draw.randrange(2), draw.uniform(0, seconds[name]))
            process.join()
            shutil.rmtree(folder / PIDS, ignore_errors=True)
            check_records(folder)
            code = process.exitcode
            if code == 0:
                break
            assert attempt < A_JOB
        attempts += check_runs(folder, tmp_path / name)
        if kills >= enough:
            break
    assert kills >= enough
    assert attempts > 0 or enough < 20
    print(f"{kills} ranks killed, {number + 1} jobs, {attempts} times a run went on from a state")


def finished(folder: Path) -> dict[str, dict[str, Any]]:
    runs = (path.parent for path in folder.glob("outputs/runs/*/result.json"))
    return {run.name: result(run) for run in runs if result(run)["status"] == "finished"}


@pytest.mark.slow
def test_a_sweep_killed_twice_ends_with_every_result_once(tmp_path: Path) -> None:
    for enough in (2, 6):
        driver = started(TWELVE, tmp_path)
        while driver.is_alive() and len(finished(tmp_path)) < enough:
            time.sleep(0.02)
        driver.kill()
        driver.join()
        assert driver.exitcode == -signal.SIGKILL
        kept = finished(tmp_path)
    driver = started(TWELVE, tmp_path)
    driver.join()
    assert driver.exitcode == 0
    found = finished(tmp_path)
    assert len(found) == len(list(tmp_path.glob("outputs/runs/*/result.json"))) == 12
    assert len({json.dumps(one["overrides"]) for one in found.values()}) == 12
    assert {name: found[name] for name in kept} == kept


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
