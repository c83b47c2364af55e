"""Ends that leave things in order, and the exit codes that say which it was.

- SIGTERM, as schedulers, sweeps and `kill` send it, and SIGHUP at the end of a terminal: `Stop`.
- Errors that are the user's to mend: `run_with_error_messages`.
- The end of the process that started this one, even where that was killed: `exit_with_parent`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from qtarget.errors import QTargetError, with_tracebacks

EXIT_CODE = 128 + signal.SIGTERM
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(BaseException):
    """This process was asked to end. No Exception: nothing takes it for a failure that it could go on after."""


class Stop:
    """Meanwhile SIGTERM raises `Terminated`: at once, or at `release` while `deferred` is set.

    A second signal changes nothing: a scheduler signals every process, and those that started others pass it on. Only
    the main thread hears signals; in another thread nothing changes. SIGHUP does the same, unless nohup ignores it.
    """

    def __init__(self) -> None:
        self.asked = self.deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        self._before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
        self.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, before in self._before.items():
            _handle(number, before)
        if kind is not Terminated:
            self.release()

    def listen(self) -> None:
        """Take the signals, also from whoever has taken them in between."""
        for number, before in self._before.items():
            if before != signal.SIG_IGN:
                _handle(number, self._on_signal)

    def release(self) -> None:
        """Nothing is in hand any more: raise Terminated where a signal has come."""
        self.deferred = False
        if self.asked:
            raise Terminated("by SIGTERM")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            return
        self.asked = True
        if not self.deferred:
            self.release()


def _handle(number: int, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def run_with_error_messages(command: Callable[[], int]) -> int:
    """Run a command. Returns its exit code; an error that is the user's to mend is one message without a traceback."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output has seen enough: `qtarget train --cfg job | head`
        with suppress(OSError):  # a notebook's output has no descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except SystemExit as ended:  # argparse's way
        return ended.code if isinstance(ended.code, int) else 2
    except QTargetError as error:
        if with_tracebacks():
            raise
        print(f"qtarget: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Terminated) as error:
        print(
            "qtarget: interrupted; finished jobs are kept, the same command goes on where a state was saved and starts "
            "the others afresh",
            file=sys.stderr,
        )
        return EXIT_CODE if isinstance(error, Terminated) else 130


# The process that started this one

LIFELINE = "QTARGET_LIFELINE"
"""Set in the environment, standard input is a pipe that closes when the process that started this one is gone."""
GRACE = 60.0
"""Seconds between asking a job to stop, which ends its step and saves its state, and making it."""


_STARTED_BY_DRIVER = threading.Event()


def folder_timeout() -> float:
    """Seconds to wait for a job's folder: until one that an earlier, killed driver had started has ended by itself."""
    return 2 * GRACE if _STARTED_BY_DRIVER.is_set() else 0.0


def exit_with_parent() -> None:
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
