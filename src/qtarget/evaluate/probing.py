"""Checks of scorers before training: wrong texts must not score, a task's own answers must."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qtarget.data.example import Demonstration
from qtarget.data.verify import Verdict, final_answer, judge
from qtarget.data.verify.verdict import verifier_name
from qtarget.errors import QTargetError

PROBED = 16
"""Rows of a task that are looked at."""
FEWEST = 4
"""Rows with another answer of their own that a probe needs to say anything."""
CONSTANTS = ("", "nan", "0", "1", "no idea")


def check_scorers(rows: Sequence[Demonstration]) -> None:
    """Raise QTargetError for a task whose scorer gives its own answers no full marks, or full marks to one text.

    Of each task the first PROBED rows are looked at. The texts are CONSTANTS and the first row's own answer. A text is
    a hit where it has full marks on at least half of the rows whose own answers are others, FEWEST or more; own
    answers fail where at least half have no full marks. Rows of sources with trust_scorer=true are left out.
    """
    tasks: dict[str, list[Demonstration]] = {}
    for row in rows:
        if row.entry is not None and not row.entry.get("trust_scorer"):
            tasks.setdefault(task_of(row.entry), []).append(row)
    for task, probed in tasks.items():
        _check_task(task, probed[:PROBED])


def task_of(entry: Mapping[str, Any]) -> str:
    """The task of reasoning-gym, else the verifier's name."""
    return str((entry.get("metadata") or {}).get("source_dataset") or verifier_name(entry["verifier"]))


def _check_task(task: str, rows: Sequence[Demonstration]) -> None:
    own = [_own(row) for row in rows]
    verdicts = [judge(answer, row.entry or {}) for answer, row in zip(own, rows, strict=True)]
    failed = [answer for answer, verdict in zip(own, verdicts, strict=True) if not verdict.correct]
    if 2 * len(failed) >= len(rows):
        raise QTargetError(
            f"the scorer of {task} gives no full marks to the task's own answers on {len(failed)} of {len(rows)} rows, "
            f"such as {failed[0][:60]!r}, so its accuracy says nothing: {_WAYS}"
        )
    for text in (*(_stated(text, rows[0]) for text in CONSTANTS), own[0]):
        others = [row for row, verdict in zip(rows, verdicts, strict=True) if _differs(text, verdict, row)]
        if len(others) < FEWEST:
            continue
        hits = sum(judge(text, row.entry or {}).correct for row in others)
        if 2 * hits >= len(others):
            raise QTargetError(
                f"the scorer of {task} gives full marks to {text[:60]!r} on {hits} of {len(others)} rows whose own "
                f"answers are others, so its accuracy says nothing: {_WAYS}"
            )


_WAYS = "choose another task, or set trust_scorer=true of the source (data.source.trust_scorer=true)"


def _own(row: Demonstration) -> str:
    """The answer that the entry holds, else the demonstration."""
    answer = (row.entry or {}).get("answer")
    if answer is None:
        return row.completion
    return _stated(str(answer), row)


def _stated(answer: str, row: Demonstration) -> str:
    """As a completion states it: mathematics in a box, without which words are no answer."""
    return rf"\boxed{{{answer}}}" if (row.entry or {}).get("verifier") == "math" else answer


def _differs(text: str, own: Verdict, row: Demonstration) -> bool:
    """Whether the text is another answer than the row's own, in meaning: 0 is no other than 0.00."""
    stated = judge(text, row.entry or {}).answer
    return stated != own.answer and _number(final_answer(stated)) != _number(own.answer)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
