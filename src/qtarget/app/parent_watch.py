"""A job ends when the process that started it is gone, even where that was killed and could say nothing."""

from __future__ import annotations

import os
import signal
import threading
import time

LIFELINE = "QTARGET_LIFELINE"
"""Set in the environment, standard input is a pipe that closes when the process that started this one is gone."""
GRACE = 60.0
"""Seconds between asking a job to stop, which ends its step and saves its state, and making it."""


_STARTED_BY_DRIVER = threading.Event()


def patience() -> float:
    """Seconds to wait for a job's folder: until one that an earlier, killed driver had started has ended by itself."""
    return 2 * GRACE if _STARTED_BY_DRIVER.is_set() else 0.0


def hold_on() -> None:
    """End this process and those it started, by SIGTERM and then by force, once the other end of the pipe is closed."""
    if not os.environ.pop(LIFELINE, None):
        return
    _STARTED_BY_DRIVER.set()
    line, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_follow, args=(line,), daemon=True).start()


def _follow(line: int) -> None:
    os.read(line, 1)
    os.killpg(os.getpgrp(), signal.SIGTERM)
    time.sleep(GRACE)
    os.killpg(os.getpgrp(), signal.SIGKILL)
