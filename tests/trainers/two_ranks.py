"""One of two processes that train together, as torchrun would start them: python two_ranks.py FOLDER."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import tiny_trainers as tiny
import torch
from datasets import Dataset
from test_exact import CASES
from test_trainer_use import lora

NAMES = (
    "a target of Target-SFT",
    "the old policy",
    "whole sequences",
    "the whole step, kept tokens",
    "the sum of weights",
    "a mean of sequences",
)


def trained(name: str, folder: Path, **cut: Any) -> dict[str, Any]:
    case = CASES[name]
    given = {"eval_dataset": Dataset.from_list(tiny.rows())}
    return _run(tiny.sft_trainer(folder, case.load(), case.given(), given, **cut))


def adapted(folder: Path, **cut: Any) -> dict[str, Any]:
    """LoRA, and a prior that is the model with its adapter off."""
    given = {"eval_dataset": Dataset.from_list(tiny.rows()), "peft_config": lora()}
    return _run(tiny.sft_trainer(folder, "asft", {"prior": "adapter_off"}, given, **cut))


def _run(trainer: Any) -> dict[str, Any]:
    made = tiny.trained(trainer)
    evaluated = trainer.evaluate()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    kept = ("loss", "nll", "entropy", "mean_token_accuracy", "target/trust", "num_tokens")
    logged = [{name: line[name] for name in kept} for line in lines]
    measured = {name: evaluated[name] for name in ("eval_loss", "eval_nll", "eval_target/trust")}
    return {"weights": made, "logged": logged, "evaluated": measured}


def main(folder: Path) -> None:
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 4}
    cut |= {"ddp_backend": "gloo"}
    found = {name: trained(name, folder, **cut) for name in NAMES} | {"adapter": adapted(folder, **cut)}
    torch.save(found, folder / f"{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
