"""Problems that a generator makes, dealt to splits by a hash of the question."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

SPLITS = {"heldout": (0, 2), "reserve": (2, 4), "train": (4, 10)}
"""Tenths of the problems: disjoint whatever the sizes asked for."""

Problem = TypeVar("Problem")


def in_split(question: str, split: str) -> bool:
    low, high = SPLITS[split]
    return low <= int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 10 < high


def distinct(problems: Iterable[Problem], split: str, question: Callable[[Problem], str]) -> Iterator[Problem]:
    """Those of a split, in their order, no question twice."""
    seen: set[str] = set()
    for problem in problems:
        text = question(problem)
        if text not in seen and in_split(text, split):
            seen.add(text)
            yield problem


def draws(count: int) -> int:
    """How many problems are looked through for `count` of a split, before a generator is said to have too few."""
    return 50 * count + 1000
