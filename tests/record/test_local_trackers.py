"""What trackio 0.43, TensorBoard 2.21 and a CSV file hold is read back with their own readers, and is the record."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from qtarget.cli import run as qtarget_cli
from qtarget.config.parts import make_tracker
from qtarget.config.run_config import RunConfig
from qtarget.errors import QTargetError
from qtarget.record.local_trackers import CSV, TensorBoard, Trackio
from qtarget.record.record import Record
from qtarget.record.runs import logged
from qtarget.record.trackers import NoTracker, SeveralTrackers
from qtarget.train.histograms import Histogram

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
INFO = {
    "name": "sft/α",
    "role": "design",
    "experiment": "runs",
    "choices": {"target": "sft"},
    "config_hash": "abc",
}
CONFIG = {"target": {"_target_": "x.Y", "alpha": 0.5}, "seed": 3, "data": {"files": {}}}
COUNTED = {"histogram/p": Histogram(0.0, 1.0, [3, 0, 1])}
ROWS = [{"prompt": "a|b\nc", "p": 0.25}, {"prompt": "[x]", "p": 1.0}]


@pytest.fixture
def trackio_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TRACKIO_DIR, which trackio reads once, when it is imported."""
    import trackio.sqlite_storage
    import trackio.utils

    folder = tmp_path / "trackio"
    for module in (trackio.utils, trackio.sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", folder)
    return folder


def recorded(folder: Path, tracker: Any, *, failed: bool = False) -> dict[str, Any]:
    """A run that was stopped behind step 4, of which step 3 was saved, and that went on to its end."""
    folder.mkdir(exist_ok=True)
    first = Record(folder, tracker)
    first.start(INFO, CONFIG)
    first.log(1, {"train/loss": 2.0, "train/lr": 0.1})
    first.log(3, {"val/nll": math.nan})
    first.histograms(3, COUNTED)
    position = first.offsets()
    first.log(4, {"train/loss": 99.0})
    first.fail(KeyboardInterrupt())
    again = Record(folder, tracker)
    again.start(INFO, CONFIG, position)
    again.log(4, {"train/loss": 1.0})
    again.table("samples", ROWS)
    if failed:
        again.fail(ValueError("no"))
        return {}
    return again.finish({"test/nll": 0.5, "test/accuracy": 0.25})


def rows_of_record(folder: Path) -> list[dict[str, Any]]:
    """Without the clock; null is NaN."""
    lines = logged(folder / "metrics.jsonl")
    return [{k: math.nan if v is None else v for k, v in line.items() if k != "time"} for line in lines]


def agree(rows: list[dict[str, Any]], expected: list[dict[str, Any]], within: float = 0.0) -> None:
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted, nan_ok=True, rel=within, abs=0)


def trackio_runs(project: str = "qtarget") -> list[Any]:
    import trackio

    return list(trackio.Api().runs(project))


def trackio_rows(run: Any) -> list[dict[str, Any]]:
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs(run.project, run.name, run_id=run.id)
    return [{name: value for name, value in row.items() if name != "timestamp"} for row in rows]


def scalars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if all(isinstance(value, int | float) for value in row.values())]


def event_files(folder: Path) -> Any:
    """TensorBoard's reader of the only run below a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.glob("tensorboard/*/events.*")
    return EventAccumulator(str(file.parent), size_guidance={"tensors": 0, "scalars": 0, "histograms": 0}).Reload()


def scalars_of(events: Any) -> dict[tuple[int, str], float]:
    held = [((event.step, tag), event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
    assert len(dict(held)) == len(held)
    return dict(held)


def renamed(rows: list[dict[str, Any]], closing: Mapping[str, float]) -> dict[str, float]:
    """A closing value of what has a curve must not lie on the curve."""
    curves = {name for row in rows for name in row}
    return {f"closing/{name}" if name in curves else name: value for name, value in closing.items()}


def by_step(rows: list[dict[str, Any]], closing: Mapping[str, float]) -> dict[tuple[int, str], float]:
    """(step, name) → value; closing metrics stand at the last step."""
    rows = [*rows, {"step": rows[-1]["step"], **renamed(rows, closing)}]
    return {(row["step"], name): value for row in rows for name, value in row.items() if name != "step"}


def test_trackio_holds_what_the_record_holds_once_and_its_group_name_and_configuration(
    trackio_dir: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closing = recorded(workdir / "run", Trackio())["metrics"]
    (run,) = trackio_runs()
    rows = trackio_rows(run)
    agree(scalars(rows), [*rows_of_record(workdir / "run"), {"step": 4, **closing}])
    (shown,) = [row for row in rows if "histogram/p" in row]
    assert shown["step"] == 3
    assert shown["histogram/p"]["values"] == [3, 0, 1]
    assert shown["histogram/p"]["bins"] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    (table,) = [row for row in rows if "samples" in row]
    assert table["samples"]["_value"] == ROWS
    assert (run.name, run.config["_Group"]) == ("sft/α", "runs")
    assert run.config.items() >= {"target": "sft", "target.alpha": 0.5, "target._target_": "x.Y", "seed": 3}.items()
    assert json.loads((workdir / "run" / "result.json").read_text())["tracked_as"] == run.id
    assert trackio_dir.is_dir()
    assert set(capsys.readouterr().out.splitlines()) == {'trackio: look at it with: trackio show --project "qtarget"'}


def test_a_run_that_failed_has_an_alert_at_trackio(trackio_dir: Path, workdir: Path) -> None:
    recorded(workdir / "run", Trackio(project="mine"), failed=True)
    (run,) = trackio_runs("mine")
    assert [(alert["level"], alert["title"]) for alert in run.alerts()] == [("error", "the run failed")]


def test_runs_of_one_name_are_two_runs_at_trackio(trackio_dir: Path, workdir: Path) -> None:
    for folder in ("a", "b"):
        recorded(workdir / folder, Trackio())
    runs = trackio_runs()
    assert len({run.id for run in runs}) == len(runs) == 2
    assert len(trackio_rows(runs[0])) == len(trackio_rows(runs[1])) > 0


def test_a_name_that_trackio_keeps_for_itself_is_refused_before_data_is_read(trackio_dir: Path, workdir: Path) -> None:
    with pytest.raises(QTargetError, match=r"tracker\.project=registry-x: .*reserved"):
        Trackio(project="registry-x").start(workdir, INFO, CONFIG)


def test_tensorboard_holds_what_the_record_holds_once(workdir: Path) -> None:
    closing = recorded(workdir / "run", TensorBoard())["metrics"]
    events = event_files(workdir / "run")
    rows = by_step(rows_of_record(workdir / "run"), closing)
    assert scalars_of(events) == pytest.approx(rows, nan_ok=True)  # of single precision
    (shown,) = events.Histograms("histogram/p")
    assert (shown.step, shown.histogram_value.bucket) == (3, [3, 0, 1])
    assert shown.histogram_value.bucket_limit == pytest.approx([1 / 3, 2 / 3, 1])
    (text,) = events.Tensors("samples/text_summary")
    assert text.tensor_proto.string_val[0].decode().splitlines()[2:] == [r"| a\|b c | 0.25 |", "| [x] | 1.0 |"]
    assert (workdir / "run" / "tensorboard" / "sft_α").is_dir()


def test_tensorboards_hparams_hold_the_configuration_and_the_closing_metrics(workdir: Path) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    recorded(workdir / "run", TensorBoard())
    summaries = event_files(workdir / "run").summary_metadata
    data = {}
    for tag in ("experiment", "session_start_info"):
        held = plugin_data_pb2.HParamsPluginData.FromString(summaries[f"_hparams_/{tag}"].plugin_data.content)
        data[tag] = getattr(held, tag)
    assert {one.name.tag for one in data["experiment"].metric_infos} == {"test/nll", "test/accuracy"}
    values = data["session_start_info"].hparams
    assert (values["target"].string_value, values["target.alpha"].number_value) == ("sft", 0.5)
    assert values["seed"].number_value == 3
    (written,) = (workdir / "run").glob("tensorboard/*/hparams.yaml")
    assert yaml.safe_load(written.read_text())["target.alpha"] == 0.5


def test_the_csv_file_holds_what_the_record_holds_once(workdir: Path) -> None:
    closing = recorded(workdir / "run", CSV())["metrics"]
    with (workdir / "run" / "csv" / "metrics.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    agree(rows, [*rows_of_record(workdir / "run"), {"step": 4, **closing}])
    with (workdir / "run" / "csv" / "samples.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{name: str(value) for name, value in row.items()} for row in ROWS]
    held = yaml.safe_load((workdir / "run" / "csv" / "hparams.yaml").read_text())
    assert held == {"target": "sft", "target._target_": "x.Y", "target.alpha": 0.5, "seed": 3}


def test_a_measurement_is_in_the_csv_file_while_the_run_goes_on(workdir: Path) -> None:
    tracker = CSV()
    tracker.start(workdir, INFO, CONFIG)
    tracker.log(1, {"train/loss": 2.0})
    assert "2.0" in (workdir / "csv" / "metrics.csv").read_text()


@pytest.mark.parametrize("name", ["trackio", "tensorboard"])
def test_a_missing_extra_names_itself_when_the_tracker_is_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("qtarget.extras.find_spec", lambda module: None if module == name else module)
    with pytest.raises(QTargetError, match=rf"tracker={name} needs {name}: pip install 'qtarget\[{name}\]'"):
        make_tracker(RunConfig.compose(["model=tiny", f"tracker={name}"]).tracker)


# Several at once


class Broken(NoTracker):
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        raise OSError("no route")


class Named(NoTracker):
    """Keeps what it is sent, and the name that it had before."""

    def __init__(self) -> None:
        self.before: list[Any] = []
        self.rows: list[tuple[int, dict[str, float]]] = []

    def start(self, folder: Path, info: Mapping[str, Any], config: Mapping[str, Any]) -> str:
        self.before.append(info["tracked_as"])
        return "n1"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append((step, dict(metrics)))


def test_one_of_several_trackers_that_fails_is_named_and_keeps_nothing_from_the_others(workdir: Path) -> None:
    named = Named()
    record = Record(workdir, SeveralTrackers(first=Broken(), second=named))
    record.start(INFO, CONFIG)
    with pytest.warns(UserWarning, match=r"the local record goes on: tracker\.first: no route"):
        record.log(1, {"train/loss": 2.0})
    assert named.rows == [(1, {"train/loss": 2.0})]


def test_each_of_several_trackers_is_given_its_own_name_again(workdir: Path) -> None:
    named = Named()
    with pytest.warns(UserWarning, match="no route"):
        recorded(workdir / "run", SeveralTrackers(first=Broken(), second=named))
    assert named.before == [None, "n1"]
    assert json.loads((workdir / "run" / "result.json").read_text())["tracked_as"] == {"second": "n1"}


def test_a_list_of_trackers_is_each_under_its_own_name_with_its_own_settings() -> None:
    tracker = RunConfig.compose(
        ["model=tiny", "tracker=[wandb,csv]", "tracker.wandb.project=7", "tracker.wandb.tags=[1]"]
    ).tracker
    made = make_tracker(tracker)
    assert isinstance(made, SeveralTrackers)
    assert made.trackers.keys() == {"wandb", "csv"}
    assert (made.trackers["wandb"].project, made.trackers["wandb"].tags) == ("7", ["1"])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tracker=several"], "names no tracker: write tracker="),
        (["tracker=[wandb,trackoi]"], "unknown tracker 'trackoi': did you mean 'trackio'"),
        (["tracker=[csv,wandb]", "tracker.wandb.tags=fast"], r"tracker\.wandb\.tags is a list"),
        (["tracker=[csv,wandb]", "tracker.wandb.artifact=true", "checkpoint.save=false"], r"tracker\.wandb\.artifact"),
        (["tracker=[csv]", "+tracker.other=3"], r"tracker\.other: builtins\.int has no method start"),
    ],
)
def test_what_is_wrong_with_one_of_several_is_said_with_its_name(overrides: list[str], message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        make_tracker(RunConfig.compose(["model=tiny", *overrides]).tracker)


def test_a_list_of_trackers_in_a_yaml_file_is_refused_with_what_to_write(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra 1.3 makes one node of both, in which TensorBoard alone would be left."""
    (workdir / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults: [{override /tracker: [csv, tensorboard]}]\n"
    (workdir / "conf" / "experiment" / "both.yaml").write_text(text)
    assert qtarget_cli(["train", "model=tiny", "experiment=both", "trainer=dry"]) == 2
    assert "defaults: [wandb@wandb, csv@csv, _self_] and _target_: qtarget" in capsys.readouterr().err


def test_a_yaml_of_ones_own_composes_several_as_that_message_says(workdir: Path) -> None:
    (workdir / "conf" / "tracker").mkdir(parents=True)
    text = "defaults: [wandb@wandb, csv@csv, _self_]\n_target_: qtarget.record.trackers.SeveralTrackers\n"
    (workdir / "conf" / "tracker" / "both.yaml").write_text(f"{text}wandb: {{mode: online}}\n")
    made = make_tracker(RunConfig.compose(["model=tiny", "tracker=both"]).tracker)
    assert isinstance(made, SeveralTrackers)
    assert made.trackers["wandb"].mode == "online"  # type: ignore[attr-defined]


def test_a_run_sends_all_of_its_record_to_all_of_its_trackers(trackio_dir: Path, workdir: Path) -> None:
    small = ["model=tiny", "data.rows=16", "data.heldout_rows=4", "trainer.max_steps=2", "trainer.eval_every=1"]
    small += ["trainer.log_every=1", "trainer.precision=32-true", "eval.new_tokens=2", "checkpoint.save=false"]
    assert qtarget_cli(["train", *small, "tracker=[trackio,tensorboard,csv]", "name=small"]) == 0
    (folder,) = workdir.glob("outputs/runs/*/")
    expected, result = rows_of_record(folder), json.loads((folder / "result.json").read_text())
    closing = {name: math.nan if value is None else value for name, value in result["metrics"].items()}
    (run,) = trackio_runs()
    assert renamed(expected, closing).keys() >= {"test/nll", "closing/target/trust"}
    agree(scalars(trackio_rows(run)), [*expected, {"step": 2, **renamed(expected, closing)}])
    assert result["tracked_as"] == {"trackio": run.id}
    assert scalars_of(event_files(folder)) == pytest.approx(by_step(expected, closing), nan_ok=True)
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(expected) + 1
    tables = {path.stem for path in folder.glob("csv/*.csv")} - {"metrics"}
    assert tables == {name for row in trackio_rows(run) for name in row if name in ("samples", "calibration", "trust")}
    assert tables >= {"samples", "calibration"}
