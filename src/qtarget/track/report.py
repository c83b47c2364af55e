"""report.html: one self-contained page from a list of runs. The same runs give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtarget.track import drawing, figures
from qtarget.track import page as pages
from qtarget.track.answers import problems
from qtarget.track.curves import design_marks, grouped_panels
from qtarget.track.grouped import Grouped
from qtarget.track.runs import Run, differing_keys, finished, of_design, unfinished
from qtarget.track.scatter import heat_panels, point_marks, scatter_panels
from qtarget.track.swept import Swept
from qtarget.track.table import COLUMNS, MISSING, reading_note, subject

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Difference:
    """A config key whose value is not the same in all runs, with its value per run in table order."""

    key: str
    values: tuple[str, ...]
    of_design: bool


@dataclass(frozen=True)
class Part:
    """Plots under one row of names, with the marks that the names stand for."""

    marks: tuple[figures.Mark, ...] = ()
    plots: tuple[figures.Panel, ...] = ()


def write_report(runs: Sequence[Run], path: Path, grouped: Grouped | None = None, swept: Swept | None = None) -> None:
    """The page for `runs` (in table order) at `path`."""
    path.write_text(render(runs, grouped, swept), encoding="utf-8", newline="\n")


def render(runs: Sequence[Run], grouped: Grouped | None = None, swept: Swept | None = None) -> str:
    """The page as text. Everything that comes from a run is escaped."""
    return pages.render(TEMPLATE, page(runs, grouped, swept))


def page(runs: Sequence[Run], grouped: Grouped | None = None, swept: Swept | None = None) -> dict[str, Any]:
    """What the template shows."""
    plots = figures.panels(runs)
    styled = figures.marks(runs)
    means = _grouped_part(grouped, len(styled))
    over, heats = _swept_parts(swept, len(styled))
    return {
        "title": "Comparison of " + ", ".join(sorted({run.experiment for run in runs})),
        "subject": subject(runs),
        "columns": COLUMNS,
        "rows": [(run, mark) for run, mark in styled if run.status == "finished"],
        "note": reading_note(runs),
        "unfinished": unfinished(runs),
        "marks": [mark for _, mark in styled],
        "plots": plots,
        "grouped": grouped,
        "means": means,
        "swept": over,
        "heats": heats,
        "figures": drawing.page_figures((*means.plots, *over.plots, *heats, *plots)),
        "compared": finished(runs) or runs,
        "differences": differences(finished(runs) or runs),
        "problems": problems(finished(runs)),
        "runs": runs,
        "versions": versions(runs),
    }


def _grouped_part(found: Grouped | None, first: int) -> Part:
    if found is None:
        return Part()
    return Part(figures.distinct(mark for _, mark in design_marks(found, first)), grouped_panels(found, first))


def _swept_parts(found: Swept | None, first: int) -> tuple[Part, tuple[figures.Panel, ...]]:
    """The metric over every number swept, and over every two keys."""
    if found is None:
        return Part(), ()
    marks = figures.distinct(mark for _, mark in point_marks(found, first))
    return Part(marks, scatter_panels(found, first)), heat_panels(found)


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
