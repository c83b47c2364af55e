"""report.html: one self-contained page from a list of runs. The same runs give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtarget.track import drawing, figures
from qtarget.track import page as pages
from qtarget.track.answers import problems
from qtarget.track.runs import Run, differing_keys, finished, of_design, unfinished
from qtarget.track.table import COLUMNS, MISSING, reading_note, subject

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Difference:
    """A config key whose value is not the same in all runs, with its value per run in table order."""

    key: str
    values: tuple[str, ...]
    of_design: bool


def write_report(runs: Sequence[Run], path: Path) -> None:
    """The page for `runs` (in table order) at `path`."""
    path.write_text(render(runs), encoding="utf-8", newline="\n")


def render(runs: Sequence[Run]) -> str:
    """The page as text. Everything that comes from a run is escaped."""
    return pages.render(TEMPLATE, page(runs))


def page(runs: Sequence[Run]) -> dict[str, Any]:
    """What the template shows."""
    plots = figures.panels(runs)
    styled = figures.marks(runs)
    return {
        "title": "Comparison of " + ", ".join(sorted({run.experiment for run in runs})),
        "subject": subject(runs),
        "columns": COLUMNS,
        "rows": [(run, mark) for run, mark in styled if run.status == "finished"],
        "note": reading_note(runs),
        "unfinished": unfinished(runs),
        "marks": [mark for _, mark in styled],
        "plots": plots,
        "figures": drawing.page_figures(plots),
        "compared": finished(runs) or runs,
        "differences": differences(finished(runs) or runs),
        "problems": problems(finished(runs)),
        "runs": runs,
        "versions": versions(runs),
    }


def differences(runs: Sequence[Run]) -> list[Difference]:
    """What differs between the configs of `runs`; keys outside the target design come first."""
    return [
        Difference(key, tuple(run.config.get(key, MISSING) for run in runs), of_design(key))
        for key in differing_keys(runs)
    ]


def versions(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Each package with the versions the runs were made with: more than one is worth knowing."""
    packages = sorted({package for run in runs for package in run.versions})
    return [(package, _distinct(run.versions.get(package) for run in runs)) for package in packages]


def _distinct(values: Any) -> str:
    return ", ".join(sorted({value for value in values if value}))
