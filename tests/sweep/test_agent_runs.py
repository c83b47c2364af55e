"""What `qtarget agents` says of runs that were lost, with W&B's own agents and a server in memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb_server import ENTITY, Backend

from qtarget.cli import run as qtarget_cli
from qtarget.record.wandb_sweep import WandbSweep
from qtarget.sweep import agents
from qtarget.sweep.agent_runs import Runs, all_well, runs_in

# W&B's own command line, whose agents ask for work every fifth of a second and not every five.
QUICK = "import wandb.wandb_agent as agents; agents.Agent.POLL_INTERVAL = 0.2; from wandb.cli.cli import cli; cli()"
# A run at W&B that ends as its point says.
ENDS = """
import os, signal, sys
import wandb
ways = {"well": lambda: None, "raises": lambda: 1 / 0}
ways |= {name: lambda name=name: os.kill(os.getpid(), signal.Signals[name]) for name in ("SIGKILL", "SIGTERM")}
with wandb.init(settings=wandb.Settings(console="off", silent=True)) as run:
    run.log({"x": 1})
    ways[sys.argv[1].partition("=")[2]]()
"""
LOG = """
2026-11-27 14:00:01,000 - wandb.wandb_agent - INFO - Running runs: []
2026-11-27 14:00:02,000 - wandb.wandb_agent - INFO - Running runs: ['ab12']
2026-11-27 14:00:03,000 - wandb.wandb_agent - INFO - Cleaning up finished run: ab12
2026-11-27 14:00:04,000 - wandb.wandb_agent - INFO - Cleaning up finished run: cd34
2026-11-27 14:00:05,000 - wandb.wandb_agent - INFO - Running runs: ['ef56', 'gh78']
2026-11-27 14:00:06,000 - wandb.wandb_agent - INFO - Agent received command: stop
2026-11-27 14:00:06,000 - wandb.wandb_agent - INFO - Stop: ef56
"""


def test_an_agents_log_names_its_runs_and_those_that_the_sweep_stopped() -> None:
    assert runs_in([LOG, LOG]) == Runs(("ab12", "cd34", "ef56", "gh78"), frozenset({"ef56"}))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    made = agents.command
    monkeypatch.setattr(agents, "command", lambda *given: [sys.executable, "-c", QUICK, *made(*given)[3:]])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("ignore:Read the `app_url` setting:DeprecationWarning")  # wandb 0.31 in its own `sweep`
@pytest.mark.parametrize(
    ("ways", "said"),
    [
        (["well", "raises", "SIGTERM", "SIGKILL"], ["1 of the 4 runs", "(failed)", "(killed)", "`wandb sweep FILE`"]),
        (["well"], ["1 of the 1 runs of these agents are well"]),
    ],
)
def test_runs_that_a_signal_ended_are_named_and_the_exit_code_tells_of_them(
    ways: list[str], said: list[str], wandb_server: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    """wandb 0.31's agent ends with 0 here: to it a run has failed only where its exit code is above 0."""
    Path("ends.py").write_text(ENDS)
    command = ["${env}", "python", "ends.py", "${args_no_hyphens}"]
    points: dict[str, Any] = {"way": {"values": ways}}
    made = wandb.sweep({"method": "grid", "parameters": points, "command": command}, project="qtarget")
    lost = len(ways) - ways.count("well")
    given = ["agents", f"{ENTITY}/qtarget/{made}", "--agents", "1", "--count", str(len(ways))]
    assert qtarget_cli(given) == (1 if lost else 0)
    told = capsys.readouterr().err
    assert all(text in told for text in said)
    assert told.count("LOST") == lost


@pytest.mark.parametrize("no_wandb", ["key"], indirect=True)
def test_without_an_answer_of_the_server_the_records_tell(
    no_wandb: None, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, status in (("ab12", "finished"), ("cd34", "interrupted"), ("ef56", "running"), ("gh78", "running")):
        folder = workdir / "outputs/runs" / run
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"status": status, "tracked_as": run}))
    sweep = WandbSweep("tester/qtarget/abc", "RUNNING", {})
    assert not all_well(sweep, runs_in([LOG]))
    told = capsys.readouterr().err
    assert "W&B doesn't say what became of the runs" in told
    assert "2 of the 4 runs" in told
    assert "cd34 (interrupted)  →  outputs/runs/cd34" in told
    assert "gh78 (killed)  →  outputs/runs/gh78" in told
    assert all_well(sweep, Runs(("ab12", "ef56"), frozenset({"ef56"})))
