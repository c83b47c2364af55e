"""`qtarget agents`: what is refused before anything starts, agents that crash, an end that leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from qtarget.cli import run as qtarget_cli
from qtarget.launch.slots import Slot
from qtarget.record.wandb_sweep import WandbSweep
from qtarget.sweep import agents

pytestmark = pytest.mark.usefixtures("eight_devices")

SWEEP = WandbSweep("tester/qtarget/abc", "RUNNING", {"metric": {"name": "val/accuracy", "goal": "maximize"}})
CRASHES_TWICE = """
import pathlib, sys
starts = pathlib.Path("starts")
count = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (count + 1))
print("start", count)
sys.exit(0 if count == 2 else 7)
"""
# An agent and its run, which is in a process group of its own and goes on when the agent is gone.
WITH_A_RUN = """
import pathlib, subprocess, sys, time
run = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
pathlib.Path("run.pid").write_text(str(run.pid))
time.sleep({seconds})
sys.exit({code})
"""
GIVES_UP = "print('Detected 3 failed runs in the first 60 seconds, shutting down.')"


@pytest.fixture
def fake(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Agents that are a script of the test, for a sweep that needs no server."""

    def play(script: str) -> None:
        monkeypatch.setattr(agents, "find_sweep", lambda path: SWEEP)
        monkeypatch.setattr(agents, "command", lambda sweep, count: [sys.executable, "-c", script])

    return play


def alive(file: Path) -> bool:
    """Whether the process whose number stands in a file runs; a dead one may wait for a parent that doesn't ask."""
    try:
        return psutil.Process(int(file.read_text())).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_crashed_agent_is_started_again(
    fake: Callable[[str], None], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(CRASHES_TWICE)
    assert qtarget_cli(["agents", "abc", "--gpus", "3", "--pause", "0"]) == 0
    told = capsys.readouterr().err
    assert told.count("exit code 7; starts again") == 2
    assert "device 3" in told
    log = workdir / "outputs/agents/abc/agent-0.log"
    assert log.read_text().split("\n") == ["start 0", "start 1", "start 2", ""]
    assert str(log.relative_to(workdir)) in told


def test_an_agent_that_goes_on_crashing_is_given_up(
    fake: Callable[[str], None], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(CRASHES_TWICE)
    assert qtarget_cli(["agents", "abc", "--gpus", "3", "--pause", "0", "--restarts", "1"]) == 1
    assert "exit code 7; gives up" in capsys.readouterr().err
    assert (workdir / "starts").read_text() == "xx"


def test_an_agent_whose_runs_all_fail_says_so(fake: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    fake(GIVES_UP)
    assert qtarget_cli(["agents", "abc", "--gpus", "0"]) == 1
    assert "gave up: Detected 3 failed runs" in capsys.readouterr().err


def test_the_run_of_a_crashed_agent_does_not_keep_the_device(fake: Callable[[str], None], workdir: Path) -> None:
    fake(WITH_A_RUN.format(seconds=0, code=1))
    assert qtarget_cli(["agents", "abc", "--gpus", "0", "--restarts", "0"]) == 1
    assert not alive(workdir / "run.pid")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_agents_and_their_runs(number: signal.Signals, workdir: Path) -> None:
    script = WITH_A_RUN.format(seconds=600, code=0)
    play = (
        "import sys\n"
        "from qtarget import cli; from qtarget.launch import slots; from qtarget.sweep import agents\n"
        "slots._visible_devices = lambda: ['0']\n"
        "from qtarget.record.wandb_sweep import WandbSweep\n"
        f"agents.find_sweep = lambda path: WandbSweep('tester/qtarget/abc', 'RUNNING', {{}})\n"
        f"agents.command = lambda sweep, count: [sys.executable, '-c', {script!r}]\n"
        "cli.main(['agents', 'abc', '--gpus', '0'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", play], stderr=subprocess.PIPE, text=True)
    started = workdir / "run.pid"
    while not (started.exists() and started.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    told = process.communicate()[1]
    assert process.returncode == 128 + number
    assert "interrupted" in told
    assert not alive(started)


def test_the_command_is_wandbs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = agents.command(SWEEP, 5)
    assert made[:4] == [sys.executable, "-m", "wandb", "agent"]
    assert made[-3:] == ["--count", "5", SWEEP.path]
    assert "--forward-signals" in made
    monkeypatch.setenv("PATH", "/elsewhere")
    place = agents._with_this_python(Slot("a", {"CUDA_VISIBLE_DEVICES": "1"}))
    assert place.environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert place.environment["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/elsewhere"]


def test_a_sweep_that_is_over_is_refused(
    fake: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(agents, "find_sweep", lambda path: WandbSweep("tester/qtarget/abc", "FINISHED", {}))
    assert qtarget_cli(["agents", "abc", "--gpus", "0"]) == 2
    assert "wandb sweep --resume tester/qtarget/abc" in capsys.readouterr().err
