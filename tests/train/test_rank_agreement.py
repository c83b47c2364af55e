"""Ranks of a multirun agree on how a job ended, and the next one starts; every wait here has an end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from qtarget.errors import QTargetError
from qtarget.run import rank_agreement
from qtarget.run.rank_agreement import RankAgreement
from qtarget.run.rank_report import RankError, Report
from qtarget.signals import Terminated

# Rank 1 fails alone while rank 0 is in a collective ("alone"), or in what ends by no error and no SIGTERM ("deaf").
PARTS = """
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

@dataclass(frozen=True)
class Breaking:
    how: str = "fine"

    def __call__(self, view):
        if self.how != "fine" and dist.is_initialized() and dist.get_rank() == 1:
            raise RuntimeError(f"{self.how} is broken")
        if self.how == "deaf" and dist.is_initialized():
            time.sleep(200)
        return torch.ones_like(view.label_logp)
"""
TARGET = """
defaults: [reliance: breaking, residual: self, weight: one, _self_]
_target_: qtarget.math.target.Mixture
normalize: tokens
about: {formula: "", paper: "", year: 2026, differs: ""}
"""
SMALL = ["model=tiny", "data.rows=16", "data.heldout_rows=2", "eval.new_tokens=2", "checkpoint.save=false"]
SMALL += ["trainer.precision=32-true", "trainer.accelerator=cpu", "eval.kl_prior=false", "trainer.eval_every=0"]
SMALL += ["trainer.max_steps=1", "trainer.batch_size=4", "trainer.devices=2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def in_ranks(work: Callable[[RankAgreement], Any], count: int = 2) -> list[Any]:
    """What `work` returns or raises in each of so many threads, which have a store between them."""
    store = dist.HashStore()

    def of_rank(rank: int) -> Any:
        try:
            return work(RankAgreement("job", store, rank, count))
        except BaseException as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(of_rank, range(count), timeout=60))


def test_what_every_rank_has() -> None:
    assert in_ranks(lambda job: job.all_gather("square", str(job.rank**2)), 3) == [["0", "1", "4"]] * 3


def test_a_rank_that_fails_alone_frees_those_that_wait_for_it() -> None:
    """Each raises what it raised, an error of the user's as such."""

    def work(job: RankAgreement) -> Any:
        with job.agreeing():
            if job.rank == 1:
                raise QTargetError("no such file on this node")
            job.all_gather("identity", "")

    errors = in_ranks(work, 3)
    assert [(type(error), str(error)) for error in errors] == [(QTargetError, "no such file on this node")] * 3


def test_agreeing_again_changes_nothing() -> None:
    def work(job: RankAgreement) -> Any:
        with job.agreeing(), job.agreeing():
            if job.rank == 0:
                raise ValueError("once")

    assert [str(error) for error in in_ranks(work)] == ["rank 0 of 2: ValueError: once"] * 2


def test_the_rank_that_was_killed_is_named() -> None:
    """And not the one that noticed first that it was gone."""

    def work(job: RankAgreement) -> Any:
        with job.agreeing():
            if job.rank == 1:
                while not job.failed:
                    pass
                job.report(killed := Report.of_exit(1, -signal.SIGKILL))
                raise killed.error(2)
            raise RuntimeError("connection closed")

    for error in in_ranks(work):
        assert isinstance(error, RankError)
        assert str(error) == "rank 1 of 2 was ended by SIGKILL: was memory short?"


def test_a_rank_that_is_stopped_stops_the_others() -> None:
    def work(job: RankAgreement) -> Any:
        with job.agreeing():
            if job.rank == 1:
                raise Terminated("by SIGTERM")
            job.all_gather("identity", "")

    assert [type(error) for error in in_ranks(work)] == [Terminated, Terminated]


def test_ranks_that_are_done_leave_after_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or without it, where it is gone."""
    in_ranks(lambda job: job.after_rank_0())
    monkeypatch.setattr(rank_agreement, "GRACE", 0.1)
    assert in_ranks(lambda job: job.after_rank_0() if job.rank else None) == [None, None]


def ended(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """After so many seconds it is asked to stop, which torchrun passes on to its processes; a kill would leave them."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_multirun_goes_on_after_jobs_that_fail(workdir: Path) -> None:
    """Under torchrun, where rank 1 fails alone: rank 0's collective ends by an error, or rank 0 is ended."""
    (workdir / "mine.py").write_text(PARTS)
    (workdir / "conf/target/reliance").mkdir(parents=True)
    (workdir / "conf/target/reliance/breaking.yaml").write_text("_target_: mine.Breaking\nhow: fine\n")
    (workdir / "conf/target/breaking.yaml").write_text(TARGET)
    jobs = ["target=breaking", "target.reliance.how=alone,deaf,fine"]
    done = ended([*TORCHRUN, "-m", "qtarget", "train", "-m", *jobs, *SMALL], 500)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("breaking: finished in") == 1
    assert done.stdout.count("next: qtarget compare") == 1
    assert done.stderr.count("FAILED    target") == 2
    assert done.stderr.count("2 of 3 jobs failed; the same command runs only those again") == 1
    found = {}
    for path in workdir.glob("outputs/runs/*/result.json"):
        result = json.loads(path.read_text())
        found[result["overrides"][1]] = (result["status"], result["error"])
    assert found == {
        f"target.reliance.how={how}": ("failed", f"RankError: rank 1 of 2: RuntimeError: {how} is broken")
        for how in ("alone", "deaf")
    } | {"target.reliance.how=fine": ("finished", None)}
