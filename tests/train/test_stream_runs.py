"""Runs on rows that are read while training goes on: stopped anywhere, they end where an unbroken one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from resuming import SMALL, assert_same_run, only_run, result
from test_resume import EVERY, Killed, die, in_look, in_step, saved

from qtarget.cli import run as qtarget_cli
from qtarget.data.batch import Batch
from qtarget.resume_folders import STATE, newest
from qtarget.train.lightning_module import QTargetModule

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
STREAMED = [
    *(one for one in SMALL if not one.startswith("data.rows")),
    *("data=files", "data.source.path=rows", "data.source.streaming=true", "data.source.verifier=exact"),
    *("data.truncation=drop", "data.contamination=drop"),
]
"""Eight steps of 9 rows in micro-batches of 3; of 30 rows 4 are held out, so that passes end within steps 3 and 6."""


@pytest.fixture(autouse=True)
def own_cache(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of unequal lengths in shards, and caches that are empty."""
    monkeypatch.setenv("QTARGET_CACHE", str(workdir / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", workdir / "cache")
    Path("rows").mkdir()
    for number in range(3):
        write(
            number,
            [{"prompt": f"{n} + {n}?", "completion": "x" * (n + 1)} for n in range(10 * number, 10 * number + 10)],
        )


def write(number: int, rows: list[dict[str, Any]]) -> None:
    Path(f"rows/part-{number}.jsonl").write_text(
        "".join(f"{json.dumps(row | {'answer': '7', 'other': 1})}\n" for row in rows)
    )


def in_micro_batch(done: int, index: int) -> Any:
    """After `done` steps, in a micro-batch of the next one."""
    original = QTargetModule.training_step

    def interrupted(self: QTargetModule, batch: Batch, batch_index: int) -> Any:
        assert batch.window is not None
        if self.global_step == done and batch.window.index == index:
            raise Killed
        return original(self, batch, batch_index)

    return lambda patch: patch.setattr(QTargetModule, "training_step", interrupted)


ENDS = [
    (in_step(1, die), None),  # before there is a state
    (in_micro_batch(3, 1), 2),  # within an accumulation window, behind the end of the first pass
    (in_look(6, die), 6),  # before the evaluation is written down, behind the end of the second
    (in_step(7, die), 6),
]


@pytest.mark.parametrize("buffer", [0, 7])
def test_a_run_on_a_stream_that_was_killed_ends_where_an_unbroken_one_does(
    buffer: int, workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", *STREAMED, f"data.source.shuffle_buffer={buffer}"]
    assert qtarget_cli([*arguments, "output_dir=whole"]) == 0
    expected = only_run(Path("whole"))
    for end, step in ENDS:
        with monkeypatch.context() as patched:
            end(patched)
            with pytest.raises(Killed):
                qtarget_cli([*arguments, EVERY])
        assert saved(Path("outputs")) == step
    state = newest(only_run(Path("outputs")) / STATE)
    assert state
    place = json.loads((state / "state.json").read_text())["stream"]
    assert place["epoch"] == 2
    assert len(json.dumps(place)) < 500
    assert qtarget_cli([*arguments, EVERY]) == 0
    assert "sft: trained on 72 of 72 rows that were read; keys not read: other (72 rows)\n" in capfd.readouterr().out
    run = only_run(Path("outputs"))
    assert_same_run(run, expected)
    assert result(run)["attempts"] == len(ENDS)
    assert result(run)["rows"] == result(expected)["rows"]
    assert result(run)["rows"] | {"asked": 72, "train": 72, "heldout": 4} == result(run)["rows"]
    assert not [path for path in Path("cache").rglob("*") if "prepared" in str(path) or path.suffix == ".arrow"]


def test_a_bad_row_stops_the_run_with_its_name_and_leaves_the_last_state(
    workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Row 71 is read in the eighth step; the state of the sixth was saved."""
    first = Path("rows/part-0.jsonl")
    first.write_text(first.read_text() * 6)
    write(1, [*({"prompt": f"{n}?", "completion": "y"} for n in range(10)), {"prompt": "p", "completion": [1]}])
    assert qtarget_cli(["train", *STREAMED, EVERY, "data.contamination=allow"]) != 0
    assert "rows, row 71 of train (part-1.jsonl, line 11): " in capfd.readouterr().err
    assert saved(Path("outputs")) == 6
