"""How many digits a column has: small differences stay visible, and nothing is a negative zero."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from test_groups import write_losses
from test_runs import NOW, write_run

from qtarget.compare.columns import columns_of
from qtarget.compare.decimals import bracketed, decimals_of_intervals, decimals_of_spans, decimals_of_values, fixed
from qtarget.compare.group_table import Grouped, Grouping, grouped_rows
from qtarget.compare.pairs import compare_paired
from qtarget.compare.report import grouped_panels
from qtarget.compare.run_groups import run_groups
from qtarget.evaluate.scores import Score
from qtarget.plot.chart_data import chart_data
from qtarget.plot.figures import metric_panels
from qtarget.record.runs import Run, read_runs


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([Score(0.0002, -0.0029, 0.0031)], 4),
        ([Score(5.517, 5.499, 5.536)], 3),
        ([Score(0.5, 0.1, 0.9), Score(0.0002, 0.0001, 0.00031)], 5),  # the narrowest
        ([Score(-0.1, -0.1, -0.1 + 1e-16)], 3),  # a point
        ([Score(0.00012, 0.00012, 0.00012)], 5),
        ([Score(0.0, 0.0, 0.0)], 3),
        ([Score(math.nan, math.nan, math.nan)], 3),
        ([], 3),
    ],
)
def test_an_interval_shows_two_digits_of_its_width(scores: list[Score], expected: int) -> None:
    assert decimals_of_intervals(scores, 3) == expected


def test_values_show_three_digits_of_the_largest_and_spans_two_of_the_widest() -> None:
    assert decimals_of_values([4.3e-05, 1e-06], 3) == 7
    assert decimals_of_values([2.9, 4.3e-05, math.inf, math.nan], 3) == 3
    assert decimals_of_spans([(5.51709, 5.51747), (1.0, 1.0)], 3) == 5


@pytest.mark.parametrize("value", [-0.0, -1e-9, -4.9e-4])
def test_what_rounds_to_zero_has_no_minus(value: float) -> None:
    assert (fixed(value, 3), fixed(value, 3, "+")) == ("0.000", "+0.000")
    assert bracketed(Score(value, -0.0006, 1234.0), 3) == "0.000 [-0.001, 1,234.000]"


@pytest.fixture
def close(tmp_path: Path) -> Grouped:
    """dft is better than sft by 2e-5 nats a token, give or take."""
    tokens = [10, 20, 30, 40, 50, 60]
    for seed in (0, 1):
        for target, better in (("sft", 0.0), ("dft", 2e-5)):
            losses = [5.5 + row / 100 + seed * 3e-5 - better * (1 + (-1) ** row * row) for row in range(6)]
            nats = [count * loss for count, loss in zip(tokens, losses, strict=True)]
            write_losses(tmp_path, target, seed, nats, tokens)
    return grouped_rows(read_runs([tmp_path]), Grouping(["target"], "test/nll", ["target=sft"]))


def test_a_small_difference_is_no_row_of_zeros(close: Grouped) -> None:
    (row,) = [row for row in close.rows if row.difference]
    cells = dict(zip(close.titles, close.table.lines[close.rows.index(row)], strict=True))
    numbers = [float(text) for text in re.findall(r"[-+][\d.]+", cells["difference [95 %]"])]
    assert row.difference is not None
    width = row.difference.high - row.difference.low
    for shown, exact in zip(numbers, (row.difference.mean, row.difference.low, row.difference.high), strict=True):
        assert abs(shown - exact) < width / 10
    low, high = cells["by seed"].split(" … ")
    assert low != high
    assert (
        len({len(number.partition(".")[2]) for number in re.findall(r"[\d.]+", cells["difference [95 %]"])} - {0}) <= 2
    )


def test_the_page_says_differences_with_the_digits_of_the_table(close: Grouped) -> None:
    means, differences = grouped_panels(close, 0)
    assert (means.number, differences.number) == (f".{close.decimals}f", f".{close.difference_decimals}f")
    assert close.difference_decimals > close.decimals


def test_shares_have_one_decimal_where_that_is_enough(tmp_path: Path) -> None:
    values = zip(_runs(tmp_path), (0.25, 0.5), strict=True)
    runs = [replace(run, metrics={"test/accuracy": value}) for run, value in values]
    grouped = grouped_rows(runs, Grouping(["target"], "test/accuracy"))
    assert [line[2] for line in grouped.table.lines] == ["50.0", "25.0"]


def _runs(folder: Path) -> list[Run]:
    for name in ("sft", "dft"):
        write_run(folder / "demo", name, name * 4, metrics={"test/kl_prior": 4.3e-05, "test/nll": 5.5})
    return read_runs([folder], NOW)


def test_a_column_of_small_values_shows_three_digits_of_them(tmp_path: Path) -> None:
    runs = _runs(tmp_path)
    (drift,) = [column for column in columns_of(runs) if column.key == "test/kl_prior"]
    assert {drift.text(run) for run in runs} == {"0.0000430"}


def test_two_runs_that_hardly_differ_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = [1, 2, 3, 2]
    write_losses(tmp_path, "a", 0, [1.0, 1.0, 2.0, 2.0], tokens)
    write_losses(tmp_path, "b", 0, [1.0 - 1e-4, 1.0 + 1e-5, 2.0, 2.0], tokens)
    compare_paired([tmp_path / "a0", tmp_path / "b0"], "nll")
    printed = capsys.readouterr().out
    mean = re.search(r"B − A (\S+) \[", printed)
    assert mean is not None
    assert float(mean[1]) == pytest.approx(-9e-5 / 8, rel=0.2)


def test_values_that_lie_close_together_stay_apart_on_the_page(tmp_path: Path) -> None:
    history = [{"step": step, "target/gap": 0.9962 + 1e-7 * step} for step in range(1, 9)]
    write_run(tmp_path / "demo", "dft", "a" * 12, history="\n".join(map(json.dumps, history)))
    (panel,) = chart_data(metric_panels(run_groups(read_runs([tmp_path], NOW))))["panels"].values()
    assert len(set(panel["lines"][0]["y"])) == 8
