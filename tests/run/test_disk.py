"""What a run leaves on disk: the model that was tested, as it was trained unless another dtype is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import only_run, result
from safetensors.torch import load_file

from qtarget.cli import run as qtarget_cli

SMALL = ["model=tiny", "trainer.precision=32-true", "trainer.accelerator=cpu", "data.rows=16", "data.heldout_rows=8"]
SMALL += ["trainer.max_steps=2", "trainer.batch_size=8", "trainer.eval_every=0", "eval.new_tokens=2", "optim.lr=1e-2"]


def trained(folder: str, *options: str) -> Path:
    assert qtarget_cli(["train", *SMALL, *options, f"output_dir={folder}"]) == 0
    return only_run(Path(folder))


def dtypes(run: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in load_file(run / "checkpoint/model.safetensors").values()}


def evaluated(run: Path) -> dict[str, Any]:
    """What `qtarget evaluate` measures of a run's checkpoint."""
    assert qtarget_cli(["evaluate", f"checkpoint={run}", "output_dir=again"]) == 0
    (path,) = Path("again").glob("evaluations/*/result.json")
    metrics: dict[str, Any] = json.loads(path.read_text())["metrics"]
    return metrics


def test_by_itself_a_run_leaves_the_weights_as_trained_and_what_transformers_needs(workdir: Path) -> None:
    run = trained("outputs")
    files = {"config.json", "generation_config.json", "model.safetensors"}
    files |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {path.name for path in (run / "checkpoint").iterdir()} == files
    assert not (run / "optimizer.pt").exists()
    assert dtypes(run) == {torch.float32}
    kept = trained("other", "checkpoint.optimizer=true")
    assert kept.name == run.name  # the same run
    assert {path.name for path in (kept / "checkpoint").iterdir()} == files
    assert torch.load(kept / "optimizer.pt", weights_only=True)["step"] == 2


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        (["model.dtype=bfloat16", "optim.allow_bf16_rounding=true"], torch.bfloat16),
        (["model.dtype=bfloat16", "model/adapter=lora"], torch.float32),  # what fp32 matrices add, bf16 would lose
    ],
)
def test_weights_are_saved_as_they_were_trained(options: list[str], dtype: torch.dtype, workdir: Path) -> None:
    assert dtypes(trained("outputs", "trainer.precision=bf16-mixed", *options)) == {dtype}


@pytest.mark.parametrize("adapter", [[], ["model/adapter=lora"]], ids=["all weights", "an adapter"])
def test_a_rounded_checkpoint_is_the_model_that_the_closing_metrics_are_of(adapter: list[str], workdir: Path) -> None:
    exact, rounded = trained("exact", *adapter), trained("rounded", *adapter, "checkpoint.dtype=bfloat16")
    assert dtypes(rounded) == {torch.bfloat16}
    metrics, unrounded, again = result(rounded)["metrics"], result(exact)["metrics"], evaluated(rounded)
    for name in ("test/nll", "test/kl_prior"):
        assert metrics[name] == pytest.approx(again[name], rel=1e-6)
        assert metrics[name] != pytest.approx(unrounded[name], rel=1e-5)
    for line, unrounded_line in zip(
        *((run / "metrics.jsonl").read_text().splitlines() for run in (rounded, exact)), strict=True
    ):
        ours, theirs = json.loads(line), json.loads(unrounded_line)
        assert ours.get("train/nll") == theirs.get("train/nll")  # training is not rounded


@pytest.mark.slow
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.parametrize("adapter", [[], ["model/adapter=lora"]], ids=["all weights", "an adapter"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_several_devices_test_the_rounded_model_too(strategy: str, adapter: list[str], workdir: Path) -> None:
    two = ["trainer.devices=2", f"trainer.strategy={strategy}", "trainer.batch_size=4"]
    rounded = trained("rounded", *adapter, *two, "checkpoint.dtype=bfloat16")
    assert dtypes(rounded) == {torch.bfloat16}
    metrics, again = result(rounded)["metrics"], evaluated(rounded)
    for name in ("test/nll", "test/kl_prior"):
        assert metrics[name] == pytest.approx(again[name], rel=1e-5)
