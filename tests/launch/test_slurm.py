"""hydra/launcher=submitit_slurm on a real Slurm of one node, with two GPUs that Slurm takes for such."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qtarget.cli import run
from qtarget.launch import slurm as launcher
from qtarget.launch.slurm import takes_no_gpu

SCRIPTS = Path(__file__).parents[1] / "slurm"
# A reliance that notes which device it was shown and when. Number 3 fails, number 4 takes its time until told to go on.
PARTS = """
import json, os, time
from dataclasses import dataclass
from pathlib import Path

import torch

@dataclass(frozen=True)
class Watched:
    number: int = 0

    def __call__(self, view):
        began = time.time()
        while self.number == 4 and not Path("go").exists() and time.time() < began + 0.2:
            time.sleep(0.05)
        if self.number == 3:
            raise RuntimeError("number 3 is broken")
        seen = {"device": os.environ["CUDA_VISIBLE_DEVICES"], "from": began, "to": time.time()}
        with open("seen.jsonl", "a") as file:
            file.write(json.dumps(seen) + "\\n")
        return torch.ones_like(view.label_logp)
"""
TARGET = """
defaults: [reliance: watched, residual: self, weight: one, _self_]
_target_: qtarget.math.target.Mixture
normalize: tokens
about: {formula: "", paper: "", year: 2026, differs: ""}
"""
SMALL = ["model=tiny", "data.rows=16", "data.heldout_rows=2", "eval.new_tokens=2", "checkpoint.save=false"]
SMALL += ["trainer.precision=32-true", "trainer.accelerator=cpu", "eval.kl_prior=false", "trainer.eval_every=0"]
SMALL += ["trainer.log_every=1", "target=watched"]
SLURM = ["train", "-m", "hydra/launcher=submitit_slurm", *SMALL]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Slurm of this test's own; its configuration. Skips where there can't be one."""
    pytest.importorskip("submitit")
    installed = subprocess.run([SCRIPTS / "install.sh"], capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"no Slurm here: {installed.stdout.strip()}")
    folder = tmp_path_factory.mktemp("slurm")
    said = folder / "said.txt"
    with said.open("w") as out:
        process = subprocess.Popen(
            [SCRIPTS / "start.sh", folder, *map(str, free_ports(2))], stdout=out, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: process.poll() is not None or idle(folder / "slurm.conf"))
        if process.poll() is not None:
            pytest.skip(f"no Slurm here: {said.read_text().strip()}")
        yield folder / "slurm.conf"
    finally:
        process.terminate()
        process.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def idle(conf: Path) -> bool:
    asked = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"],
        env=os.environ | {"SLURM_CONF": str(conf)},
        capture_output=True,
        check=False,
    )
    return asked.stdout.strip() == b"idle"


def wait_until(done: Callable[[], Any], seconds: float = 300) -> None:
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds
        time.sleep(0.1)


@pytest.fixture
def cluster(slurm: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with parts of the user's own, from which jobs are sent."""
    (workdir / "mine.py").write_text(PARTS)
    (workdir / "conf/target/reliance").mkdir(parents=True)
    (workdir / "conf/target/reliance/watched.yaml").write_text("_target_: mine.Watched\nnumber: 0\n")
    (workdir / "conf/target/watched.yaml").write_text(TARGET)
    sys.modules.pop("mine", None)  # another test's
    monkeypatch.syspath_prepend(workdir)  # as the command does: the file of a class is part of a job's identity
    monkeypatch.setenv("SLURM_CONF", str(slurm))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(launcher, "POLL_SECONDS", 0.5)
    monkeypatch.setattr(launcher, "RESULT_LAG_SECONDS", 3.0)
    return workdir


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("outputs/runs/*/result.json")]


def starts_at_once(job: str) -> bool:
    """Slurm lets a job that was put into the queue again wait for two minutes; False as long as it isn't there."""
    asked = subprocess.run(["squeue", "--noheader", "--format=%T", f"--jobs={job}"], capture_output=True, check=True)
    if asked.stdout.strip() != b"PENDING":
        return False
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    return True


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_array_a_gpu_each(cluster: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = [*SLURM, "trainer.max_steps=1", "target.reliance.number=0,1,2,3"]
    assert run(command) == 1
    told = capfd.readouterr()
    assert "1 of 4 jobs failed" in told.err
    assert told.err.count("number 3 is broken") == 1
    assert told.out.count("finished  ") == 3
    found = results(cluster)
    assert sorted(one["status"] for one in found) == ["failed", "finished", "finished", "finished"]
    seen = [json.loads(line) for line in (cluster / "seen.jsonl").read_text().splitlines()]
    assert {one["device"] for one in seen} == {"0", "1"} == {one["cuda_visible_devices"] for one in found}
    for one, other in itertools.combinations(seen, 2):
        assert one["device"] != other["device"] or one["to"] <= other["from"] or other["to"] <= one["from"]

    started = {one["config_hash"]: one["started"] for one in found}
    assert run(command) == 1
    told = capfd.readouterr()
    assert told.err.count("finished already") == 3
    again = [one for one in results(cluster) if one["started"] != started[one["config_hash"]]]
    assert [one["status"] for one in again] == ["failed"]


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_that_takes_no_gpu_sees_none(cluster: Path) -> None:
    """This Slurm (22.05, no ConstrainDevices) leaves the variable alone where no GPU was asked for."""
    assert run([*SLURM, "trainer.max_steps=1", "target.reliance.number=0,1", "hydra.launcher.gpus_per_node=0"]) == 0
    seen = [json.loads(line) for line in (cluster / "seen.jsonl").read_text().splitlines()]
    assert {one["device"] for one in seen} == {""} == {one["cuda_visible_devices"] for one in results(cluster)}


@pytest.mark.parametrize(
    ("settings", "none"),
    [
        ({"gpus_per_node": 0}, True),
        ({"gpus_per_node": None, "gpus_per_task": 0}, True),
        ({"gpus_per_node": 0, "gres": "shard:1", "additional_parameters": {"reservation": "a"}}, True),
        ({"gpus_per_node": 1}, False),
        ({"gpus_per_node": None}, False),
        ({"gpus_per_node": 0, "gpus_per_task": 1}, False),
        ({"gpus_per_node": 0, "gres": "gpu:2"}, False),
        ({"gpus_per_node": 0, "additional_parameters": {"gpus": 2}}, False),
    ],
)
def test_settings_that_say_that_a_job_has_no_gpu(settings: dict[str, Any], none: bool) -> None:
    assert takes_no_gpu(settings) is none


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_whose_time_is_up_goes_on_and_is_waited_for_again(
    cluster: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The signal that Slurm sends before the time limit; and a driver that was stopped in between."""
    command = [*SLURM, "trainer.max_steps=40", "target.reliance.number=4"]

    ended = threading.Event()

    def trains() -> bool:
        return any(path.stat().st_size for path in cluster.glob("outputs/runs/*/metrics.jsonl"))

    def stop_driver() -> None:
        wait_until(lambda: ended.is_set() or trains())
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_driver)
    thread.start()
    try:
        assert run(command) == 143
    finally:
        ended.set()
        thread.join()
    told = capfd.readouterr().err
    (noted,) = cluster.glob("outputs/runs/*/slurm_job")
    job = noted.read_text()
    assert f"the same command waits for them; to end them: scancel {job}" in told
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    wait_until(lambda: results(cluster)[0]["status"] == "interrupted")
    wait_until(lambda: starts_at_once(job))
    (cluster / "go").touch()
    assert run(command) == 0
    (result,) = results(cluster)
    assert (result["status"], result["attempts"]) == ("finished", 2)
    assert noted.read_text() == job
    steps = [json.loads(line)["step"] for line in (noted.parent / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert max(steps) == 40
    assert "goes on from step" in (noted.parent / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.parametrize("words", [["target.reliance.number=4"], ["-m", "target.reliance.number=3,4"]])
def test_tasks_that_are_preempted_together_go_on_together(
    cluster: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks, which srun starts, of one run or of a multirun whose first job fails: as the same run unbroken."""
    several = [*SMALL, "trainer.max_steps=40", "trainer.batch_size=2", "trainer.devices=2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = shlex.join([sys.executable, "-m", "qtarget", "train", *words, *several])
    task = ["--ntasks-per-node=2", "--nodes=1", "--cpus-per-task=2"]
    script = f"srun --kill-on-bad-exit env CUDA_VISIBLE_DEVICES= {command}"
    job = sbatch([*task, "--requeue", "--open-mode=append", "--output=said.txt", f"--wrap={script}"])

    def state() -> dict[str, Any]:
        found = [one for one in results(cluster) if "target.reliance.number=4" in one["overrides"]]
        return found[0] if found else {}

    wait_until(lambda: any(logged(path) for path in cluster.glob("outputs/runs/*/metrics.jsonl")))
    sbatch(["--partition=urgent", "--cpus-per-task=4", "--wrap=true"])
    wait_until(lambda: state()["status"] == "interrupted")
    wait_until(lambda: starts_at_once(job))
    (cluster / "go").touch()
    wait_until(lambda: state()["status"] == "finished")
    wait_until(lambda: has_ended(job))
    assert state()["attempts"] == 2
    said = (cluster / "said.txt").read_text()
    assert said.count("goes on from step") == 1
    assert said.count("1 of 2 jobs failed") == ("-m" in words)

    assert run(["train", "target.reliance.number=4", *several, "output_dir=unbroken"]) == 0
    (unbroken,) = cluster.glob("unbroken/runs/*/metrics.jsonl")
    (preempted,) = cluster.glob(f"outputs/runs/{unbroken.parent.name}/metrics.jsonl")
    assert [losses for _, losses in logged(preempted)] == pytest.approx([losses for _, losses in logged(unbroken)])
    assert [step for step, _ in logged(preempted)] == [*range(1, 41)]


def sbatch(options: list[str]) -> str:
    """The number of a job that was sent."""
    sent = subprocess.run(["sbatch", "--parsable", *options], capture_output=True, text=True, check=True)
    return sent.stdout.strip()


def has_ended(job: str) -> bool:
    asked = subprocess.run(["squeue", "--noheader", "--format=%T", f"--jobs={job}"], capture_output=True, check=False)
    return asked.stdout.strip() in (b"", b"COMPLETED", b"FAILED")


def logged(path: Path) -> list[tuple[int, float]]:
    """Step and loss of every line that has one."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
