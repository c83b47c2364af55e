"""What becomes of a job of a multirun."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What became of one job. error: in words, empty where it finished."""

    folder: Path
    label: str
    error: str = ""  # as text: an exception would keep the failed job's models alive through its traceback
    is_input: bool = False  # the user's to mend

    def __str__(self) -> str:
        where = f"{self.label}  →  {self.folder}"
        return f"{where}\n          {self.error}" if self.error else where
