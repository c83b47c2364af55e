"""SIGTERM, as schedulers, sweeps and `kill` send it: an end that leaves things in order."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM


class Terminated(BaseException):
    """This process was asked to end. No Exception: nothing takes it for a failure that it could go on after."""


class Stop:
    """Meanwhile SIGTERM raises `Terminated`: at once, or, where the work in hand is `deferred` to, at `release`.

    A second signal ends the process on the spot. Only the main thread hears signals; in another nothing changes.
    """

    def __init__(self) -> None:
        self.asked = self.deferred = False
        self._before: Any = signal.SIG_DFL

    def __enter__(self) -> Stop:
        self._before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
        self.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _handle(self._before)
        if kind is not Terminated:
            self.release()

    def listen(self) -> None:
        """Take the signal, also from whoever has taken it in between."""
        _handle(self._heard)

    def release(self) -> None:
        """Nothing is in hand any more: raise Terminated if that was asked for."""
        self.deferred = False
        if self.asked:
            raise Terminated("by SIGTERM")

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(EXIT_CODE)
        self.asked = True
        if not self.deferred:
            self.release()


def ask() -> None:
    """What SIGTERM does, for a signal that asks for the same; nothing where that came before it."""
    listener = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not (isinstance(listener, Stop) and listener.asked):
        signal.raise_signal(signal.SIGTERM)


def _handle(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
