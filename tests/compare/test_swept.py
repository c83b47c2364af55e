"""What was swept, and what differs between runs, as plots: points where the numbers are, the best of a cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import test_runs
from test_groups import write_run

from qtarget.compare.command import compare
from qtarget.compare.group_table import Grouping, grouped_rows
from qtarget.compare.report import grouped_panels, render
from qtarget.compare.sweeps import BINS, Swept, cut, draw_sweep, heat_panels, read_swept, scatter_panels
from qtarget.errors import QTargetError
from qtarget.plot.chart_data import chart_data
from qtarget.plot.figures import Panel
from qtarget.record.runs import read_runs


def write_sweep(folder: Path, points: list[tuple[dict[str, Any], float | None]], maximize: bool = False) -> None:
    """A sweep's folder: a run per point, and the book of values; the odd ones were stopped early."""
    told = []
    for number, (values, value) in enumerate(points):
        state = "stopped" if number % 2 else "finished"
        test_runs.write_run(folder, "sft", f"{number:012x}", status=state, config=dict(values), seed=0)
        told.append({"number": number, "values": values, "state": state, "value": value, "folder": f"o/{number:012x}"})
    book = {"metric": {"name": "val/nll", "maximize": maximize}, "points": told}
    (folder / "sweep.json").write_text(json.dumps(book))


def swept(folder: Path, metric: str | None = None) -> Swept:
    found = read_swept(read_runs([folder]), metric)
    assert found is not None
    return found


def points(panel: Panel) -> set[tuple[float, float, bool]]:
    return {(x, y, line.faint) for line in panel.lines for x, y in zip(line.steps, line.values, strict=True)}


GRID = [
    ({"optim.lr": rate, "target.alpha": alpha, "target/residual": residual, "seed": seed}, value)
    for rate, alpha, residual, seed, value in [
        (1e-4, 0.0, "self", 0, 3.0),
        (1e-4, 0.5, "self", 1, 2.0),
        (1e-2, 0.0, "prior", 2, 1.5),
        (1e-2, 0.0, "prior", 3, 1.0),
        (1e-3, 0.5, "self", 4, None),
        (1e-3, 1.0, "self", 5, 2.5),
    ]
]


def test_a_sweep_is_read_from_its_book(tmp_path: Path) -> None:
    write_sweep(tmp_path, GRID)
    found = swept(tmp_path)
    assert (found.metric, found.lower_is_better) == ("val/nll", True)
    assert (found.numbers, found.words) == (("optim.lr", "target.alpha"), ("target/residual",))  # and no seed
    assert len(found.points) == 5  # one has no value


def test_keys_of_a_random_search_all_count(tmp_path: Path) -> None:
    """No two points agree in anything there; only what is the same number throughout is the same key."""
    drawn = [({"b": 0.1 * n, "a": 10.0**-n, "also_a": 10.0**-n, "once": 1.0, "seed": n}, float(n)) for n in range(1, 6)]
    write_sweep(tmp_path, drawn)
    assert swept(tmp_path).numbers == ("a", "b")


def test_a_key_with_one_value_hides_none(tmp_path: Path) -> None:
    write_sweep(tmp_path, [({"lr": 1e-4}, 1.0), ({"lr": 1e-3, "adapter.r": 16}, 2.0)])
    assert swept(tmp_path).numbers == ("lr",)


def test_many_dots_are_all_drawn(tmp_path: Path) -> None:
    write_sweep(tmp_path, [({"lr": 1e-4 * n}, float(n)) for n in range(1, 61)])
    data = chart_data(scatter_panels(swept(tmp_path), 0))
    drawn = data["panels"]["scatter-0"]["lines"]
    assert [len(data["axes"][line["x"]["step"]]) for line in drawn] == [30, 30]
    assert [(line["joined"], line["marked"]) for line in drawn] == [(False, True)] * 2


def test_a_metric_without_a_better_end_has_no_best_cell(tmp_path: Path) -> None:
    for number, (lr, alpha) in enumerate([(1e-4, 0.0), (1e-3, 0.5)]):
        config = {"optim.lr": lr, "target.alpha": alpha}
        test_runs.write_run(tmp_path, "sft", f"{number:012x}", config=config, metrics={"test/kl_prior": 1.0 + number})
    found = swept(tmp_path, "test/kl_prior")
    assert found.lower_is_better is None
    assert heat_panels(found) == ()
    assert "is better" not in scatter_panels(found, 0)[0].caption


@pytest.mark.parametrize("book", ["null", "[1]", '{"metric": "loss", "points": []}', '{"points": 3}', "{}", "{"])
def test_a_book_of_another_kind_is_named(book: str, tmp_path: Path) -> None:
    write_sweep(tmp_path, GRID)
    (tmp_path / "sweep.json").write_text(book)
    with pytest.raises(QTargetError, match="is not what qtarget sweep writes"):
        swept(tmp_path)


def test_a_scatter_has_a_dot_per_run_on_an_axis_that_fits(tmp_path: Path) -> None:
    write_sweep(tmp_path, GRID)
    rate, alpha = scatter_panels(swept(tmp_path), 0)
    assert (rate.x_log, alpha.x_log) == (True, False)
    assert points(rate) == {
        (1e-4, 3.0, False), (1e-4, 2.0, True), (1e-2, 1.5, False), (1e-2, 1.0, True), (1e-3, 2.5, True)
    }  # fmt: skip
    assert {line.mark.label for line in rate.lines} == {"self", "prior"}
    assert chart_data([rate])["panels"]["scatter-0"]["x"]["log"]


@pytest.mark.parametrize(("maximize", "best"), [(False, 1.0), (True, 1.5)])
def test_a_cell_of_the_heatmap_is_its_best_run(tmp_path: Path, maximize: bool, best: float) -> None:
    write_sweep(tmp_path, GRID, maximize)
    first, *others = heat_panels(swept(tmp_path))
    assert (first.x_title, first.y_title, len(others)) == ("optim.lr", "target.alpha", 2)
    assert first.heat is not None
    assert (first.heat.columns, first.heat.rows) == (("0.0001", "0.001", "0.01"), ("0", "0.5", "1"))
    assert first.heat.values == ((3.0, None, best), (2.0, None, None), (None, 2.5, None))
    assert chart_data([first])["panels"]["heat-0"]["heat"]["lower"] is not maximize


def test_many_numbers_are_cut_into_spans_of_equal_ratio() -> None:
    rates = [str(10 ** (-5 + place / 10)) for place in range(41)]
    found = cut(rates)
    assert len(found.names) == BINS
    assert [found.index_of(rate) for rate in ("1e-05", "6e-05", "0.0001", "0.0004", "0.003", "0.1")] == [
        0,
        0,
        1,
        2,
        3,
        4,
    ]


def test_spans_between_close_numbers_have_names_of_their_own() -> None:
    found = cut([str(1000 + place / 10) for place in range(20)])
    assert len(set(found.names)) == BINS


def test_without_a_book_it_is_what_differs(tmp_path: Path) -> None:
    for rate, right in ((0.0, 3), (0.2, 2), (0.4, 1)):
        write_run(tmp_path, "sft", 0, [row < right for row in range(4)], rate)
    found = swept(tmp_path)
    assert (found.metric, found.numbers, found.words) == ("test/accuracy", ("data.noise.rate",), ())
    assert points(*scatter_panels(found, 0)) == {(0.0, 75.0, False), (0.2, 50.0, False), (0.4, 25.0, False)}
    assert heat_panels(found) == ()
    assert swept(tmp_path, "test/nll").lower_is_better


def test_runs_that_differ_in_nothing_but_their_seed_were_no_sweep(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "sft", seed, [True])
    assert read_swept(read_runs([tmp_path])) is None
    assert "What was swept" not in render(read_runs([tmp_path]))


def test_controls_and_starts_are_no_points_of_a_sweep(tmp_path: Path) -> None:
    test_runs.write_run(tmp_path, "sft", "a" * 12, config={"data": {"rows": 10}})
    test_runs.write_run(tmp_path, "sft+clean", "b" * 12, config={"data": {"rows": 20}}, role="control")
    assert read_swept(read_runs([tmp_path])) is None


def test_a_metric_that_no_run_has_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "sft", 0, [True])
    with pytest.raises(QTargetError, match=r"no finished run holds the metric 'test/other'; they hold test/accuracy"):
        compare([tmp_path], metric="test/other")


def test_a_file_that_is_no_book_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "sft", 0, [True])
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(QTargetError, match=r"sweep\.json is not what qtarget sweep writes"):
        read_swept(read_runs([tmp_path]))


# Over seeds


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    for rate, sft, dft in ((0.4, 1, 3), (0.0, 4, 3), (0.2, 2, 3)):
        for seed in (0, 1):
            write_run(tmp_path, "sft", seed, [row < sft for row in range(4)], rate)
            write_run(tmp_path, "dft", seed, [row < dft for row in range(4)], rate)
    return tmp_path


def test_a_robustness_curve_has_a_line_per_design_with_its_intervals(noisy: Path) -> None:
    found = grouped_rows(read_runs([noisy]), Grouping(["target", "data.noise.rate"], "test/accuracy", ["target=sft"]))
    curve, means, differences = grouped_panels(found, 7)
    lines = {line.mark.label: line for line in curve.lines}
    assert (lines["sft"].steps, lines["sft"].values) == ((0.0, 0.2, 0.4), (100.0, 50.0, 25.0))
    assert lines["dft"].values == (75.0, 75.0, 75.0)
    for line in curve.lines:
        assert all(low < value <= high for low, value, high in zip(line.lows, line.values, line.highs, strict=True))
    assert {line.mark.index for line in curve.lines} == {7, 8}
    assert [dot.mark.label for dot in means.dots if dot.mark.index == lines["sft"].mark.index] == [
        "sft, 0.0", "sft, 0.2", "sft, 0.4"
    ]  # fmt: skip
    assert [(dot.mark.label, dot.value) for dot in differences.dots] == [
        ("dft, 0.0", -25.0), ("dft, 0.2", 25.0), ("dft, 0.4", 50.0)
    ]  # fmt: skip


def test_bars_of_a_metric_without_intervals_reach_over_the_seeds_and_say_so(noisy: Path) -> None:
    found = grouped_rows(read_runs([noisy]), Grouping(["target", "data.noise.rate"], "test/nll", []))
    curve, _ = grouped_panels(found, 0)
    assert (curve.lines[0].lows, curve.lines[0].highs) == ((1.0,) * 3, (2.0,) * 3)
    assert "from the smallest seed to the largest" in curve.caption


def test_groups_without_a_number_have_no_curve(noisy: Path) -> None:
    runs = [run for run in read_runs([noisy]) if run.config["data.noise.rate"] == "0.4"]
    panels = grouped_panels(grouped_rows(runs, Grouping(["target"], "test/accuracy", [])), 0)
    assert [panel.key for panel in panels] == ["means"]


def test_the_page_escapes_groups_and_swept_values(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    for rate in (0.1, 0.2):
        write_run(tmp_path, "sft", 0, [True, False], rate)
    for path in tmp_path.glob("*/result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"choices": {"target": evil}, "name": evil}))
    runs = read_runs([tmp_path])
    found = grouped_rows(runs, Grouping(["target", "data.noise.rate"], "test/accuracy", []))
    for page in (render(runs), render(runs, found)):
        assert evil not in page
        assert "&lt;script&gt;alert(1)" in page


def test_the_same_sweep_gives_the_same_bytes(tmp_path: Path) -> None:
    write_sweep(tmp_path, GRID)
    assert render(read_runs([tmp_path])) == render(read_runs([tmp_path]))


# The picture


@pytest.mark.parametrize(("maximize", "best"), [(False, 1.0), (True, 3.0)])
def test_a_sweep_is_drawn_with_its_best_point(tmp_path: Path, maximize: bool, best: float) -> None:
    write_sweep(tmp_path, GRID, maximize)
    found = draw_sweep(tmp_path, tmp_path / "scatter.png")
    assert (found.value, found.values["optim.lr"]) == (best, "0.01" if best == 1.0 else "0.0001")
    height, width = matplotlib.image.imread(tmp_path / "scatter.png").shape[:2]
    assert 2.2 < width / height < 2.8  # two plots: the seed is none


def test_what_is_no_sweep_is_not_drawn(tmp_path: Path) -> None:
    write_sweep(tmp_path, [({"optim.lr": rate}, None) for rate in (1e-4, 1e-3)])
    with pytest.raises(QTargetError, match="holds no runs that differ in a number and have a value"):
        draw_sweep(tmp_path, tmp_path / "scatter.png")
