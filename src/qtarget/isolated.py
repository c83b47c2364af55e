"""Code of others in a process of its own, which can be ended and in which sets have the same order every time.

math-verify and some scorers of reasoning-gym hand a model's text to sympy or to Python's eval: `9**9**9**9` never
returns, and `exit()` ends the process. Threads don't help, and signals only on the main thread. So each module that is
called so has a process of its own. A request that outlasts its time ends it, and the next request starts another. This
is no sandbox: what a text makes Python do, it does with the rights of the run.

Not Pebble, which does the same under the LGPL.

The process hashes text with a fixed seed (PYTHONHASHSEED=0). Python's own is another in every process, and code that
draws from a set by a seeded generator then draws something else: five tasks of reasoning-gym 0.1.25 do.
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
"""The time to import a module's libraries, generous for a busy machine."""

_START = """
import sys
sys.path[:] = {path!r}
from qtarget import isolated
isolated.serve({module!r})
"""


class UnansweredError(Exception):
    """The module raised, took too long or its process ended; says which."""


def ask(module: str, *arguments: Any, seconds: float | None = None) -> Any:
    """What `answer(*arguments)` of a module returns there. Raises UnansweredError where it doesn't within `seconds`.

    seconds: None for SECONDS.
    """
    return _process_of(module, os.getpid())(arguments, SECONDS if seconds is None else seconds)


@cache
def _process_of(module: str, _process: int) -> IsolatedProcess:
    """One per module and process: a forked process would share the pipes of its parent's."""
    return IsolatedProcess(module)


class IsolatedProcess:
    """A process that answers one request at a time, whichever thread asks. It starts with the first."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, arguments: tuple[Any, ...], seconds: float) -> Any:
        request = pickle.dumps((arguments, seconds))
        with self._lock:
            process = self._running() or self._started()
            with self._ended_where_out_of_step(seconds):
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
        command = [sys.executable, "-c", _START.format(path=sys.path, module=self._module)]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        atexit.register(self.close)
        try:
            with self._ended_where_out_of_step(START_SECONDS):
                pickle.load(_stream(self._process.stdout))  # it says that it is ready
        except UnansweredError:
            raise RuntimeError(f"the process that runs {self._module} did not start: see its message above") from None
        return self._process

    @contextlib.contextmanager
    def _ended_where_out_of_step(self, seconds: float) -> Iterator[None]:
        """After a death or an interrupt the process goes: a reply that is still to come belongs to no later request."""
        try:
            yield
        except (EOFError, OSError, pickle.UnpicklingError):
            self.close()
            raise UnansweredError(f"no answer within {seconds:g} seconds, or its process ended") from None
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


def serve(module: str) -> None:
    """In the process itself: answer requests until there are no more, each within its seconds or not at all.

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
            _serve_one(answer, requests, replies)


def _serve_one(answer: Callable[..., Any], requests: BinaryIO, replies: BinaryIO) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    arguments, seconds = pickle.load(requests)
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
