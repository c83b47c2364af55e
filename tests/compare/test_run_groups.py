"""Which runs are one line, and how it looks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import many_runs
import pytest
import yaml
from test_runs import NOW, write_run

from qtarget.compare.group_table import Grouping, grouped_rows
from qtarget.compare.report import x_choices
from qtarget.compare.run_groups import run_groups
from qtarget.plot.chart_data import chart_data
from qtarget.plot.figures import metric_panels, nll_panel, progress_panel
from qtarget.plot.looks import DASHES, KNOWN, look, looks, marks
from qtarget.plot.spreads import spread_panels
from qtarget.record.runs import differing_but_seeds, read_runs

TARGETS = Path(__file__).parents[2] / "conf" / "target"


def test_every_design_of_the_package_has_a_look_of_its_own() -> None:
    assert sorted(KNOWN) == sorted(path.stem for path in TARGETS.glob("*.yaml"))
    assert len(set(looks(KNOWN).values())) == len(KNOWN)


def test_a_designs_look_does_not_depend_on_its_company() -> None:
    assert looks(["dft", "mine"])["dft"] == looks(["mine", "sft", "dft"])["dft"] == look(KNOWN.index("dft"))
    assert looks(["sft", "mine", "yours"])["mine"] not in (look(0), looks(["sft", "mine", "yours"])["yours"])


def test_settings_of_a_design_differ_by_dash() -> None:
    styled = marks([("sft", "sft, 0.0"), ("dft", "dft, 0.0"), ("sft", "sft, 0.4")], first_index=3)
    assert [mark.index for mark in styled] == [3, 4, 5]
    assert (styled[0].colour, styled[0].dash, styled[2].dash) == (styled[2].colour, *DASHES[:2])


def test_seeds_of_one_configuration_are_one_line_and_others_are_not(tmp_path: Path) -> None:
    many_runs.write_many(tmp_path / "many", many_runs.DESIGNS[:2], (0.0, 0.4), seeds=3)
    groups = run_groups(read_runs([tmp_path], NOW))
    assert [len(group.runs) for group in groups] == [3] * 4
    assert {group.mark.label for group in groups} == {
        f"{design} (rate={rate})" for design in many_runs.DESIGNS[:2] for rate in (0.0, 0.4)
    }
    assert all(len({run.config["data.noise.rate"] for run in group.runs}) == 1 for group in groups)


def test_runs_of_one_seed_are_never_taken_together(tmp_path: Path) -> None:
    for digest in ("a", "b"):
        write_run(tmp_path / "demo", "sft", digest * 12)
    assert [len(group.runs) for group in run_groups(read_runs([tmp_path], NOW))] == [1, 1]


def test_an_unfinished_run_stands_by_itself(tmp_path: Path) -> None:
    history = '{"step": 1, "val/accuracy": 0.5}'
    for seed, status in enumerate(("finished", "finished", "interrupted")):
        write_run(
            tmp_path / "demo", "sft", f"{seed:012x}", history=history, seed=seed, status=status, config={"seed": seed}
        )
    groups = run_groups(read_runs([tmp_path], NOW))
    assert [len(group.runs) for group in groups] == [2, 1]
    assert "interrupted" in groups[1].mark.label


def test_a_mean_is_of_the_steps_that_all_seeds_have(tmp_path: Path) -> None:
    for seed in range(3):
        rows = [
            f'{{"step": {step}, "time": {step * 2.0}, "val/accuracy": {(step + seed) / 10}}}'
            for step in range(1, 5 - seed)
        ]
        write_run(tmp_path / "demo", "sft", f"{seed:012x}", history="\n".join(rows), seed=seed, config={"seed": seed})
    (line,) = progress_panel(run_groups(read_runs([tmp_path], NOW))).lines
    assert line.steps == (1, 2)
    assert line.values == pytest.approx((20.0, 30.0))
    assert (line.lows, line.highs) == (pytest.approx((10.0, 20.0)), pytest.approx((30.0, 40.0)))
    assert line.other_x == {"seconds": (2.0, 4.0)}
    assert [member.values[0] for member in line.members] == pytest.approx([10.0, 20.0, 30.0])


def test_curves_stand_over_tokens_where_every_run_has_counted_them(tmp_path: Path) -> None:
    """Both counts are means over seeds, as the seconds are; runs of an earlier build have none."""
    for seed in range(2):
        counted = {"train/tokens": 100 * (seed + 1), "train/supervised_tokens": 10 * (seed + 1)}
        history = "\n".join(json.dumps({"step": step, "train/nll": 1.0, **counted}) for step in (1, 2))
        write_run(tmp_path / "new", "sft", f"{seed:012x}", history=history, seed=seed, config={"seed": seed})
    panel = nll_panel(run_groups(read_runs([tmp_path], NOW)))
    assert panel.x_choices == ("tokens", "supervised")
    assert panel.lines[0].other_x == {"tokens": (150.0, 150.0), "supervised": (15.0, 15.0)}
    assert metric_panels(run_groups(read_runs([tmp_path], NOW))) == ()  # they are no curves of their own
    write_run(tmp_path / "old", "dft", "a" * 12, history='{"step": 1, "train/nll": 1.0}')
    assert nll_panel(run_groups(read_runs([tmp_path], NOW))).x_choices == ()
    assert x_choices([panel]) == [("step", "steps"), ("tokens", "tokens read"), ("supervised", "supervised tokens")]
    assert x_choices([]) == []


def test_an_axis_is_logarithmic_where_values_span_decades(tmp_path: Path) -> None:
    for name, low in (("wide", 0.001), ("narrow", 0.5)):
        history = f'{{"step": 1, "train/nll": 1.0}}\n{{"step": 2, "train/nll": {low}}}'
        write_run(tmp_path / name, "sft", "a" * 12, history=history)
    assert nll_panel(run_groups(read_runs([tmp_path / "wide"], NOW))).y_log
    assert not nll_panel(run_groups(read_runs([tmp_path / "narrow"], NOW))).y_log


def test_every_other_recorded_metric_can_be_chosen(tmp_path: Path) -> None:
    history = '{"step": 1, "time": 1, "train/nll": 1.0, "train/lr": 0.1, "val/kl_prior": 0.2, "val/accuracy_low": 0.1}'
    write_run(tmp_path / "demo", "sft", "a" * 12, history=history)
    assert [plot.title for plot in metric_panels(run_groups(read_runs([tmp_path], NOW)))] == [
        "train/lr",
        "val/kl_prior",
    ]


def write_spread(root: Path, seed: int, last: list[int], accuracy: list[float | None]) -> None:
    """A run whose bins of γ go from 0 to 1, and those of confidence too; an earlier evaluation counted otherwise."""
    run = write_run(root, "sft", f"{seed:012x}", seed=seed, config={"seed": seed})
    counts = ([9] * len(last), last)
    lines = [{"step": 1, "histogram/reliance": {"low": 0.0, "high": 1.0, "counts": one}} for one in counts]
    (run / "histograms.jsonl").write_text("\n".join(map(json.dumps, lines)))
    width = 1 / len(accuracy)
    bins = [
        {"low": width * place, "high": width * (place + 1), "tokens": int(one is not None), "accuracy": one}
        for place, one in enumerate(accuracy)
    ]
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"calibration": bins}))


def test_histograms_and_calibration_are_curves_of_means_over_seeds(tmp_path: Path) -> None:
    write_spread(tmp_path, 0, [1, 3], [0.25, None])
    write_spread(tmp_path, 1, [2, 2], [0.75, None])
    gamma, calibration = spread_panels(run_groups(read_runs([tmp_path], NOW)))
    (line,) = gamma.lines
    assert (gamma.title, gamma.x_title) == ("γ at the end of training", "γ")
    assert (line.steps, line.values) == ((0.25, 0.75), (37.5, 62.5))
    assert (line.lows, line.highs) == ((25.0, 50.0), (50.0, 75.0))
    assert [member.values for member in line.members] == [(25.0, 75.0), (50.0, 50.0)]
    mean, diagonal = calibration.lines
    assert (mean.steps, mean.values[0], math.isnan(mean.values[1])) == ((25.0, 75.0), 50.0, True)
    assert diagonal.steps == diagonal.values == (0.0, 100.0)
    assert chart_data([calibration])["panels"]["calibration"]["lines"][0]["y"] == [50.0, None]


def test_runs_that_kept_no_histograms_have_no_empty_plot(tmp_path: Path) -> None:
    write_run(tmp_path, "sft", "a" * 12)
    assert spread_panels(run_groups(read_runs([tmp_path], NOW))) == ()


UNLIKE = {
    "a class": ({"target": {"residual": {"_target_": "a.Uniform"}}}, {"target": {"residual": {"_target_": "a.Self"}}}),
    "a folder": ({"data": {"path": "/home/a/en/r.jsonl"}}, {"data": {"path": "/home/a/de/r.jsonl"}}),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_runs_that_differ_in_a_class_or_a_folder_are_no_seeds_of_one_another(tmp_path: Path, what: str) -> None:
    """Neither shows among the keys: classes are left out of them, and paths are cut to their last part."""
    for seed, config in enumerate(UNLIKE[what]):
        write_run(tmp_path / "demo", "sft", f"{seed:012x}", seed=seed, config={"seed": seed, **config})
    runs = read_runs([tmp_path], NOW)
    groups = run_groups(runs)
    assert [len(group.runs) for group in groups] == [1, 1]
    assert len({group.mark.label for group in groups}) == 2
    assert differing_but_seeds(runs) == ["a path or a class"]
    grouped = grouped_rows(runs, Grouping(["target"], "test/nll"))
    assert "The runs of sft differ in more than their seed: a path or a class" in grouped.note


def test_seeds_and_what_changes_no_number_may_differ(tmp_path: Path) -> None:
    for seed in range(2):
        config = {"seed": seed, "experiment_name": f"e{seed}", "tracker": {"mode": f"m{seed}"}}
        write_run(tmp_path / "demo", "sft", f"{seed:012x}", seed=seed, config=config)
    runs = read_runs([tmp_path], NOW)
    assert [len(group.runs) for group in run_groups(runs)] == [2]
    assert "more than their seed" not in grouped_rows(runs, Grouping(["target"], "test/nll")).note


def test_evaluations_of_different_checkpoints_are_different(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        config = {"seed": seed, "checkpoint": f"outputs/runs/{name}"}
        write_run(tmp_path / "demo", "sft", name * 12, seed=seed, task="evaluate", config=config)
    assert [len(group.runs) for group in run_groups(read_runs([tmp_path], NOW))] == [1, 1]


def test_a_sweep_of_the_seed_alone_is_named_by_the_design(tmp_path: Path) -> None:
    for seed in range(2):
        folder = write_run(tmp_path / "demo", "sft", f"{seed:012x}", seed=seed, config={"seed": seed})
        assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == seed
    (group,) = run_groups(read_runs([tmp_path], NOW))
    assert group.mark.label == "sft"
