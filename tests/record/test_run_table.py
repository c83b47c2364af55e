"""`qtarget.read_runs` gives what stands in the folders, with the types that it has there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_runs import write_run

import qtarget
from qtarget.record.run_table import OWN


@pytest.fixture
def two_runs(tmp_path: Path) -> Path:
    lines = "".join(json.dumps({"step": step, "time": 1.0, "val/nll": 3.0 - step}) + "\n" for step in (1, 2))
    config = {"optim": {"lr": 1e-5, "betas": [0.9, 0.95]}, "name": None, "checkpoint": {"save": True}}
    write_run(tmp_path / "demo", "sft", "a" * 12, accuracy=0.25, history=lines, config=config)
    changed = {"status": "interrupted", "metrics": {}, "seed": 1}
    write_run(tmp_path / "demo", "dft", "b" * 12, config={**config, "optim": {"lr": 3e-5}, "seed": 1}, **changed)
    return tmp_path


def test_a_row_has_state_choices_metrics_and_the_configuration_with_its_types(two_runs: Path) -> None:
    sft, dft = qtarget.read_runs(str(two_runs)).rows()
    assert list(sft)[: len(OWN)] == list(OWN)
    assert sft.keys() == dft.keys()
    assert (sft["run"], sft["status"], sft["seed"], sft["step"]) == ("sft", "finished", 0, 2)
    assert (sft["target"], sft["data.noise.rate"], sft["test/accuracy"]) == ("sft", 0.4, 0.25)
    assert (sft["optim.lr"], sft["optim.betas"], sft["checkpoint.save"]) == (1e-5, [0.9, 0.95], True)
    assert (dft["status"], dft["test/accuracy"], dft["step"], dft["optim.betas"]) == ("interrupted", None, None, None)
    assert Path(dft["folder"]) == (two_runs / "demo" / ("b" * 12)).resolve()


def test_a_part_of_a_design_and_the_metric_of_that_name_both_stand_in_a_row(tmp_path: Path) -> None:
    """target/reliance is the group that γ was chosen from, and the mean γ."""
    choices = {"target": "dft", "target/reliance": "power", "data/common@data": "base", "data": "gsm8k"}
    choices |= {"reference@references.prior": "frozen", "tracker": "csv"}
    write_run(tmp_path, "dft", "a" * 12, choices=choices, metrics={"target/reliance": 0.25})
    (row,) = qtarget.read_runs(tmp_path).rows()
    assert (row["target.reliance"], row["target/reliance"]) == ("power", 0.25)
    assert (row["data"], row["references.prior"]) == ("gsm8k", "frozen")
    write_run(tmp_path, "sft", "b" * 12, choices={**choices, "target/reliance": "one", "tracker": "local"})
    rows = qtarget.read_runs(tmp_path).rows(differing=True)
    assert {row["target.reliance"] for row in rows} == {"power", "one"}
    assert not rows[0].keys() & {"tracker", "data", "references.prior"}


def test_only_what_differs_leaves_out_the_configuration_that_all_share(two_runs: Path) -> None:
    rows = qtarget.read_runs(two_runs).rows(differing=True)
    assert set(rows[0]) - set(OWN) - {name for name in rows[0] if "/" in name} == {"target", "optim.lr", "optim.betas"}
    assert [row["optim.lr"] for row in rows] == [1e-5, 3e-5]


def test_history_is_a_row_a_step(two_runs: Path) -> None:
    history = qtarget.read_runs(two_runs).history()
    assert [(row["run"], row["step"], row["val/nll"]) for row in history] == [("sft", 1, 2.0), ("sft", 2, 1.0)]


def test_a_data_frame_holds_the_same_and_groups(two_runs: Path) -> None:
    frame = qtarget.read_runs(two_runs).to_pandas()
    assert frame["test/accuracy"].tolist()[0] == 0.25
    assert frame["test/accuracy"].isna().tolist() == [False, True]
    assert frame.groupby("target")["optim.lr"].mean().to_dict() == {"sft": 1e-5, "dft": 3e-5}


def test_without_pandas_the_frame_says_what_to_install(two_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = qtarget.read_runs(two_runs)
    monkeypatch.setattr("qtarget.record.run_table.is_installed", lambda module: False)
    with pytest.raises(qtarget.QTargetError, match=r"pip install pandas; rows\(\)"):
        runs.to_pandas()


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(qtarget.QTargetError, match="No runs found"):
        qtarget.read_runs(tmp_path)


def test_reading_runs_waits_for_neither_torch_nor_pandas(two_runs: Path) -> None:
    code = "import sys, qtarget; qtarget.read_runs(sys.argv[1]).rows()\n"
    code += "print({'torch', 'pandas', 'transformers', 'hydra'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code, two_runs], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
