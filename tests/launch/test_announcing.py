"""What a multirun says before its first job, between its jobs, and when all have ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qtarget.compare.selection import choice_hint
from qtarget.launch import multirun
from qtarget.launch.announcing import Announcer, CheckedJob, distinct_labels, results_table
from qtarget.launch.outcome import Outcome
from qtarget.progress import TimeLeft


@pytest.fixture
def jobs_run(workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What had been said when each job began; no job trains."""
    said: list[str] = []

    def noted(composed: Any, *_: Any) -> dict[str, Any]:
        said.append("".join(capsys.readouterr()))
        return {}

    monkeypatch.setattr(multirun, "_run_or_dry", noted)
    return said


def test_a_missing_teacher_is_said_before_the_first_job_trains(jobs_run: list[str]) -> None:
    assert multirun.launch(["-m", "target=sft,kd,dft", "model=tiny"]) == 0
    assert len(jobs_run) == 3  # those that can run do
    assert "job 2 of 3 can't run: target=kd: this target needs the teacher" in jobs_run[0]
    assert "the other 2 go on; Ctrl-C stops them" in jobs_run[0]
    assert "teacher" not in "".join(jobs_run[1:])


def test_a_wrong_number_of_one_job_is_said_before_the_first_job_trains(jobs_run: list[str]) -> None:
    assert multirun.launch(["-m", "optim.lr=1e-4,-1", "model=tiny"]) == 0
    assert "job 2 of 2 can't run: optim.lr=-1: " in jobs_run[0]


def test_a_multirun_says_which_job_begins(jobs_run: list[str]) -> None:
    assert multirun.launch(["-m", "target=sft", "seed=0,1", "model=tiny"]) == 0
    assert "job 1 of 2: seed=0" in jobs_run[0]
    assert "left: seed=1" in jobs_run[1]
    assert not any("can't run" in said for said in jobs_run)


def test_what_a_choice_of_learning_rates_lacks_is_said_before_the_first_job(jobs_run: list[str]) -> None:
    sweep = ["-m", "optim.lr=1e-4,3e-4", "model=tiny"]
    assert multirun.launch([*sweep, "trainer.eval_every=0"]) == 0
    assert "optim.lr: to have compare --best-of" in jobs_run[0]
    assert "add eval.test_on=rest and trainer.eval_every above 0\n" in jobs_run[0]
    assert multirun.launch([*sweep, "eval.test_on=rest"]) == 0
    assert not any("--best-of" in before for before in jobs_run[1:])


@pytest.mark.parametrize("keys", [("seed", "data.seed"), ("data.noise.rate",), ("target",)])
def test_seeds_data_and_designs_are_not_chosen_among(keys: tuple[str, ...]) -> None:
    points = [dict.fromkeys(keys, value) for value in ("0", "1")]
    if keys == ("target",):
        points = [{"target": "sft"}, {"target": "dft"}]
    assert choice_hint(points, "all", 20) is None


def announcer(*checked: CheckedJob) -> Announcer:
    return Announcer.of([[f"seed={n}", "target=sft"] for n in range(len(checked))], checked)


def test_time_left_is_that_of_jobs_that_will_take_time() -> None:
    """Finished ones are returned at once, and those that can't run fail at once."""
    jobs = announcer(CheckedJob(), CheckedJob(finished=True), CheckedJob("no teacher"), CheckedJob(), CheckedJob())
    assert jobs.begins(0) == "job 1 of 5: seed=0"
    jobs.ended(0, 300.0)
    jobs.ended(1, 0.1)
    jobs.ended(2, 0.1)
    assert jobs.begins(3) == "job 4 of 5, 10 min left: seed=3"
    jobs.ended(3, 900.0)
    assert jobs.begins(4) == "job 5 of 5, 10 min left: seed=4"


def test_jobs_that_run_at_once_share_the_time() -> None:
    left = TimeLeft(8, at_once=2)
    assert str(left) == ""
    left.ended(600.0)
    left.ended(600.0)
    assert str(left) == ", 30 min left"
    for _ in range(5):
        left.ended(600.0)
    assert str(left) == ", 10 min left"  # one job, which two slots don't make faster
    left.ended(600.0)
    assert str(left) == ""


def test_where_no_job_can_run_each_says_so_in_its_turn_alone(capsys: pytest.CaptureFixture[str]) -> None:
    announcer(CheckedJob("no teacher"), CheckedJob("no teacher")).say_what_cannot_run()
    assert capsys.readouterr().err == ""


def test_a_job_is_called_by_what_sets_it_apart() -> None:
    jobs = [["target=sft", "model=tiny", "seed=0"], ["target=dft", "model=tiny", "seed=0"]]
    assert distinct_labels(jobs) == ["target=sft", "target=dft"]
    assert distinct_labels([["a=1"], ["a=1", "b=2"]]) == ["defaults", "b=2"]


def outcome(root: Path, target: str, metrics: dict[str, float], error: str = "") -> Outcome:
    folder = root / target
    folder.mkdir()
    result = {"status": "finished", "name": target, "metrics": metrics, "overrides": [f"target={target}", "seed=0"]}
    (folder / "result.json").write_text(json.dumps(result))
    return Outcome(folder, target, error)


@pytest.mark.parametrize(
    ("metric", "order"), [("test/accuracy", ["dft", "kd", "sft"]), ("test/nll", ["sft", "kd", "dft"])]
)
def test_the_table_of_results_has_the_best_first(tmp_path: Path, metric: str, order: list[str]) -> None:
    values = {"sft": 0.25, "dft": 0.75, "kd": 0.5}
    outcomes = [outcome(tmp_path, name, {metric: value, "train/seconds": 90.0}) for name, value in values.items()]
    table = results_table([*outcomes, outcome(tmp_path, "gem", {metric: 9.0}, "it crashed")])
    assert table is not None
    assert [line[0] for line in table.lines] == [f"target={name}" for name in order]
    assert {line[-1] for line in table.lines} == {"1.5 min"}
    assert len(table.titles) == 3  # columns that no job fills are left out


def test_jobs_of_equal_accuracy_are_told_apart_by_nll(tmp_path: Path) -> None:
    outcomes = [
        outcome(tmp_path, name, {"test/accuracy": 0.0, "test/nll": nll}) for name, nll in (("a", 2.0), ("b", 1.0))
    ]
    table = results_table(outcomes)
    assert table is not None
    assert [line[0] for line in table.lines] == ["target=b", "target=a"]


def test_a_job_without_the_metric_stands_last(tmp_path: Path) -> None:
    outcomes = [outcome(tmp_path, "a", {"train/seconds": 1.0}), outcome(tmp_path, "b", {"test/nll": 3.0})]
    table = results_table(outcomes)
    assert table is not None
    assert [line[0] for line in table.lines] == ["target=b", "target=a"]


def test_one_result_needs_no_table(tmp_path: Path) -> None:
    assert results_table([outcome(tmp_path, "sft", {"test/nll": 1.0})]) is None


def edited_during_a_multirun(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rates of three jobs, whose yaml is edited while the first one runs."""
    own = workdir / "conf" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\noptim: {lr: 1.0e-3}\n")
    rates: list[float] = []

    def noted(composed: Any, *_: Any) -> dict[str, Any]:
        rates.append(composed.optim.lr)
        (own / "mine.yaml").write_text("# @package _global_\noptim: {lr: 5.0e-3}\n")
        return {}

    monkeypatch.setattr(multirun, "_run_or_dry", noted)
    assert multirun.launch(["-m", "experiment=mine", "model=tiny", "seed=0,1,2"]) == 0
    return rates


def test_an_edit_during_a_multirun_changes_none_of_its_jobs(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra 1.3.8 composes a job again when its turn comes, from its files as they are then."""
    assert edited_during_a_multirun(workdir, monkeypatch) == [1e-3, 1e-3, 1e-3]


def test_hydra_alone_would_train_another_job_after_an_edit(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qtarget.launch.launcher.announced", lambda launcher, *_: launcher)
    assert edited_during_a_multirun(workdir, monkeypatch) == [1e-3, 5e-3, 5e-3]
