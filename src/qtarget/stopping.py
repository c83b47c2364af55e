"""SIGTERM, as schedulers, sweeps and `kill` send it, and the end of a terminal: an end that leaves things in order."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(BaseException):
    """This process was asked to end. No Exception: nothing takes it for a failure that it could go on after."""


class Stop:
    """Meanwhile SIGTERM raises `Terminated`: at once, or, where the work in hand is `deferred` to, at `release`.

    A second signal says what the first has said: a scheduler tells every process, and those that started others pass it
    on. Only the main thread hears signals; in another nothing changes. SIGHUP does the same, where nohup hasn't put it
    aside.
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
                _handle(number, self._heard)

    def release(self) -> None:
        """Nothing is in hand any more: raise Terminated if that was asked for."""
        self.deferred = False
        if self.asked:
            raise Terminated("by SIGTERM")

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            return
        self.asked = True
        if not self.deferred:
            self.release()


def _handle(number: int, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)
