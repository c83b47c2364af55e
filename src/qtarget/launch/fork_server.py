"""Jobs that are forks of one process which has everything imported: each is spared the seconds that imports take.

`ForkServer` is that process, as the one that launches jobs sees it. It imports what every job needs, computes nothing,
and forks once for each job. A job has memory, a session, output and a standard input of its own, as a process that was
started anew; `signals.exit_with_parent` follows its standard input.

- The server ignores the signals that end jobs, which then save their states. It ends when its standard input closes.
- It has no threads when it forks: a fork would lack them, and wait for ever for a lock that one of them held.
- Not beside a CUDA device: what libraries ask of the driver while they are imported, no fork could use.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from qtarget.signals import SIGNALS
from qtarget.uncollected import uncollected

IMPORTED = ("qtarget.run.train", "qtarget.launch.multirun")
IGNORED = (signal.SIGINT, *SIGNALS)
BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""Variables that bind threads to cores when OpenMP is loaded: in a server to all cores, not to those of a slot."""
LAST_MOMENTS = 10.0
"""Seconds in which a thread that has ended may still be listed: on cores that others use, it leaves the list late."""
REPORT = struct.Struct("=?q")
"""Of a job, to the process that launched it: False and its process id once it has begun, True and its exit code."""


def can_serve() -> bool:
    """Whether jobs without a device may be forked here."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open") and not any(name in os.environ for name in BINDING)


class ServerLostError(Exception):
    """The server has ended, and starts no job."""


@dataclass(frozen=True)
class ForkedJob:
    """A job, as subprocess.Popen shows one. It ends itself when `stdin`, the other end of its own, is closed."""

    pid: int
    stdin: socket.socket

    def poll(self) -> int | None:
        """Its exit code, below 0 for a signal; None while it runs.

        Nobody knows that of a job whose server was killed: once it has ended, it counts as killed too.
        """
        try:
            report = self.stdin.recv(REPORT.size, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except BlockingIOError:
            return None
        return int(REPORT.unpack(report)[1]) if report else -signal.SIGKILL


class ForkServer:
    """environment: of the server, and so of its jobs. out: where warnings of imports, and its last words, go."""

    def __init__(self, environment: Mapping[str, str], out: IO[bytes]) -> None:
        self.log = out.name
        self._requests, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import main; main()"],
                env=environment,
                stdin=theirs.fileno(),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start(self, arguments: Sequence[str], cores: Sequence[int], out: IO[bytes]) -> ForkedJob:
        """`qtarget ARGUMENTS` on these cores, its output behind what `out` holds. Waits until it has its session.

        Raises ServerLostError.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._requests, [b"."], [theirs.fileno(), out.fileno()])
            ours.sendall(json.dumps([list(arguments), list(cores)]).encode() + b"\n")
            return ForkedJob(_begun(ours.recv(REPORT.size)), ours)
        except (BrokenPipeError, ConnectionResetError) as error:
            ours.close()
            raise ServerLostError from error
        except BaseException:
            ours.close()
            raise

    def close(self) -> None:
        """End the server, not its jobs."""
        self._requests.close()
        self._process.kill()
        self._process.wait()


def _begun(report: bytes) -> int:
    """The process id of a job that has begun."""
    if not report:
        raise ServerLostError
    ended, number = REPORT.unpack(report)
    if ended:
        raise ServerLostError
    return int(number)


# In the server


@dataclass
class _Server:
    """requests: from the launcher. jobs: those that run, by what select says of their end."""

    requests: socket.socket
    jobs: dict[int, tuple[int, socket.socket]] = field(default_factory=dict)

    def next_job(self) -> list[int]:
        """The files of a job, standard input and output, in its fork; none in the server, once the launcher is gone."""
        while True:
            watched: list[Any] = [self.requests, *self.jobs]
            ready = select.select(watched, [], [])[0]
            for ended in self.jobs.keys() & ready:
                self._report(ended)
            if self.requests in ready:
                files = socket.recv_fds(self.requests, 1, 2, socket.MSG_CMSG_CLOEXEC)[1]
                if not files or self._fork(files) == 0:
                    return files

    def _fork(self, files: Sequence[int]) -> int:
        line, log = files
        process = os.fork()
        if process == 0:
            self._close()
            return 0
        os.close(log)
        self.jobs[os.pidfd_open(process)] = process, socket.socket(fileno=line)
        return process

    def _close(self) -> None:
        """In a fork: leave the server's files alone."""
        self.requests.close()
        for ended, (_, line) in self.jobs.items():
            os.close(ended)
            line.close()

    def _report(self, ended: int) -> None:
        process, line = self.jobs.pop(ended)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        with line, suppress(OSError):  # whom it tells may be gone
            line.send(REPORT.pack(True, code))
        os.close(ended)


def main() -> None:
    """Import, then fork a job for each request on standard input, until that closes."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in IGNORED}
    sys.path[0] = sys.path[0] or os.getcwd()  # as `python -m qtarget` has it
    with uncollected():
        for module in IMPORTED:
            importlib.import_module(module)
    _check_threads()
    gc.freeze()  # a collection would touch, and so copy, every page that the jobs share
    if files := _Server(socket.fromfd(0, socket.AF_UNIX, socket.SOCK_STREAM)).next_job():
        _become_job(files, handlers)


def _check_threads() -> None:
    """Leave where the imports have started threads that stay. OpenBLAS ends its own before a fork."""
    trial = os.fork()
    if trial == 0:
        os._exit(0)
    os.waitpid(trial, 0)
    deadline = time.monotonic() + LAST_MOMENTS
    while (left := len(os.listdir("/proc/self/task")) - 1) and time.monotonic() < deadline:
        time.sleep(0.01)
    if left:
        sys.exit(f"qtarget: no fork would have the threads that imports have started: {left}")


def _become_job(files: Sequence[int], handlers: Mapping[int, Any]) -> None:
    """This process as it would be, had it just been started: what ends it, ends it as there."""
    import numpy as np

    os.setsid()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    line, log = files
    for here, there in ((line, 0), (log, 1), (log, 2)):
        os.dup2(here, there)
    os.close(line)
    os.close(log)
    with open(0, closefd=False) as request:
        arguments, cores = json.loads(request.readline())
    os.sched_setaffinity(0, cores)
    np.random.seed()  # Python's own generator does so by itself
    os.write(0, REPORT.pack(False, os.getpid()))
    sys.argv[1:] = arguments
    runpy.run_module("qtarget", run_name="__main__", alter_sys=True)
