"""A Python that has its imports behind it: a command runs in a fork of it, without the five seconds they take.

`WarmPython` starts one process that imports what `qtarget` needs and runs nothing. Beside it lie three small programs,
`python`, `qtarget` and `wandb`, that do what those do: each hands its arguments, folder, environment and standard files
to that process, passes signals on, and ends as the command ended. A command is a process with a session of its own; it
is killed where its program is.

`forking_context` does the same for processes of multiprocessing, and `fork_ranks` for those of `ranks.start`.

Take a real interpreter where the start itself is tested: what is imported, signals, kills, ranks. What a library reads
while it is imported (READ_AT_IMPORT) can't be changed later: a command with other values, and any call but `python -m`
and `python -c`, goes to the real interpreter by itself.
"""

from __future__ import annotations

import importlib
import marshal
import multiprocessing
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

IMPORTS = ("qtarget.run.train", "qtarget.launch.multirun", "qtarget.sweep.command", "wandb.cli.cli", "scipy.stats")
READ_AT_IMPORT = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TORCH", "MKL_", "OPENBLAS_", "LD_", "PYTHON", "MPL", "CUDA_")
AT_ANY_TIME = ("PYTHONPATH", "CUDA_VISIBLE_DEVICES")
"""Of these the first is put on the path anew, and nothing asks for a CUDA device before a command does."""
SCRIPTS = {"qtarget": "qtarget.cli:main", "wandb": "wandb.cli.cli:cli"}
STARTED_WITH = dict(os.environ)
TAKE_A_REAL_ONE = 1 << 10
"""No exit code."""

PROGRAM = """#!{python} -SE
import marshal, os, signal, socket, struct, sys
line = socket.socket(socket.AF_UNIX)
line.connect({address!r})
request = marshal.dumps((sys.argv, os.getcwd(), dict(os.environ)))
socket.send_fds(line, [struct.pack("q", len(request))], [0, 1, 2])
line.sendall(request)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, frame: line.send(bytes([number])))
(code,) = struct.unpack("q", line.recv(8))
if code == {real}:
    os.execv({original!r}, [{original!r}, *sys.argv[1:]])
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def forking_context() -> Any:
    """multiprocessing's context of processes that are forks of one that has its imports behind it, where there is one.

    That one has no threads, whose locks a fork would inherit. A process has the test's folder, not its environment.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    multiprocessing.set_forkserver_preload([*IMPORTS[:3], "qtarget.run.caching", "pytest"])
    return multiprocessing.get_context("forkserver")


def fork_ranks(patch: pytest.MonkeyPatch) -> None:
    """Let `ranks.start` take that context."""
    import torch.multiprocessing as mp

    from qtarget.run import ranks

    context = forking_context()

    def start_processes(*given: Any, start_method: str, **options: Any) -> Any:
        return mp.start_processes(*given, start_method=context.get_start_method(), **options)

    patch.setattr(ranks, "mp", SimpleNamespace(get_context=lambda name: context, start_processes=start_processes))


class WarmPython:
    """bin: the folder of the three programs. The process ends with `close`, or with the process that made it."""

    def __init__(self) -> None:
        self.bin = Path(tempfile.mkdtemp(prefix="warm-"))
        address, here = str(self.bin / "socket"), Path(sys.executable)
        for name in ("python", *SCRIPTS):
            program = self.bin / name
            original = str(here if name == "python" else here.with_name(name))
            program.write_text(PROGRAM.format(python=here, address=address, original=original, real=TAKE_A_REAL_ONE))
            program.chmod(0o755)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # so that the imports start no thread
        self._process = subprocess.Popen(
            [sys.executable, __file__, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        self._process.communicate()
        shutil.rmtree(self.bin)


def serve(address: str) -> None:
    for module in IMPORTS:
        importlib.import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "only a process without threads may be forked"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("ready", flush=True)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then close standard input
    while 0 not in select.select([listener, 0], [], [])[0]:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # of those that watched a command
                pass
        line, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return watch(line)
        line.close()
    os._exit(0)


def watch(line: socket.socket) -> None:
    """Fork the command, pass signals on to it, and say how it ended."""
    header, files, _, _ = socket.recv_fds(line, 8, 3)
    with line.makefile("rb") as stream:
        arguments, folder, environment = marshal.loads(stream.read(*struct.unpack("q", header)))
    if not can_run(arguments, environment):
        line.sendall(struct.pack("q", TAKE_A_REAL_ONE))
        os._exit(0)
    child = os.fork()
    if child == 0:
        line.close()
        return command(arguments, folder, environment, files)
    for file in files:
        os.close(file)
    ended = os.pidfd_open(child)
    while ended not in select.select([line, ended], [], [])[0]:
        numbers = line.recv(1)
        if numbers:
            os.kill(child, numbers[0])
        else:
            os.killpg(child, signal.SIGKILL)
            break
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(BrokenPipeError):  # its program is gone
        line.sendall(struct.pack("q", code))
    os._exit(0)


def can_run(arguments: list[str], environment: dict[str, str]) -> bool:
    def read_at_import(names: dict[str, str]) -> dict[str, str]:
        return {
            name: value for name, value in names.items() if name.startswith(READ_AT_IMPORT) and name not in AT_ANY_TIME
        }

    is_python = os.path.basename(arguments[0]) == "python"
    known = not is_python or (len(arguments) > 2 and arguments[1] in ("-m", "-c"))
    return known and read_at_import(environment) == read_at_import(STARTED_WITH)


def command(arguments: list[str], folder: str, environment: dict[str, str], files: list[int]) -> None:
    """This process as it would be had it just been started; what the command raises ends it as it would have there."""
    import torch

    os.setsid()
    os.chdir(folder)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    by_imports = {name: value for name, value in os.environ.items() if name not in STARTED_WITH}
    os.environ.clear()
    os.environ.update(by_imports | environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    program, *rest = arguments
    name = os.path.basename(program)
    here = Path(program if os.path.isabs(program) else shutil.which(program) or program).parent
    sys.executable = str(here / "python")
    mine = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:1] = [os.getcwd() if name == "python" else str(here), *mine]
    sys.argv[:] = arguments if name != "python" else [rest[0], *rest[2:]]
    if name != "python":
        pkgutil.resolve_name(SCRIPTS[name])()
    elif rest[0] == "-m":
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        exec(compile(rest[1], "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    serve(sys.argv[1])
