"""Short instructions whose following can be checked, made from a seed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import ClassVar

from qtarget import checks
from qtarget.data.edit import words
from qtarget.data.example import Demonstration, Span
from qtarget.data.sources import splits
from qtarget.data.sources.conversation import exchange, trusted
from qtarget.data.sources.instruct import forms, lexicon, tasks
from qtarget.data.sources.instruct.forms import Check
from qtarget.errors import QTargetError
from qtarget.settings import FLAG, Checked, Nullable, Part, Text, Whole, setting


@dataclass(frozen=True)
class Problem:
    """answer: the demonstration. critical: where the answer proper is in it. checks: what any answer has to pass."""

    family: str
    question: str
    answer: str
    critical: tuple[Span, ...]
    checks: Sequence[Check]


@dataclass(frozen=True)
class Instruct(Checked):
    """Instructions with right demonstrations of a few words, and checks that judge any other answer.

    families: which of `format` (the form of the answer is the point: JSON, bullets, capitals, …), `order` (sort,
    reverse), `counting`, `transformation` (replace, remove, join, …) and `combined` (one of the three, in a form), as a
    list or with weights; None: all alike, one name: that one. system: system message, None for the template's own.
    """

    NODE_KEY: ClassVar[str] = "data.source"
    families: Mapping[str, float] | Sequence[str] | str | None = setting(
        None,
        Part("a family, a list of them or {FAMILY: WEIGHT}, or null"),
        "format, order, counting, transformation, combined; null: all alike",
    )
    system: str | None = setting(None, Nullable(Text()), "system message; null: the template's own")
    seed: int = setting(0, Whole(0), "of the draws")
    trust_scorer: bool = setting(False, FLAG, "true: answers that are none, too, are put to the scorer")

    def __post_init__(self) -> None:
        super().__post_init__()
        for family, weight in self._weights().items():
            checks.choice("an instruct family", family, tuple(FAMILIES))
            checks.number(f"the weight of the instruct family {family}", weight, 0)
        if not math.fsum(self._weights().values()) > 0:
            raise QTargetError(f"data.source.families must give some family a weight above 0, got {self.families!r}")

    def rows(self, split: str, count: int | None) -> list[Demonstration]:
        """`count` problems of a split, no question twice. Raises QTargetError where the families have too few."""
        if count is None:
            raise QTargetError("instruct makes as many problems as are asked for: set data.rows and data.heldout_rows")
        problems = splits.distinct(self._problems(splits.draws(count)), split, lambda problem: problem.question)
        rows = [self._demonstration(problem, row) for row, problem in enumerate(islice(problems, count))]
        if len(rows) < count:
            raise QTargetError(
                f"instruct with the families {', '.join(self._weights())} yields only {len(rows)} different problems "
                f"for the split {split!r}, {count} were asked for: ask for fewer rows, or take more families"
            )
        return rows

    def _weights(self) -> Mapping[str, float]:
        if isinstance(self.families, Mapping):
            return self.families
        one = [self.families] if isinstance(self.families, str) else self.families
        return dict.fromkeys(FAMILIES if one is None else one, 1.0)

    def _problems(self, draws: int) -> Iterator[Problem]:
        weights = self._weights()
        for draw in range(draws):
            rng = Random(f"{self.seed} {draw}")
            (family,) = rng.choices(list(weights), list(weights.values()))
            yield FAMILIES[family](rng)

    def _demonstration(self, problem: Problem, row: int) -> Demonstration:
        messages = exchange(problem.question, problem.answer, self.system)
        entry = {"verifier": "instruct", "family": problem.family, "checks": list(problem.checks)}
        return Demonstration(
            messages, row=row, spans={"critical": problem.critical}, entry=trusted(entry, self.trust_scorer)
        )


def _plain(family: str, makers: Sequence[tasks.Maker]) -> Callable[[Random], Problem]:
    def problem(rng: Random) -> Problem:
        task = rng.choice(makers)(rng)
        return _in_form(family, task, forms.PLAIN[task.kind], rng)

    return problem


def _formed(family: str, makers: Sequence[tasks.Maker]) -> Callable[[Random], Problem]:
    def problem(rng: Random) -> Problem:
        task = rng.choice(makers)(rng)
        return _in_form(family, task, rng.choice(forms.FORMS[task.kind]), rng)

    return problem


def _in_form(family: str, task: tasks.Task, form: forms.Form, rng: Random) -> Problem:
    written = form(rng, task.pieces)
    parts = (task.request, written.wording) if rng.random() < 0.75 else (written.wording, task.request)
    critical = _places(written.answer, task.pieces, written.lead)
    return Problem(family, " ".join(parts), written.answer, critical, (*_content(task, written), *written.checks))


def _content(task: tasks.Task, written: forms.FormattedAnswer) -> tuple[Check, Check]:
    """The answer proper is there, and as many words as in the demonstration: nothing is added to it."""
    if task.kind == tasks.VERBATIM:
        right: Check = {"check": "contains", "value": task.pieces[0]}
    else:
        right = {"check": "says", "value": words(" ".join(task.pieces))}
    return right, {"check": "length", "count": len(words(written.answer))}


def _record(rng: Random) -> Problem:
    """Facts of a person, as a JSON object with the keys asked for."""
    facts = {
        "name": rng.choice(lexicon.NAMES),
        "age": rng.randint(18, 80),
        "city": rng.choice(lexicon.CITIES),
        "job": rng.choice(lexicon.CATEGORIES["profession"]),
    }
    keys = rng.sample(list(facts), rng.randint(2, 4))
    asked = {key: facts[key] for key in keys}
    statement = rng.choice(_TOLD).format(**facts)
    wording = rng.choice(_ASKED).format(keys=", ".join(f'"{key}"' for key in keys))
    checks: tuple[Check, ...] = ({"check": "json_keys", "keys": keys}, {"check": "json_object", "value": asked})
    answer = json.dumps(asked)
    return Problem("format", f"{statement} {wording}", answer, _places(answer, list(map(str, asked.values()))), checks)


def _format(rng: Random) -> Problem:
    return _record(rng) if rng.random() < 0.3 else _formed("format", tasks.ECHOES)(rng)


def _places(answer: str, pieces: Sequence[str], after: int = 0) -> tuple[Span, ...]:
    """Where the pieces stand, one after the other: another token there makes another answer."""
    spans = []
    for piece in pieces:
        start = answer.lower().index(piece.lower(), after)
        after = start + len(piece)
        spans.append((start, after))
    return tuple(spans)


_TOLD = (
    "{name} is {age} years old, lives in {city} and works as a {job}.",
    "{name}, aged {age}, is a {job} from {city}.",
    "In {city} there is a {job} called {name}, who is {age}.",
)
_ASKED = (
    "Give this person as a JSON object with the keys {keys}.",
    "Answer with JSON that has exactly these keys: {keys}.",
    "Write it as JSON. The keys: {keys}.",
)

FAMILIES: dict[str, Callable[[Random], Problem]] = {
    "format": _format,
    "order": _plain("order", tasks.ORDER),
    "counting": _plain("counting", tasks.COUNTING),
    "transformation": _plain("transformation", tasks.TRANSFORMATION),
    "combined": _formed("combined", (*tasks.ORDER, *tasks.COUNTING, *tasks.TRANSFORMATION)),
}
"""What makes a problem of a family."""
