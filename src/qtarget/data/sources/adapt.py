"""Data sets that need more than names of columns: what is made of a row before its columns are mapped.

An adapter reads some columns of a row and gives others; where it gives None, the row is left out, and counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from qtarget.data.sources.conversation import LETTERS
from qtarget.settings import Checked, Text, setting

Row = Mapping[str, Any]


class Adapt(Protocol):
    """Callable on the columns `reads` of a row; what it returns are the columns `gives`."""

    @property
    def reads(self) -> tuple[str, ...]: ...
    @property
    def gives(self) -> tuple[str, ...]: ...
    def __call__(self, row: Row) -> dict[str, Any] | None: ...


@dataclass(frozen=True)
class FirstVerified:
    """generation: the first of a row's generations that is complete and that math-verify judged right; else left out.

    open-r1/OpenR1-Math-220k holds verdicts in lists beside the generations; one without a verdict counts as unverified.
    """

    reads: ClassVar = ("generations", "correctness_math_verify", "is_reasoning_complete")
    gives: ClassVar = ("generation",)

    def __call__(self, row: Row) -> dict[str, Any] | None:
        judged = zip(*(row[column] or () for column in self.reads), strict=False)
        return next(({"generation": text} for text, right, complete in judged if right and complete), None)


@dataclass(frozen=True)
class WorkedAnswer(Checked):
    r"""final: what follows the last `####` of a worked answer; solution: what stands before, closed by \boxed{final}.

    Calculator notes such as <<48/2=24>>, and the commas of numbers, go. openai/gsm8k.
    """

    column: str = setting("answer", Text("a column"), "the worked answer, its final number behind ####")
    gives: ClassVar = ("solution", "final")

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.column,)

    def __call__(self, row: Row) -> dict[str, Any]:
        worked, mark, final = row[self.column].rpartition("####")
        if not mark:
            raise ValueError(f"no #### in {self.column}")
        final = re.sub(r"(?<=\d),(?=\d{3})", "", final.strip())
        worked = re.sub(r"<<.*?>>", "", worked).strip()
        return {"solution": f"{worked}\n\nThe answer is \\boxed{{{final}}}.", "final": final}


@dataclass(frozen=True)
class LetterOf(Checked):
    """letter: that of an option's number, from 0; rows without one (−1: answers that are kept secret) are left out.

    openlifescienceai/medmcqa's `cop`.
    """

    column: str = setting("cop", Text("a column"), "the number of the right option, from 0")
    gives: ClassVar = ("letter",)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.column,)

    def __call__(self, row: Row) -> dict[str, Any] | None:
        number = row[self.column]
        if number in (None, "") or int(number) < 0:  # CSV holds it as text
            return None
        return {"letter": LETTERS[int(number)]}


@dataclass(frozen=True)
class Abstract:
    """abstract: the passages of a study, one after the other; letter: A, B or C for yes, no or maybe.

    qiaojin/PubMedQA.
    """

    reads: ClassVar = ("context", "final_decision")
    gives: ClassVar = ("abstract", "letter")

    def __call__(self, row: Row) -> dict[str, Any]:
        letters = {"yes": "A", "no": "B", "maybe": "C"}
        return {"abstract": "\n\n".join(row["context"]["contexts"]), "letter": letters[row["final_decision"]]}


@dataclass(frozen=True)
class Olympiad:
    """problem: the question behind what it builds on, where there is such; final: its answers, joined by commas.

    math-ai/olympiadbench. Problems without an answer to compare with are left out.
    """

    reads: ClassVar = ("question", "context", "final_answer")
    gives: ClassVar = ("problem", "final")

    def __call__(self, row: Row) -> dict[str, Any] | None:
        parts = [part for part in (row["context"], row["question"]) if part]
        final = ", ".join(answer.strip().strip("$") for answer in row["final_answer"] or ())
        return {"problem": "\n\n".join(parts), "final": final} if final else None
