"""How a rank failed, as plain data: not every exception can be pickled."""

from __future__ import annotations

import signal
import traceback
from dataclasses import dataclass

from qtarget.errors import QTargetError

TRACE_LENGTH = 20_000
"""Characters of a traceback that are passed on: a pipe holds no more than 64 KiB unread."""


class RankError(Exception):
    """A process of the run failed, by no fault of the configuration."""


class LostError(RankError):
    """The processes that a launcher started can't reach each other any more: there is no next job."""


@dataclass(frozen=True)
class Report:
    """A rank's failure. code: of a process that ended without a word, negative for a signal."""

    rank: int
    message: str
    is_input: bool
    trace: str
    code: int | None = None

    @property
    def by_signal(self) -> bool:
        return self.code is not None and self.code < 0

    @classmethod
    def of(cls, rank: int, error: Exception) -> Report:
        is_input = isinstance(error, QTargetError)
        message = str(error) if is_input else f"{type(error).__name__}: {error}"
        return cls(rank, message, is_input, "".join(traceback.format_exception(error))[-TRACE_LENGTH:])

    @classmethod
    def of_exit(cls, rank: int, code: int) -> Report:
        return cls(rank, f"was ended by {exit_in_words(code)}", False, "", code)

    def error(self, count: int) -> Exception:
        """count: of ranks."""
        if self.is_input:
            return QTargetError(self.message)
        return RankError(f"rank {self.rank} of {count}{':' if self.code is None else ''} {self.message}")


def exit_in_words(code: int) -> str:
    """code: of a process of multiprocessing, negative for a signal."""
    if code >= 0:
        return f"exit code {code}"
    return f"{signal.Signals(-code).name}{': was memory short?' * (code == -signal.SIGKILL)}"
