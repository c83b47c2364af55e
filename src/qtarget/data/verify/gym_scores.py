"""Asked in a process of its own: the score of an answer to a problem of reasoning-gym."""

from __future__ import annotations

from functools import cache
from typing import Any

import reasoning_gym


def answer(task: str, said: str, entry: dict[str, Any]) -> float:
    return float(_scorer(task)(said, entry))


@cache
def _scorer(task: str) -> Any:
    return reasoning_gym.get_score_answer_fn(task)
