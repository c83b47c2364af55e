"""A command in a fork of a warm interpreter is the command: arguments, folder, environment, files, signals, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux's")

SHOW = """
import os, sys
print(sys.argv, os.getcwd(), os.environ.get("OTHER"), os.path.abspath(sys.path[0]), end=" ")
print(sys.stdin.read(), os.getsid(0) == os.getpid())
print("aside", file=sys.stderr)
"""


def run(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)


@pytest.fixture
def real() -> str:
    return sys.executable


def test_it_has_what_a_real_one_has(real: str, warm: None, tmp_path: Path) -> None:
    environment = {**os.environ, "OTHER": "value"}
    shown = [
        run(python, "-c", SHOW, "a b", "ü", cwd=tmp_path, env=environment, input="typed", start_new_session=True)
        for python in (real, sys.executable)
    ]
    assert "OTHER" not in os.environ
    assert "torch" in run(sys.executable, "-c", "import sys; print(*sys.modules)").stdout.split()
    assert shown[0].stderr == shown[1].stderr == "aside\n"
    assert shown[0].stdout == f"['-c', 'a b', 'ü'] {tmp_path} value {tmp_path} typed True\n"
    assert shown[1].stdout == shown[0].stdout


@pytest.mark.parametrize(
    "code",
    ["pass", "exit(3)", "exit('why')", "1 / 0", "import os; os._exit(137)", "import os; os.kill(os.getpid(), 9)"],
)
def test_it_ends_as_a_real_one_ends(code: str, real: str, warm: None) -> None:
    ends = [run(python, "-c", code) for python in (real, sys.executable)]
    assert ends[0].returncode == ends[1].returncode
    assert ends[0].stderr.splitlines()[-1:] == ends[1].stderr.splitlines()[-1:]


WAITS = """
import pathlib, os, signal, sys, time
def handle(number, frame):
    sys.exit(10 + number)
signal.signal(signal.SIGUSR1, handle)
pathlib.Path("pid").write_text(str(os.getpid()))
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGUSR1, 10 + signal.SIGUSR1), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_signals_reach_it_and_it_ends_with_its_program(
    number: signal.Signals, code: int, warm: None, workdir: Path
) -> None:
    process = subprocess.Popen([sys.executable, "-c", WAITS])
    file = Path("pid")
    while not (file.exists() and file.read_text()):
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() == code
    began = time.monotonic()
    while Path(f"/proc/{file.read_text()}").exists():
        assert time.monotonic() - began < 10
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("command", "changes"),
    [(["-c", "import sys; print('torch' in sys.modules)"], {"PYTHONHASHSEED": "0"}), (["x.py"], {})],
)
def test_what_it_cannot_do_is_done_by_a_real_one(
    command: list[str], changes: dict[str, str], warm: None, workdir: Path
) -> None:
    Path("x.py").write_text("import sys; print('torch' in sys.modules)")
    assert run(sys.executable, *command, env={**os.environ, **changes}).stdout == "False\n"


def test_the_commands_are_found_and_say_the_same(real: str, warm: None) -> None:
    for name in ("qtarget", "wandb"):
        told = [run(program, "--help") for program in (Path(real).with_name(name), name)]
        assert told[0].returncode == told[1].returncode == 0
        assert told[0].stdout == told[1].stdout
