"""Held-out problems with what every run answered, those first on which the runs disagree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qtarget.track.runs import Run

SHOWN = 12
"""Problems on a page."""
LONGEST = 600
"""Characters of a text on a page."""

Key = tuple[str, int]


@dataclass(frozen=True)
class Problem:
    """answers: (run, its first answer, whether that is right) for the runs that were asked."""

    prompt: str
    expected: str
    answers: tuple[tuple[Run, str, bool], ...]

    @property
    def solved(self) -> int:
        return sum(correct for _, _, correct in self.answers)


def problems(runs: Sequence[Run], shown: int = SHOWN) -> list[Problem]:
    """At most `shown`; the closer to half of the runs solve a problem, the earlier it stands."""
    asked = [(run, _first_answers(run)) for run in runs]
    keys = sorted({key for _, answers in asked for key in answers})
    found = [_problem(key, [(run, answers[key]) for run, answers in asked if key in answers]) for key in keys]
    return sorted(found, key=lambda problem: abs(2 * problem.solved - len(problem.answers)))[:shown]


def _problem(key: Key, given: Sequence[tuple[Run, Mapping[str, Any]]]) -> Problem:
    sample = given[0][1]
    answers = tuple((run, _short(one["answer"]), bool(one["correct"])) for run, one in given)
    return Problem(_short(sample["prompt"]), _short(sample["expected"]), answers)


def _first_answers(run: Run) -> dict[Key, Mapping[str, Any]]:
    """(source, row) → the first sample; none for a run that another version wrote."""
    path = run.folder / "samples.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found: dict[Key, Mapping[str, Any]] = {}
    for sample in map(json.loads, lines):
        if {"source", "row", "prompt", "expected", "answer", "correct"} <= sample.keys():
            found.setdefault((sample["source"], sample["row"]), sample)
    return found


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"
