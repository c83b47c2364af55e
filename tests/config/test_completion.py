"""Completion, asked as the shells ask it, and in a real bash, zsh and fish at a terminal."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from qtarget.cli import run as qtarget_cli
from qtarget.config.completion import SCRIPTS, completions
from qtarget.config.composing import options
from qtarget.config.parsers import COMMANDS

BASH_BREAKS = " \t\n\"'@><=;|&(:"  # COMP_WORDBREAKS of bash 5.2 as it starts

LINES: dict[str, tuple[str, set[str]]] = {
    "commands": ("qtarget tr", {"train "}),
    "help of commands": ("qtarget help sh", {"show "}),
    "designs": ("qtarget train target=kd_t", {"target=kd_temperature ", "target=kd_truncated "}),
    "behind a comma": ("qtarget train -m target=sft,ta", {"target=sft,talr ", "target=sft,target_sft "}),
    "parts": ("qtarget train target/re", {"target/reliance=", "target/residual="}),
    "a part's options": ("qtarget train target/weight=i", {"target/weight=inverse_prior "}),
    "group@package": ("qtarget train reference@references.te", {"reference@references.teacher="}),
    "its options": ("qtarget train reference@references.old=s", {"reference@references.old=snapshot "}),
    "below a group": ("qtarget train optim.w", {"optim.warmup=", "optim.weight_decay="}),
    "of the design chosen": ("qtarget train target=dft target.reliance.al", {"target.reliance.alpha="}),
    "of the source chosen": ("qtarget train data=jsonl data.source.pa", {"data.source.path="}),
    "true or false": ("qtarget train trainer.dry=", {"trainer.dry=true ", "trainer.dry=false "}),
    "what it is": ("qtarget train optim.lr=", {"optim.lr=0.0001 "}),
    "experiments in folders": (
        "qtarget train experiment=fair/",
        {"experiment=fair/learning_rate ", "experiment=fair/update_norm "},
    ),
    "a launcher": ("qtarget train -m hydra/launcher=s", {"hydra/launcher=slots ", "hydra/launcher=submitit_slurm "}),
    "options": ("qtarget train --mu", {"--multirun "}),
    "an option's values": ("qtarget train target=sft --cfg ", {"job ", "hydra ", "all "}),
    "behind an option": ("qtarget train --cfg job model=ti", {"model=tiny "}),
    "cache's keys": ("qtarget cache det", {"detail="}),
    "their values": ("qtarget cache role=", {"role=prior ", "role=teacher "}),
    "cache's overrides": ("qtarget cache detail=topk model=ti", {"model=tiny "}),
    "evaluate": ("qtarget evaluate checkp", {"checkpoint=", "checkpoint."}),
    "show": ("qtarget show target=talr", {"target=talr "}),
    "lens": ("qtarget lens ro", {"rows=", "role="}),
    "compare": ("qtarget compare here --format m", {"md "}),
    "power": ("qtarget power here --des", {"--designs "}),
    "sweep's options": ("qtarget sweep here.yaml --sl", {"--slots "}),
    "shipped sweeps": ("qtarget sweep noise", {"noise_robustness "}),
    "sweep's overrides": ("qtarget sweep here.yaml model=ti", {"model=tiny "}),
    "agents": ("qtarget agents --re", {"--restarts "}),
    "dashboard": ("qtarget dashboard --p", {"--project "}),
    "shells": ("qtarget completion z", {"zsh "}),
    "no command": ("qtarget trane mod", set()),
    "no such group": ("qtarget train nothing=x", set()),
    "behind what doesn't compose": ("qtarget train target=nope optim.", set()),
    "open quotes": ("qtarget train 'name=a b' optim.lr", {"optim.lr="}),
}


@pytest.mark.parametrize("case", LINES)
def test_a_line_is_completed(case: str, workdir: Path) -> None:
    line, wanted = LINES[case]
    assert set(completions(line)) == wanted
    word = line.split(" ")[-1]
    kept = len(word) - len(re.split(f"[{re.escape(BASH_BREAKS)}]", word)[-1])
    assert set(completions(line, BASH_BREAKS)) == {one[kept:] for one in wanted}


def test_every_group_and_command_is_offered() -> None:
    assert {name.strip() for name in completions("qtarget ")} == {*COMMANDS, "help", "--help", "--version"}
    assert {"target=", "target/", "model=", "data=", "optim.", "seed=", "experiment="} <= set(
        completions("qtarget train ")
    )
    assert completions("qtarget train target=") == [f"target={name} " for name in options("target")]


def test_files_and_the_users_own_designs_are_offered(workdir: Path) -> None:
    (workdir / "conf" / "target").mkdir(parents=True)
    (workdir / "conf" / "target" / "mine.yaml").write_text("defaults: [dft]\n")
    (workdir / "runs" / "one").mkdir(parents=True)
    (workdir / "mine.yaml").touch()
    (workdir / "mine of today.yaml").touch()  # would have to be quoted
    assert completions("qtarget train target=mi") == ["target=mine "]
    assert completions("qtarget show target=mi", BASH_BREAKS) == ["mine "]
    assert completions("qtarget evaluate checkpoint=ru") == ["checkpoint=runs/"]
    assert completions("qtarget compare runs/") == ["runs/one/"]
    assert completions("qtarget sweep mi") == ["mine.yaml "]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_of_a_shell_is_printed_and_is_legal(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"qtarget completion {shell}" in script.splitlines()[0]  # how it is installed
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run(
        [shell, "-n", "-c", script] if shell != "fish" else [shell, "-n"], input=script, text=True, check=True
    )


START = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"], "fish": ["--no-config", "-i"]}
SOURCE = {
    "bash": 'eval "$(qtarget completion bash)"',
    "zsh": 'eval "$(qtarget completion zsh)"',
    "fish": "qtarget completion fish | source",
}
TYPED = [
    ("qtarget comple\t", "completion"),
    ("qtarget show target=tal\t", "show target=talr"),
    ("qtarget train reference@references.prior=cac\tmodel=ti\t", "train reference@references.prior=cached model=tiny"),
    ("qtarget train -m target=sft,tal\t", "train -m target=sft,talr"),
    ("qtarget cache detail=hid\t--help", "cache detail=hidden --help"),
]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_shell_completes_what_is_typed_at_a_terminal(shell: str, workdir: Path) -> None:
    """A real shell, and a qtarget that notes what Enter runs; the questions of the script reach the real one."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    noted = workdir / "noted"
    command = workdir / "bin" / "qtarget"
    command.parent.mkdir()
    asks = f'"completion "*) exec {sys.executable} -m qtarget "$@" ;;'
    command.write_text(f"""#!/bin/sh\ncase "$*" in {asks} *) echo "$*" >> {noted} ;; esac\n""")
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HOME": str(workdir), "TERM": "dumb" if shell != "fish" else "xterm"}
    terminal = pexpect.spawn(shell, START[shell], env=environment, encoding="utf8", timeout=60, dimensions=(24, 250))
    try:
        terminal.sendline(f"{SOURCE[shell]}; echo rea''dy")
        terminal.expect("ready\r?\n")
        for count, (typed, _) in enumerate(TYPED, 1):
            terminal.send(f"{typed}\r")
            assert _until(terminal, lambda count=count: len(_lines(noted)) >= count), terminal.before
    finally:
        terminal.close(force=True)
    assert _lines(noted) == [wanted for _, wanted in TYPED]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _until(terminal: pexpect.spawn, holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold within a minute, while what the terminal prints is read."""
    until = time.monotonic() + 60
    while not holds() and time.monotonic() < until:
        with contextlib.suppress(pexpect.TIMEOUT):
            terminal.expect("\n", timeout=0.1)
    return holds()
