"""Completion: what can stand at the end of a line, and the shells that ask for it."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qtarget.app.cli import COMMANDS
from qtarget.app.cli import run as qtarget_cli
from qtarget.app.completion import OPTIONS, SCRIPTS, candidates

HERE = Path(sys.executable).parent
LINES = {
    "qtarget tr": ["train"],
    "qtarget --v": ["--version"],
    "qtarget train target=label": ["target=label_smoothing"],
    "qtarget train targ": ["target.", "target/", "target="],
    "qtarget train target/resid": ["target/residual="],
    "qtarget train target/residual=te": ["target/residual=teacher"],
    "qtarget train optim.weight": ["optim.weight_decay="],
    "qtarget train trainer.max_steps=": ["trainer.max_steps=60"],
    "qtarget train target=sft reference@references.teacher=fro": ["reference@references.teacher=frozen"],
    "qtarget train -m target=sft,label": ["target=sft,label_smoothing"],
    "qtarget train --mult": ["--multirun"],
    "qtarget cache det": ["detail="],
    "qtarget show target=label": ["target=label_smoothing"],
    "qtarget compare --group": ["--group-by"],
    "qtarget completion f": ["fish"],
    "qtarget nonsense ": [],
    "qtarget train 'tar": [],
}


@pytest.mark.parametrize("line", LINES)
def test_the_last_word_is_completed(line: str, workdir: Path) -> None:
    assert candidates(line) == LINES[line]


def test_a_new_word_may_be_any(workdir: Path) -> None:
    assert set(COMMANDS) < set(candidates("qtarget "))
    assert {"target=", "target/", "data=", "optim.", "seed="} <= set(candidates("qtarget train "))
    assert "detail=" in candidates("qtarget cache ")
    assert candidates("qtarget completion ") == sorted(SCRIPTS)


def test_the_users_own_options_are_among_them(workdir: Path) -> None:
    (workdir / "conf" / "target").mkdir(parents=True)
    (workdir / "conf" / "target" / "label_my_own.yaml").write_text("defaults: [sft]\n")
    assert candidates("qtarget train target=label") == ["target=label_my_own", "target=label_smoothing"]


@pytest.mark.parametrize("command", ["sweep", "compare", "agents", "dashboard", "train"])
def test_options_are_those_of_the_commands_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli([command, "--hydra-help" if command == "train" else "--help"]) == 0
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", capsys.readouterr().out))
    listed = {option for option in OPTIONS[command] if option.startswith("--")}
    assert listed <= told
    if command != "train":  # Hydra has some that are no use here
        assert told == listed


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_of_a_shell_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["completion", shell]) == 0
    assert capsys.readouterr().out == SCRIPTS[shell]


# Shells


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"PATH": f"{HERE}:{os.environ['PATH']}", "HOME": str(folder), "TERM": "dumb", "PS1": "$ "}


@pytest.mark.parametrize("breaks", ["", " '\"><;|&("], ids=["breaks at =", "doesn't break at ="])
def test_bash_completes_lines(breaks: str, workdir: Path) -> None:
    """A real one, on a terminal: Tab is typed, then the line is shown by printf put before it."""
    setup = 'eval "$(qtarget completion bash)"' + (f"; COMP_WORDBREAKS={shlex.quote(breaks)}" if breaks else "")
    lines = {
        "qtarget train target=label": "_smoothing ",
        "qtarget train target/residual=te": "acher ",
        "qtarget train reference@references.teacher=fro": "zen ",
        "qtarget train optim.weight": "_decay=",
        "qtarget dash": "board ",
    }
    with terminal(["bash", "--norc", "--noprofile", "-i"], workdir) as shell:
        answer(shell, f"{setup}; echo re'ady'\n", "ready")
        for typed, rest in lines.items():
            answer(shell, f"{typed}\t", rest)
            shown = answer(shell, "\x01printf '<%s>\\n' '\x05'; echo do'ne'\n", "done")
            assert f"<{typed}{rest}>" in shown, shown


@contextmanager
def terminal(shell: list[str], folder: Path) -> Iterator[int]:
    """A shell on a terminal of its own."""
    descriptor, its = pty.openpty()
    options: dict[str, Any] = {"stdin": its, "stdout": its, "stderr": its, "start_new_session": True}
    with subprocess.Popen(shell, env=environment(folder), **options) as process:
        os.close(its)
        try:
            yield descriptor
        finally:
            process.kill()
            os.close(descriptor)


def answer(shell: int, keys: str, until: str) -> str:
    """What a shell shows after some keys, until it shows a text."""
    os.write(shell, keys.encode())
    shown, deadline = "", time.monotonic() + 60
    while until not in shown and time.monotonic() < deadline:
        if select.select([shell], [], [], 0.5)[0]:
            shown += os.read(shell, 4096).decode(errors="replace")
    return shown


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_reads_its_script_and_offers_the_same(workdir: Path) -> None:
    """compadd is replaced by one that prints: it works only within a completion."""
    play = (
        "compdef() {}; compadd() { print -rl -- $@ }; _files() { print files }\n"
        f"{SCRIPTS['zsh']}\nwords=(qtarget train target=label); CURRENT=3; _qtarget_completion\n"
        "words=(qtarget train optim.weight); CURRENT=3; _qtarget_completion\n"
        "words=(qtarget train nonsense=); CURRENT=3; _qtarget_completion\n"
    )
    done = subprocess.run(
        ["zsh", "-f", "-c", play], env=environment(workdir), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [
        *("-Q", "--", "target=label_smoothing"),
        *("-Q", "-S", "--", "optim.weight_decay="),
        "files",
    ]


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
@pytest.mark.parametrize(
    ("typed", "offered"), [("train target=label", "target=label_smoothing"), ("dash", "dashboard")]
)
def test_fish_reads_its_script_and_offers_the_same(typed: str, offered: str, workdir: Path) -> None:
    play = f"qtarget completion fish | source; complete --do-complete 'qtarget {typed}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", play], env=environment(workdir), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [offered]
