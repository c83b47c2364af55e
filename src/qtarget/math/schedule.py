"""Scalars that may follow training progress: a number, or a schedule written as text.

    linear:A:B[:FROM:TO]     from A to B, in a straight line between progress FROM and TO (0 and 1 where left out)
    cosine:A:B[:FROM:TO]     the same along half a cosine
    step:A:B:AT              A before progress AT, B from there on

Text, so that one scalar stays one field: a yaml value, a command-line override, a sweep parameter, a table's column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass

from qtarget import checks
from qtarget.errors import QTargetError

Scalar = float | str
SHAPES = {"linear": (2, 4), "cosine": (2, 4), "step": (3,)}
"""How many numbers follow each shape."""
USAGE = "linear:A:B, linear:A:B:FROM:TO, cosine:A:B[:FROM:TO] or step:A:B:AT, with FROM, TO and AT in [0, 1]"


@dataclass(frozen=True)
class Schedule:
    """From `start` to `end` between two points of training progress, both in [0, 1]."""

    shape: str
    start: float
    end: float
    begin: float = 0.0
    finish: float = 1.0

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        if progress >= self.finish:
            return self.end
        if progress <= self.begin:
            return self.start
        done = (progress - self.begin) / (self.finish - self.begin)
        if self.shape == "cosine":
            done = 0.5 - 0.5 * math.cos(math.pi * done)
        return self.start + (self.end - self.start) * done


def parse(text: str) -> Schedule:
    """A schedule from its text. Raises QTargetError for anything else."""
    shape, *texts = text.split(":")
    try:
        numbers = [float(number) for number in texts]
    except ValueError:
        numbers = []
    if len(numbers) not in SHAPES.get(shape, ()) or not all(map(math.isfinite, numbers)):
        raise QTargetError(f"{text!r} is neither a number nor a schedule: write {USAGE}")
    schedule = Schedule(shape, *numbers, *numbers[2:] * (shape == "step"))  # a step begins and ends at once
    if not 0 <= schedule.begin <= schedule.finish <= 1:
        raise QTargetError(f"{text!r}: progress runs from 0 to 1, and FROM comes before TO")
    return schedule


def value_at(value: Scalar, progress: float) -> float:
    """A scalar's value at `progress` of the training run."""
    return parse(value).at(progress) if isinstance(value, str) else value


def written(value: Scalar) -> str:
    """A scalar as people read it."""
    return value if isinstance(value, str) else f"{value:g}"


def scalar(name: str, value: object, low: float, high: float = float("inf")) -> None:
    """Raise unless `value` is a number in [low, high], or a schedule between two such numbers."""
    if not isinstance(value, str):
        return checks.number(name, value, low, high)
    try:
        schedule = parse(value)
    except QTargetError as error:
        raise QTargetError(f"{name} must lie in {checks.interval(low, high)}: {error}") from error
    checks.number(f"{name} ({value})", schedule.start, low, high)
    return checks.number(f"{name} ({value})", schedule.end, low, high)


@dataclass(frozen=True)
class Scheduled:
    """What a setting may be: a number in [low, high], or a schedule between two such numbers."""

    low: float = 0.0
    high: float = float("inf")

    @property
    def text(self) -> str:
        return f"number in {checks.interval(self.low, self.high)}, or a schedule"

    def check(self, name: str, value: object) -> None:
        scalar(name, value, self.low, self.high)


def scheduled(design: object, progress: float, path: str = "") -> Iterator[tuple[str, float]]:
    """(dotted field, current value) of every field of a design and its parts that follows a schedule."""
    if not is_dataclass(design):
        return
    for field in fields(design):
        name, value = f"{path}{field.name}", getattr(design, field.name)
        # "step" and "linear" alone name other things
        if isinstance(value, str) and ":" in value and value.partition(":")[0] in SHAPES:
            yield name, value_at(value, progress)
        else:
            yield from scheduled(value, progress, f"{name}.")
