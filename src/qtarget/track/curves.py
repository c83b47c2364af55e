"""The grouped comparison as plots: means over seeds, what sets groups apart, and metrics over a numeric key."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import replace

from qtarget.track.figures import Dot, Line, Mark, Panel, look
from qtarget.track.grouped import Grouped, rest
from qtarget.track.groups import Row
from qtarget.track.numbers import spread


def design_marks(found: Grouped, first: int) -> list[tuple[Row, Mark]]:
    """Every row with how its design looks: rows that differ in numbers alone look alike. first: index of the first."""
    names = dict.fromkeys(map(found.design, found.rows))
    looks = {name: Mark(first + index, name, *look(index)) for index, name in enumerate(names)}
    return [(row, looks[found.design(row)]) for row in found.rows]


def grouped_panels(found: Grouped, first: int) -> tuple[Panel, ...]:
    """A curve per numeric key, the means, and the differences to the baseline where there is one."""
    styled = design_marks(found, first)
    curves = [_curve(found, styled, key, place) for place, key in enumerate(found.number_keys)]
    return (*curves, _means(found, styled), *([_differences(found, styled)] if found.compared else []))


def _curve(found: Grouped, styled: Sequence[tuple[Row, Mark]], key: str, place: int) -> Panel:
    by_line: dict[str, list[tuple[Row, Mark]]] = {}
    for row, mark in styled:
        by_line.setdefault(rest(row.group, [key]), []).append((row, mark))
    lines = tuple(_line(found, name, members, key) for name, members in by_line.items())
    caption = f"One line a design, the mean over its seeds. {_bars(found)}"
    log = spread([step for line in lines for step in line.steps])
    title = f"{found.metric} over {key}"
    return Panel(f"curve-{place}", title, key, found.title, caption, lines=lines, x_log=log, x_near=True)


def _line(found: Grouped, name: str, members: Sequence[tuple[Row, Mark]], key: str) -> Line:
    rows = sorted((row for row, _ in members), key=lambda row: float(row.group.key[key]))
    ends = [_ends(found, row) for row in rows]
    return Line(
        replace(members[0][1], label=name),
        found.metric,
        tuple(float(row.group.key[key]) for row in rows),
        tuple(found.scale * _middle(row) for row in rows),
        pointed=True,
        at=f"{html.escape(key)} %{{x}}, %{{text}}",
        lows=tuple(found.scale * low for low, _ in ends),
        highs=tuple(found.scale * high for _, high in ends),
        texts=tuple(f"seeds: {row.group.seeds(found.metric)}" for row in rows),
    )


def _middle(row: Row) -> float:
    return row.interval.mean if row.interval else row.mean


def _ends(found: Grouped, row: Row) -> tuple[float, float]:
    """Of a bar; none for a group without an interval beside others that have one."""
    if row.interval:
        return row.interval.low, row.interval.high
    return (row.mean, row.mean) if found.share else (row.low_seed, row.high_seed)


def _bars(found: Grouped) -> str:
    if found.share:
        return "The bars are 95 % intervals over held-out problems and seeds."
    return "The bars reach from the smallest seed to the largest: this metric has no intervals here."


def _means(found: Grouped, styled: Sequence[tuple[Row, Mark]]) -> Panel:
    dots = tuple(_dot(found, row, mark, _middle(row), _ends(found, row)) for row, mark in styled)
    title, caption = "Means over seeds", f"One dot a group, the mean over its seeds. {_bars(found)}"
    return _told(found, Panel("means", title, found.title, "", caption, dots=dots))


def _differences(found: Grouped, styled: Sequence[tuple[Row, Mark]]) -> Panel:
    apart = [(row, mark, row.difference) for row, mark in styled if row.difference]
    dots = tuple(_dot(found, row, mark, score.mean, (score.low, score.high)) for row, mark, score in apart)
    baseline = " and ".join(found.against)
    caption = (
        f"Each group less {baseline} (dotted), paired by seed and problem, with 95 % intervals: a bar that crosses the "
        "dotted line doesn't tell the two apart."
    )
    title = f"Difference to {baseline}"
    return _told(found, Panel("differences", title, f"difference in {found.title}", "", caption, dots, reference=0.0))


def _told(found: Grouped, panel: Panel) -> Panel:
    return replace(panel, number=f".{found.decimals}f", unit=" %" if found.share else "")


def _dot(found: Grouped, row: Row, mark: Mark, value: float, ends: tuple[float, float]) -> Dot:
    return Dot(replace(mark, label=row.group.label), *(found.scale * end for end in (value, *ends)))
