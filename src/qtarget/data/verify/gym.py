"""reasoning-gym's own scorers: {"verifier": "reasoning_gym", …the entry that its generator made}."""

from __future__ import annotations

import warnings
from typing import Any

from qtarget import isolated
from qtarget.data.verify.verdict import Entry, Verdict, final_answer

_warned: set[str] = set()


def verdict(completion: str, entry: Entry) -> Verdict:
    """The score of the entry's task for the final answer of a completion; full marks are correct.

    A scorer that raises or hangs on an answer, as some do on odd ones, gives it no marks, and a warning says so once a
    task.
    """
    said, task = final_answer(completion), entry["metadata"]["source_dataset"]
    try:
        score = isolated.ask("qtarget.data.verify.gym_scores", task, said, dict(entry))
    except isolated.UnansweredError as reason:
        _warn_once(task, reason)
        score = 0.0
    return Verdict(score >= 1.0, said, score)


def _warn_once(task: str, reason: Any) -> None:
    if task not in _warned:
        _warned.add(task)
        warnings.warn(
            f"reasoning-gym's scorer of {task} failed on an answer ({reason}): it counts as wrong, and so does every "
            "other on which it fails",
            stacklevel=4,
        )
