"""A server that is started for one checkpoint, and ended afterwards."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from qtarget.errors import QTargetError
from qtarget.evaluate.completions import Client
from qtarget.evaluate.server_settings import KEY, ServerConfig
from qtarget.forked import PR_SET_PDEATHSIG

LINES = 15
"""Of a log, in messages."""
GRACE = 20.0
"""Seconds between asking a server to end and ending it."""


@dataclass(frozen=True)
class Started:
    """A server's process, its address and its log."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def check_alive(self) -> None:
        """Raise QTargetError with the end of its log where it has ended."""
        with suppress(subprocess.TimeoutExpired):  # its end is seen a moment after its connections are
            self.process.wait(timeout=0.2)
        code = self.process.poll()
        if code is not None:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise QTargetError(f"the server ended by {how}; the last lines of {self.log}:\n{last_lines(self.log)}")


@contextmanager
def started(config: ServerConfig, checkpoint: str, log: Path) -> Iterator[Started]:
    """The server of eval.server.command, once it answers. It and what it has started are ended at the end.

    Raises QTargetError where it can't be started, ends, or doesn't answer within eval.server.start seconds.
    """
    assert config.command
    port = free_port()
    words = [_filled(word, checkpoint, port) for word in shlex.split(config.command)]
    if shutil.which(words[0]) is None:
        raise QTargetError(f"eval.server.command can't be started: there is no program {words[0]!r}")
    environment = {name: value for name, value in os.environ.items() if name != KEY}
    with log.open("wb") as file:
        process = subprocess.Popen(
            _ending_with_parent(words),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )
    try:
        server = Started(process, f"http://127.0.0.1:{port}/v1", log)
        _wait_for(server, config.start)
        yield server
    finally:
        _end(process)


def _ending_with_parent(words: list[str]) -> list[str]:
    """In a process that gets SIGTERM once this one is gone, even where it was killed: no server keeps a GPU.

    By a small program that becomes the command; `preexec_fn` may hang in a process with threads.
    """
    if sys.platform != "linux":
        return words
    program = (
        f"import ctypes, os, sys; ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, {int(signal.SIGTERM)}); "
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-SEc", program, *words]


def _filled(word: str, checkpoint: str, port: int) -> str:
    return word.replace("{checkpoint}", checkpoint).replace("{port}", str(port))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_for(server: Started, seconds: float) -> None:
    """Until /v1/models is answered, whatever is answered: some servers list other things there than what they serve."""
    client, deadline = Client(server.url, timeout=5.0, retries=0), time.monotonic() + seconds
    while True:
        with suppress(OSError, HTTPException):
            client.get("/models")
            return
        server.check_alive()
        if time.monotonic() > deadline:
            raise QTargetError(
                f"the server does not answer at {server.url} after eval.server.start={seconds:g} seconds; the last "
                f"lines of {server.log}:\n{last_lines(server.log)}"
            )


def last_lines(log: Path) -> str:
    """Indented. Of a long log only the end is read."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 16384))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-LINES:])


def _end(process: subprocess.Popen[Any]) -> None:
    """The whole session: servers start processes of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
