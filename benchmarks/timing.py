"""Taking turns: what is compared is timed round after round, so that a machine's moods fall on all alike."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch

Step = Callable[[], object]
Times = dict[str, list[float]]
"""name → seconds, one value a round."""


def seconds(step: Step) -> float:
    """Wall time of one call; a GPU's work is waited for."""
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turn(steps: Mapping[str, Step], rounds: int, *, title: str, warm: int = 2) -> Times:
    """Each step once a round, after `warm` rounds that don't count: they compile, and fill caches."""
    taken: Times = {name: [] for name in steps}
    for number in range(-warm, rounds):
        progress(f"{title}: {'warm-up' if number < 0 else f'round {number + 1}/{rounds}'}")
        for name, step in steps.items():
            elapsed = seconds(step)
            if number >= 0:
                taken[name].append(elapsed)
    progress("")
    return taken


def ratio(taken: Times, name: str, base: str) -> float:
    """Median over the rounds of name's time by base's in the same round."""
    return statistics.median(mine / theirs for mine, theirs in zip(taken[name], taken[base], strict=True))


def progress(text: str) -> None:
    """One line on a terminal, overwritten; '' clears it. Where nobody watches one, a line each."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


class Lap:
    """Seconds between `start` and `stop`, for what calls back at both ends."""

    def __init__(self) -> None:
        self._since = 0.0

    def start(self) -> None:
        wait()
        self._since = time.perf_counter()

    def stop(self) -> float:
        wait()
        return time.perf_counter() - self._since
