"""Training outlives its evaluation: what was trained is on disk before it is judged, and can be judged again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import SMALL, assert_same_run, lines, only_run, result
from worlds import few_at_once

from qtarget import resume_folders
from qtarget.cli import run as qtarget_cli
from qtarget.config.run_config import RunConfig
from qtarget.evaluate.heldout import Evaluator
from qtarget.run import ranks, train
from qtarget.run.train import run_job
from qtarget.train import resume_shards
from qtarget.train.lightning_module import QTargetModule

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees


def breaks(patch: pytest.MonkeyPatch) -> None:
    """The closing evaluation, after its first half."""
    original = Evaluator.__call__

    def broken(self: Evaluator, policy: Any, limit: int | None = None, *, closing: bool = True) -> Any:
        measured = original(self, policy, limit, closing=closing)
        if closing:
            raise RuntimeError("the verifier broke")
        return measured

    patch.setattr(Evaluator, "__call__", broken)


def trains_no_more(patch: pytest.MonkeyPatch) -> None:
    def step(*_: Any) -> None:
        raise AssertionError("a step was taken again")

    patch.setattr(QTargetModule, "training_step", step)


CASES = {
    "all weights": [],
    "an adapter": ["model/adapter=lora"],
    "a rounded checkpoint": ["checkpoint.dtype=bfloat16", "target=psft"],
    "no checkpoint": ["checkpoint.save=false"],
}


@pytest.mark.parametrize("case", few_at_once(CASES, ("all weights",)))
def test_an_evaluation_that_failed_is_done_again_and_nothing_is_trained_again(
    case: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", *SMALL, *CASES[case]]
    with monkeypatch.context() as patched:
        breaks(patched)
        assert qtarget_cli(arguments) != 0
    run = only_run(Path("outputs"))
    assert result(run)["status"] == "failed"
    assert "training is done and kept" in capfd.readouterr().out
    saves = case != "no checkpoint"
    assert (run / "checkpoint/model.safetensors").is_file() == saves
    assert (run / "optimizer.pt").is_file()
    before = (run / "checkpoint/model.safetensors").read_bytes() if saves else b""
    with monkeypatch.context() as patched:
        trains_no_more(patched)
        assert qtarget_cli(arguments) == 0
    assert "goes on from step 8, the last: what is left is the evaluation" in capfd.readouterr().out
    assert not (run / resume_folders.STATE).exists()
    assert not saves or (run / "checkpoint/model.safetensors").read_bytes() == before
    assert qtarget_cli([*arguments, "output_dir=whole"]) == 0
    if saves:
        assert_same_run(run, only_run(Path("whole")))
    else:
        assert lines(run) == lines(only_run(Path("whole")))
        ours, theirs = result(run)["metrics"], result(only_run(Path("whole")))["metrics"]
        assert ours["test/nll"] == theirs["test/nll"]
        assert ours["train/nll"] == theirs["train/nll"]


def test_a_checkpoint_that_finds_no_room_is_saved_by_the_next_attempt(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import PreTrainedModel

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedModel, "save_pretrained", full)
        assert qtarget_cli(["train", *SMALL]) == 2
    assert "the same command goes on from there" in capfd.readouterr().err
    run = only_run(Path("outputs"))
    assert not (run / "checkpoint").exists()
    with monkeypatch.context() as patched:
        trains_no_more(patched)
        assert qtarget_cli(["train", *SMALL]) == 0
    assert (run / "checkpoint/model.safetensors").is_file()


def test_a_run_whose_weights_find_no_room_beside_its_checkpoint_still_ends(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume_shards, "save_file", full)
    with pytest.warns(UserWarning, match="if the evaluation fails, the same command trains again"):
        run_job(RunConfig.compose(SMALL), workdir / "run", {"target": "sft"}, [])
    assert result(workdir / "run")["status"] == "finished"


def broken_rank(cfg: RunConfig, folder: Path, info: dict[str, Any]) -> None:
    """A rank whose closing evaluation fails."""
    with pytest.MonkeyPatch.context() as patched:
        breaks(patched)
        train.run_as_rank(cfg, folder, info)


def rank_without_steps(cfg: RunConfig, folder: Path, info: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        trains_no_more(patched)
        train.run_as_rank(cfg, folder, info)


@pytest.mark.slow
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_ranks_evaluate_again_what_they_have_trained(
    strategy: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = ["trainer.devices=2", f"trainer.strategy={strategy}"]
    cfg, start = RunConfig.compose([*SMALL, *two]), ranks.start

    def as_if(run: Any) -> Any:
        return lambda count, _, *given: start(count, run, *given)

    monkeypatch.setattr(ranks, "start", as_if(broken_rank))
    with pytest.raises(ranks.RankError, match="the verifier broke"):
        run_job(cfg, workdir / "run", {"target": "sft"}, [])
    assert (workdir / "run/checkpoint/model.safetensors").is_file()
    monkeypatch.setattr(ranks, "start", as_if(rank_without_steps))
    run_job(cfg, workdir / "run", {"target": "sft"}, [])
    monkeypatch.setattr(ranks, "start", start)
    run_job(cfg, workdir / "whole", {"target": "sft"}, [])
    assert lines(workdir / "run") == lines(workdir / "whole")
    ours, theirs = (result(workdir / name)["metrics"] for name in ("run", "whole"))
    for name in ("test/nll", "train/nll", "target/trust"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-6)
    assert not (workdir / "run/state").exists()
    assert json.loads((workdir / "run/result.json").read_text())["attempts"] == 2
    assert torch.load(workdir / "run/optimizer.pt", weights_only=True)["step"] == 8
