"""Code of others that runs on a model's text, in a process of its own that can be ended.

math-verify and some scorers of reasoning-gym hand the text to sympy or to Python's eval: `9**9**9**9` never returns,
and `exit()` ends the process. Threads don't help, and signals only on the main thread. So each judge has a process; a
request that outlasts its time ends it, and the next request starts another. This is no sandbox: what a text makes
Python do, it does with the rights of the run.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any, BinaryIO

SECONDS = 5.0
"""A request's time. Answers take milliseconds; what takes longer is not an answer."""
START_SECONDS = 300.0
"""The time to import a judge's libraries, generous for a busy machine."""

_START = """
import sys
sys.path[:] = {path!r}
from qtarget.evaluate.verify import apart
apart.serve({module!r}, {seconds!r})
"""


class UnansweredError(Exception):
    """The judge raised, took too long or died; says which."""


def ask(module: str, *arguments: Any) -> Any:
    """What `answer(*arguments)` of a module returns there, within SECONDS. Raises UnansweredError where it doesn't."""
    return _judge(module, os.getpid())(arguments)


@cache
def _judge(module: str, _process: int) -> Judge:
    """One per module and process: a forked process would share the pipes of its parent's."""
    return Judge(module)


class Judge:
    """A process that answers one request at a time, whichever thread asks. It starts with the first."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, arguments: tuple[Any, ...]) -> Any:
        request = pickle.dumps(arguments)
        with self._lock:
            process = self._running() or self._started()
            with self._ended_where_out_of_step():
                _stream(process.stdin).write(request)
                _stream(process.stdin).flush()
                answered, value = pickle.load(_stream(process.stdout))
        if not answered:
            raise UnansweredError(value)
        return value

    def _running(self) -> subprocess.Popen[bytes] | None:
        if self._process and self._process.poll() is not None:  # it was ended between two requests
            self.close()
        return self._process

    def _started(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _START.format(path=sys.path, module=self._module, seconds=SECONDS)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        atexit.register(self.close)
        try:
            with self._ended_where_out_of_step():
                pickle.load(_stream(self._process.stdout))  # it says that it is ready
        except UnansweredError:
            raise RuntimeError(f"the process that runs {self._module} did not start: see its message above") from None
        return self._process

    @contextlib.contextmanager
    def _ended_where_out_of_step(self) -> Iterator[None]:
        """After a death or an interrupt the process goes: a reply that is still to come belongs to no later request."""
        try:
            yield
        except (EOFError, OSError, pickle.UnpicklingError):
            self.close()
            raise UnansweredError(f"no verdict within {SECONDS:g} seconds, or its process ended") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process; the next request starts another."""
        process, self._process = self._process, None
        atexit.unregister(self.close)
        if process:
            process.kill()
            process.communicate()


def _stream(stream: Any) -> BinaryIO:
    assert stream is not None
    return stream


def serve(module: str, seconds: float) -> None:
    """In the judge's process: answer requests until there are no more, each within `seconds` or not at all.

    The alarm's default action ends the process, in the middle of C code and whether or not anyone still listens.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, START_SECONDS)
    # Pipes of our own: what a library prints is not a reply, and exit() closes the standard input before it raises.
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    answer = import_module(module).answer
    _send((True, None), replies)
    _hush()
    with contextlib.suppress(EOFError):
        while True:
            _serve_one(answer, seconds, requests, replies)


def _serve_one(answer: Callable[..., Any], seconds: float, requests: BinaryIO, replies: BinaryIO) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    arguments = pickle.load(requests)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        reply = (True, answer(*arguments))
    except (Exception, SystemExit) as error:
        reply = (False, f"{type(error).__name__}: {str(error)[:200]}")
    _send(reply, replies)


def _send(reply: tuple[bool, Any], replies: BinaryIO) -> None:
    pickle.dump(reply, replies)
    replies.flush()


def _hush() -> None:
    """What the libraries say once they are imported is about one text of many."""
    logging.disable()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
