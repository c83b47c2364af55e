"""A tiny model, eight rows of unequal length, and a step under any design."""

from __future__ import annotations

from functools import cache
from typing import Any

import lightning as L
import torch
from worlds import NEEDS_TOP_K, load_design

from qtarget.data.batch import Batch
from qtarget.data.lightning_data import SFTData
from qtarget.data.module import DataConfig, Prepared, prepare
from qtarget.data.noise import WrongAnswer
from qtarget.data.sources.reasoning_gym import ReasoningGym
from qtarget.model.builtin import tiny_config, tiny_model, tiny_tokenizer
from qtarget.model.frozen import Frozen, FrozenModel
from qtarget.model.policy import Policy
from qtarget.train.lightning_module import QTargetModule
from qtarget.train.optim import AdamW


def tiny_policy() -> Policy:
    tokenizer = tiny_tokenizer()
    return Policy(tiny_model(tiny_config(len(tokenizer))), len(tokenizer))


def other_policy() -> Policy:
    """A model that differs from the policy."""
    policy = tiny_policy()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return policy


@cache
def eight_rows(packing: int | None = None) -> Prepared:
    source = ReasoningGym("chain_sum", {"min_terms": 2, "max_terms": 4}, system="")
    return prepare(
        DataConfig(source, rows=8, heldout_rows=2, noise=WrongAnswer(0.5), packing=packing), tiny_tokenizer(), 1024
    )


def batches(prepared: Prepared, *, batch_size: int, accumulate: int = 1) -> list[Batch]:
    """One epoch of micro-batches with their StepWindow."""
    data = SFTData(prepared.rows, 256, batch_size=batch_size, accumulate=accumulate, seed=0)
    return list(data.train_dataloader())


def one_step(trained: QTargetModule, micro_batches: list[Batch]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The gradient of one optimizer step by parameter, as Lightning would make it, and the step's logged means."""
    trained.zero_grad()
    for index, batch in enumerate(micro_batches):
        (trained.training_step(batch, index) / len(micro_batches)).backward()
    named = trained.policy.named_parameters()
    return {name: tensor.grad.clone() for name, tensor in named if tensor.grad is not None}, trained.recent.pop()


def module(design: str = "sft", changes: dict[str, Any] | None = None, **references: Frozen) -> QTargetModule:
    optim = AdamW(lr=1e-2, warmup=0.0, weight_decay=0.0)
    return QTargetModule(
        tiny_policy().train(), load_design(design, **(changes or {})), references, optim, total_steps=4
    )


def fit(trained: QTargetModule, *, batch_size: int, accumulate: int, steps: int = 1, **options: Any) -> L.Trainer:
    prepared = eight_rows()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(trained, datamodule=SFTData(prepared.train, 256, batch_size=batch_size, accumulate=accumulate, seed=0))
    return trainer


def weights(trained: QTargetModule) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trained.policy.state_dict().items()}


def live(design: str, topk: int = 5) -> dict[str, Frozen]:
    """Every role, played by a model that differs from the policy."""
    frozen = FrozenModel(other_policy())
    teacher = FrozenModel(other_policy(), topk=topk) if design in NEEDS_TOP_K else frozen
    return {"prior": frozen, "teacher": teacher, "old": frozen}


def close(got: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """The same names, and values that differ by no more than this share of the largest in each."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        size = float(torch.as_tensor(value).abs().max())
        torch.testing.assert_close(
            torch.as_tensor(got[name]),
            torch.as_tensor(value),
            atol=tolerance * max(size, 1e-3),
            rtol=tolerance,
            msg=name,
        )
