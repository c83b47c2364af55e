"""report.html: one self-contained page of runs, with the plots of groups. The same runs give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qtarget.compare.columns import (
    MISSING,
    TableColumn,
    columns_of,
    means_note,
    reading_note,
    subject,
    unfinished_in_words,
)
from qtarget.compare.group_table import Grouped, label_without
from qtarget.compare.groups import GroupRow, problems
from qtarget.compare.run_groups import groups_of_rows, row_design, run_groups
from qtarget.compare.sweeps import Swept, heat_panels, point_marks, scatter_panels
from qtarget.plot import figures
from qtarget.plot.chart_data import chart_data
from qtarget.plot.figures import Dot, Line, Panel, RunGroup, wants_log_axis
from qtarget.plot.looks import Mark, distinct, marks
from qtarget.plot.page import render as render_page
from qtarget.plot.spreads import spread_panels
from qtarget.record.runs import Run, differing_keys, finished, of_design, unfinished


def design_marks(grouped: Grouped, first_index: int) -> list[tuple[GroupRow, Mark]]:
    """Every row with how its design looks: rows that differ in numbers alone look alike.

    first_index: of the first mark.
    """
    styled = marks([(row_design(grouped, row), grouped.design(row)) for row in grouped.rows], first_index)
    return list(zip(grouped.rows, styled, strict=True))


def grouped_panels(grouped: Grouped, first_index: int) -> tuple[Panel, ...]:
    """A curve per numeric key, the means, and the differences to the baseline where there is one."""
    styled = design_marks(grouped, first_index)
    curves = [_curve(grouped, styled, key, index) for index, key in enumerate(grouped.number_keys)]
    return (*curves, _means(grouped, styled), *([_differences(grouped, styled)] if grouped.compared else []))


def _curve(grouped: Grouped, styled: Sequence[tuple[GroupRow, Mark]], key: str, index: int) -> Panel:
    by_line: dict[str, list[tuple[GroupRow, Mark]]] = {}
    for row, mark in styled:
        by_line.setdefault(label_without(row.group, [key]), []).append((row, mark))
    lines = tuple(_line(grouped, name, members, key) for name, members in by_line.items())
    caption = f"One line a design, the mean over its seeds. {_bars(grouped)}"
    log = wants_log_axis([step for line in lines for step in line.steps])
    title = f"{grouped.metric} over {key}"
    return Panel(f"curve-{index}", title, key, grouped.title, caption, lines=lines, x_log=log, x_near=True)


def _line(grouped: Grouped, name: str, members: Sequence[tuple[GroupRow, Mark]], key: str) -> Line:
    rows = sorted((row for row, _ in members), key=lambda row: float(row.group.key[key]))
    ends = [_ends(grouped, row) for row in rows]
    return Line(
        replace(members[0][1], label=name),
        grouped.metric,
        tuple(float(row.group.key[key]) for row in rows),
        tuple(grouped.scale * row.center for row in rows),
        pointed=True,
        at=key,
        lows=tuple(grouped.scale * low for low, _ in ends),
        highs=tuple(grouped.scale * high for _, high in ends),
        texts=tuple(f"seeds: {row.group.seeds(grouped.metric)}" for row in rows),
    )


def _ends(grouped: Grouped, row: GroupRow) -> tuple[float, float]:
    """Of a bar; none for a group without an interval beside others that have one."""
    if row.interval:
        return row.interval.low, row.interval.high
    return (row.mean, row.mean) if grouped.has_intervals else (row.low_seed, row.high_seed)


def _bars(grouped: Grouped) -> str:
    if grouped.has_intervals:
        return f"The bars are 95 % intervals over held-out {grouped.unit}s and seeds."
    return "The bars reach from the smallest seed to the largest: this metric has no intervals here."


def _means(grouped: Grouped, styled: Sequence[tuple[GroupRow, Mark]]) -> Panel:
    dots = tuple(_dot(grouped, row, mark, row.center, _ends(grouped, row)) for row, mark in styled)
    title, caption = "Means over seeds", f"One dot a group, the mean over its seeds. {_bars(grouped)}"
    panel = Panel("means", title, grouped.title, "", caption, dots=dots)
    return _with_number_format(grouped, panel, grouped.decimals)


def _differences(grouped: Grouped, styled: Sequence[tuple[GroupRow, Mark]]) -> Panel:
    apart = [(row, mark, row.difference) for row, mark in styled if row.difference]
    dots = tuple(_dot(grouped, row, mark, score.mean, (score.low, score.high)) for row, mark, score in apart)
    baseline = " and ".join(grouped.against)
    caption = (
        f"Each group less {baseline} (dotted), paired by seed and {grouped.unit}, with 95 % intervals: a bar that "
        "crosses the dotted line doesn't tell the two apart."
    )
    title, x_title = f"Difference to {baseline}", f"difference in {grouped.title}"
    panel = Panel("differences", title, x_title, "", caption, dots, reference=0.0)
    return _with_number_format(grouped, panel, grouped.difference_decimals)


def _with_number_format(grouped: Grouped, panel: Panel, decimals: int) -> Panel:
    """As in the table."""
    return replace(panel, number=f".{decimals}f", unit=" %" if grouped.is_percent else "")


def _dot(grouped: Grouped, row: GroupRow, mark: Mark, value: float, ends: tuple[float, float]) -> Dot:
    return Dot(replace(mark, label=row.group.label), *(grouped.scale * end for end in (value, *ends)))


TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class DifferingKey:
    """A config key whose value is not the same in all runs, with its value per run in table order."""

    key: str
    values: tuple[str, ...]
    of_design: bool


@dataclass(frozen=True)
class ReportPart:
    """Plots under one row of names, with the marks that the names stand for."""

    marks: tuple[Mark, ...] = ()
    plots: tuple[figures.Panel, ...] = ()


def write_report(runs: Sequence[Run], path: Path, grouped: Grouped | None = None, swept: Swept | None = None) -> None:
    """The page for `runs` (in table order) at `path`, beside comparison.png."""
    path.write_text(render(runs, grouped, swept, has_picture=True), encoding="utf-8", newline="\n")


def render(
    runs: Sequence[Run], grouped: Grouped | None = None, swept: Swept | None = None, *, has_picture: bool = False
) -> str:
    """The page as text. Everything that comes from a run is escaped. has_picture: comparison.png lies beside it."""
    return render_page(TEMPLATE, {**template_values(runs, grouped, swept), "has_picture": has_picture})


def template_values(runs: Sequence[Run], grouped: Grouped | None = None, swept: Swept | None = None) -> dict[str, Any]:
    """What the template shows. The marks of groups, or of a sweep, are counted on behind those of runs."""
    by_configuration = run_groups(runs)
    groups = groups_of_rows(grouped) if grouped else by_configuration
    plots = training_plots(groups) if grouped else figures.panels(groups)
    others = (*figures.metric_panels(groups), *spread_panels(groups))
    styled = [group.mark for group in groups]
    mark_of = {run.folder: group.mark for group in by_configuration for run in group.runs}
    means = _grouped_part(grouped, len(styled))
    over, heats = _swept_parts(swept, len(styled))
    return {
        "title": "Comparison of " + ", ".join(sorted({run.experiment for run in runs})),
        "subject": subject(runs),
        "columns": sorted(columns_of(runs), key=_column_order),
        "rows": [(run, mark_of[run.folder]) for run in finished(runs)],
        "note": reading_note(runs),
        "means_note": means_note(finished(runs)),
        "unfinished": unfinished(runs),
        "unfinished_words": unfinished_in_words(runs),
        "marks": distinct(styled),
        "plots": plots,
        "grouped": grouped,
        "means": means,
        "swept": over,
        "heats": heats,
        "others": others,
        "x_choices": x_choices((*plots, *others)),
        "figures": chart_data((*means.plots, *over.plots, *heats, *plots, *others)),
        "compared": finished(runs) or runs,
        "differences": differences(finished(runs) or runs),
        "problems": problems(finished(runs)),
        "runs": runs,
        "versions": versions(runs),
    }


X_CHOICES = {"step": "steps", "tokens": "tokens read", "supervised": "supervised tokens", "seconds": "seconds"}


def x_choices(plots: Sequence[Panel]) -> list[tuple[str, str]]:
    """What curves over training may stand over, with its name; none where it is the step alone."""
    offered = {name for plot in plots for name in plot.x_choices}
    return [(name, text) for name, text in X_CHOICES.items() if name in offered or name == "step"] if offered else []


def training_plots(groups: Sequence[RunGroup]) -> tuple[Panel, ...]:
    """Over training alone: beside a table of groups their accuracy stands already."""
    return tuple(plot for plot in figures.panels(groups) if plot.lines)


def picture_plots(runs: Sequence[Run], grouped: Grouped | None) -> tuple[Panel, ...]:
    """What comparison.png shows: the plots of the groups where there are any, and those over training."""
    if grouped is None:
        return figures.panels(run_groups(runs))
    return (*grouped_panels(grouped, len(grouped.rows)), *training_plots(groups_of_rows(grouped)))


def _column_order(column: TableColumn) -> int:
    """The name, what was measured on held-out rows, then the design and the rest."""
    return 0 if column.key == "name" else 1 if column.key.startswith("test/") else 2


def _grouped_part(grouped: Grouped | None, first_index: int) -> ReportPart:
    if grouped is None:
        return ReportPart()
    return ReportPart(
        distinct(mark for _, mark in design_marks(grouped, first_index)), grouped_panels(grouped, first_index)
    )


def _swept_parts(swept: Swept | None, first_index: int) -> tuple[ReportPart, tuple[figures.Panel, ...]]:
    """The metric over every number swept, and over every two keys."""
    if swept is None:
        return ReportPart(), ()
    marks = distinct(mark for _, mark in point_marks(swept, first_index))
    return ReportPart(marks, scatter_panels(swept, first_index)), heat_panels(swept)


def differences(runs: Sequence[Run]) -> list[DifferingKey]:
    """What differs between the configs of `runs`; keys outside the target design come first."""
    return [
        DifferingKey(key, tuple(run.config.get(key, MISSING) for run in runs), of_design(key))
        for key in differing_keys(runs)
    ]


def versions(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Each package with the versions the runs were made with: more than one is worth knowing."""
    packages = sorted({package for run in runs for package in run.versions})
    by_package = {package: {run.versions.get(package) for run in runs} for package in packages}
    return [(package, ", ".join(sorted(filter(None, texts)))) for package, texts in by_package.items()]
