"""Work in processes forked from this one: what they need is there from the start, and nothing of theirs stays here.

Linux alone: elsewhere libraries of the system don't outlive a fork.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when the one that started it is gone."""


def can_fork() -> bool:
    """Whether this process may be forked: not one that `multiprocessing` ends with its parent."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


class KilledError(Exception):
    """A process was ended from outside; says by what."""


def in_forks(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """What the tasks return, each called in a process of its own, all at the same time.

    Raises the error of the first one, in their order, that fails, or KilledError. None of them outlives this call or
    this process.
    """
    context = multiprocessing.get_context("fork")
    running = []
    try:
        for task in tasks:
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(task, there, os.getpid()))
            _start(process)
            there.close()
            running.append((process, here))
        return [_result(process, here) for process, here in running]
    finally:
        for process, here in running:
            process.kill()
            process.join()
            here.close()


def _start(process: Any) -> None:
    with warnings.catch_warnings():
        # Python 3.12 warns of threads: those of torch and tokenizers, which a forked process doesn't use
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()


def _work(task: Callable[[], Any], there: Connection, parent: int) -> None:
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: this process's parent ends it
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # their threads weren't forked
    gc.freeze()  # a collection would touch, and so copy, every page that both processes share
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    try:
        result = (True, task())
    except Exception as error:
        result = (False, _sendable(error))
    there.send(result)


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


def _result(process: Any, here: Connection) -> Any:
    try:
        done, result = here.recv()
    except EOFError:
        process.join()
        code = process.exitcode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise KilledError(how) from None
    if done:
        return result
    raise result
