"""What a verifier says of a completion, and where completions say their answer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qtarget.data.example import FINAL

Entry = Mapping[str, Any]

_BRACES = re.compile(r"\\boxed\s*{|\\[{}]|[{}]")


@dataclass(frozen=True)
class Verdict:
    """correct: full marks. answer: what the completion answers; equal answers to a problem are spelled alike.

    partial: marks in [0, 1] of a verifier that gives some for half an answer, else None.
    """

    correct: bool
    answer: str
    partial: float | None = None

    @property
    def score(self) -> float:
        """Marks in [0, 1]; their mean over problems is the task completion."""
        return float(self.correct) if self.partial is None else self.partial


def final_answer(completion: str) -> str:
    """What follows the last `####`; the whole completion where there is none."""
    return completion.rsplit(FINAL, 1)[-1].strip()


def boxed(text: str) -> str | None:
    r"""What the \boxed{…} that closes last holds; None where none is closed."""
    found, opened = None, []
    for brace in _BRACES.finditer(text):
        if brace.group() in (r"\{", r"\}"):
            continue
        if brace.group() != "}":
            opened.append(brace)
        elif opened and (start := opened.pop()).group() != "{":
            found = text[start.end() : brace.start()]
    return found


def normal(text: str) -> str:
    """NFKC, case folded, white space collapsed: what reads the same is the same."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())
