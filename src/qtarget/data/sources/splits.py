"""Dealing rows out: problems to splits, and rows of a mixture to its parts, by a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from qtarget import checks
from qtarget.errors import QTargetError

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


def interleaved(weights: Mapping[str, float], count: int) -> list[str]:
    """The part of each of `count` rows: every beginning has its parts as the weights have them, to the nearest rows.

    So a longer mixture begins with the shorter one.
    """
    total, taken = sum(weights.values()), dict.fromkeys(weights, 0)
    order = []
    for row in range(1, count + 1):
        behind = {name: weight / total * row - taken[name] for name, weight in weights.items()}
        order.append(max(behind, key=behind.__getitem__))
        taken[order[-1]] += 1
    return order


def check_weights(name: str, weights: Mapping[str, object]) -> None:
    """Raise unless there are parts, each with a weight above 0."""
    if not weights:
        raise QTargetError(f"{name} names no part: write {name}={{NAME: WEIGHT, …}}")
    for part, weight in weights.items():
        checks.weight(f"{name}.{part}", weight)
