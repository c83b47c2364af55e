"""Which way the loss runs is chosen before training, said in the record, and never another objective."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qtarget.cli import run as qtarget_cli
from qtarget.config import loss_engine
from qtarget.train.memory import chunk_that_fits

SMALL = ["train", "model=tiny", "data.rows=16", "data.heldout_rows=4", "trainer.max_steps=2", "eval.new_tokens=4"]


@pytest.mark.parametrize(
    ("setting", "on_gpu", "rows", "longest", "chosen"),
    [
        ("auto", False, 16, 40, "eager"),
        ("auto", False, 16, 256, "eager"),
        ("auto", False, 16, 257, "sdpa"),
        ("auto", True, 16, 40, "sdpa"),
        ("sdpa", False, 16, 40, "sdpa"),
        ("eager", True, 64, 4096, "eager"),
    ],
)
def test_auto_takes_eager_attention_for_short_rows_on_a_cpu(
    setting: str, on_gpu: bool, rows: int, longest: int, chosen: str
) -> None:
    assert loss_engine.attention(setting, on_gpu=on_gpu, rows=rows, longest=longest) == chosen


@pytest.mark.parametrize(("free", "expected"), [(80e9, 3114), (1000e9, 8192), (0, 64)])
def test_a_chunk_on_a_gpu_leaves_room_for_the_rest(free: float, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixteenth of what gradients and moments leave, over eight tensors; never outside [64, 8192] tokens."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(80e9)))
    assert chunk_that_fits(49152, 135_000_000, torch.device("cuda")) == expected
    assert chunk_that_fits(49152, 135_000_000, torch.device("cpu")) is None


def stored(folder: Path) -> dict[str, str]:
    (path,) = folder.glob("outputs/runs/*/result.json")
    result: dict[str, str] = json.loads(path.read_text())
    return result


def test_the_record_says_which_way_the_loss_ran(workdir: Path) -> None:
    assert qtarget_cli(SMALL) == 0
    assert stored(workdir)["loss"] == "eager: too short for compiling to pay"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_run_counts_its_graphs(workdir: Path) -> None:
    assert qtarget_cli([*SMALL, "target=target_sft", "target.residual.eta=0", "loss.compile=on"]) == 0
    assert stored(workdir)["loss"] == "compiled, 1 graphs"


def test_another_setting_is_refused(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli([*SMALL, "loss.compile=maybe"]) == 2
    assert "loss.compile must be one of auto, on, off, got 'maybe'" in capsys.readouterr().err
