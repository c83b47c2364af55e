"""Work in a forked child that may fail, never end or take all memory, as a mutant may."""

from __future__ import annotations

import math
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

BROKEN = 70
"""The exit status of a child that failed outside pytest: the run's own fault, no mutant's."""
MEMORY = 6 << 30
"""Bytes a child may write to, beside those that its parent holds."""
PATIENCE = 10
"""On the clock a child may take so many times the seconds of the processor that it is given."""


def outcome(work: Callable[[], int], seconds: float) -> int | None:
    """The exit status of work in a forked child without output, a negative one for a signal; None: it took too long.

    seconds: of the processor; PATIENCE times as many on the clock, whoever else uses the machine.
    """
    child = os.fork()
    if child == 0:
        status = BROKEN
        try:
            os.setsid()
            most = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA, (_limit(most), most))
            if seconds < math.inf:
                resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 5))
            silence = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(silence, stream)
            status = work()
        finally:
            os._exit(status)
    try:
        return _waited(child, time.monotonic() + PATIENCE * seconds)
    except BaseException:
        os.killpg(child, signal.SIGKILL)
        raise


def _waited(child: int, end: float) -> int | None:
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return None if code == -signal.SIGXCPU else code
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _limit(most: int) -> int:
    """most: what the process may ask for; a child of a child has no more than that."""
    wanted = _bytes_held() + MEMORY
    return wanted if most == resource.RLIM_INFINITY else min(wanted, most)


def _bytes_held() -> int:
    """What RLIMIT_DATA counts of this process, on Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return 1024 * int(line.split()[1])
    return 0
