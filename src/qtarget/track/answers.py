"""Held-out problems with what every run answered, those first on which the runs disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtarget.errors import QTargetError
from qtarget.evaluate.samples import FILE, Sample, read_samples
from qtarget.track.runs import Run

SHOWN = 12
"""Problems on a page."""
LONGEST = 600
"""Characters of a text on a page."""

Key = tuple[str, str]


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
    keys = dict.fromkeys(key for _, answers in asked for key in answers)
    found = [_problem([(run, answers[key]) for run, answers in asked if key in answers]) for key in keys]
    return sorted(found, key=lambda problem: abs(2 * problem.solved - len(problem.answers)))[:shown]


def kept_samples(run: Run) -> list[Sample]:
    """The judged answers of a run; none where it asked nothing, or another version wrote them."""
    path = run.folder / FILE
    try:
        return read_samples(path) if path.is_file() else []
    except QTargetError:
        return []


def _problem(given: Sequence[tuple[Run, Sample]]) -> Problem:
    sample = given[0][1]
    answers = tuple((run, _short(one.answer), one.correct) for run, one in given)
    return Problem(_short(sample.prompt), _short(sample.expected), answers)


def _first_answers(run: Run) -> dict[Key, Sample]:
    """(source, prompt) → the first sample."""
    found: dict[Key, Sample] = {}
    for sample in kept_samples(run):
        found.setdefault((sample.source, sample.prompt), sample)
    return found


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"
