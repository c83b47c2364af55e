"""What a verifier says of a completion, where that has its answer, and {"verifier": "exact", "answer": text}."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from qtarget import checks
from qtarget.data.example import FINAL
from qtarget.data.thought import MARKS

Entry = Mapping[str, Any]

_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
_BRACES = re.compile(r"\\f?box(?:ed)?\s*{|\\[{}]|[{}]")


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


class Verifier(Protocol):
    """Whether a completion, of which it is given what follows its thought, answers the problem of an entry.

    One of the user's is a class, which the configuration of a source names: `verifier: {_target_: MODULE.CLASS}`. It
    stands in the entries of the source's rows itself, so that no row of data can name code.
    """

    def __call__(self, completion: str, entry: Entry) -> Verdict: ...


def verifier_name(verifier: object) -> str:
    """For messages, and for who looks at the rows of each."""
    return verifier if isinstance(verifier, str) else checks.class_name(verifier)


def final_answer(completion: str) -> str:
    """What follows the last `####`; the whole completion where there is none."""
    return completion.rsplit(FINAL, 1)[-1].strip()


def boxed(text: str) -> str | None:
    r"""What the \boxed{…} that closes last holds; None where none is closed."""
    found = boxes(text)
    return found[-1].held if found else None


@dataclass(frozen=True)
class Box:
    r"""A \boxed{…} in a text, from `start` to `end`, and what it holds."""

    start: int
    end: int
    held: str


def boxes(text: str) -> list[Box]:
    r"""All \boxed{…} of a text that are closed, in the order in which they close."""
    found, opened = [], []
    for brace in _BRACES.finditer(text):
        if brace.group() in (r"\{", r"\}"):
            continue
        if brace.group() != "}":
            opened.append(brace)
        elif opened and (start := opened.pop()).group() != "{":
            found.append(Box(start.start(), brace.end(), text[start.end() : brace.start()]))
    return found


def tagged(text: str) -> str:
    """What the last <answer>…</answer> holds; the text where there is none."""
    return _TAGGED.findall(text)[-1] if "</answer>" in text and _TAGGED.search(text) else text


def normal(text: str) -> str:
    """NFKC, case folded, white space collapsed: what reads the same is the same."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def after_thought(completion: str) -> str:
    """What follows the last thought; "" where a thought is not closed: what stands in it is no answer.

    A thought may have been opened in the prompt, so what closes one is enough.
    """
    for opened, closed in MARKS:
        if opened in completion or closed in completion:
            completion = _after(completion, opened, closed)
    return completion


def _after(completion: str, opened: str, closed: str) -> str:
    said = completion.rpartition(closed)[2] if closed in completion else completion
    return "" if opened in said else said


def opens_thought(prompt: str) -> str:
    """The mark of the thought that a prompt ends within, "" where it ends in none."""
    end = prompt.rstrip()
    return next((opened for opened, _ in MARKS if end.endswith(opened)), "")


def verdict(completion: str, entry: Entry) -> Verdict:
    """Equal but for case, white space and Unicode's spellings; of a worked solution, what follows the last ####."""
    answer = normal(final_answer(completion))
    return Verdict(answer == normal(final_answer(str(entry["answer"]))), answer)
