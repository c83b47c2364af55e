"""A tiny model in float64 and eight rows of unequal length, in a Trainer's hands and in those of `qtarget train`."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import Tensor
from training import batches, eight_rows, other_policy

from qtarget.model.builtin import tiny_config, tiny_model, tiny_tokenizer
from qtarget.model.frozen import Frozen, FrozenModel, Snapshot
from qtarget.model.policy import Policy
from qtarget.train.lightning_module import QTargetModule
from qtarget.train.optim import AdamW
from qtarget.trainers.mixin import QTargetTrainerMixin

STEPS, RATE, EVERY = 3, 1e-3, 2
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of TRL's experimental parts
    import trl

    from qtarget.trl import QTargetSFTTrainer


class QTargetTrainer(QTargetTrainerMixin, transformers.Trainer):  # type: ignore[misc]
    """What users of the mixin write."""


def tiny() -> Any:
    return tiny_model(tiny_config(len(tiny_tokenizer()))).double()


def teacher() -> Any:
    """A model that differs from the policy."""
    return other_policy().lm.double()


@functools.cache
def rows() -> list[dict[str, list[int]]]:
    """The rows of `qtarget train` as a data set that is tokenized already."""
    made = []
    for example in eight_rows().train:
        pairs = zip(example.input_ids, example.supervised, strict=True)
        made.append({"input_ids": list(example.input_ids), "labels": [i if kept else -100 for i, kept in pairs]})
    return made


def arguments(kind: Any, folder: Path, **changes: Any) -> Any:
    settings = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "max_grad_norm": 0.0,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }
    return kind(**{**settings, **changes})


def plain_trainer(folder: Path, design: Any, references: Any = None, **changes: Any) -> Any:
    """transformers' Trainer with the mixin."""
    collate = transformers.DataCollatorForSeq2Seq(tiny_tokenizer(), label_pad_token_id=-100)
    return QTargetTrainer(
        tiny(),
        arguments(transformers.TrainingArguments, folder, **changes),
        train_dataset=Dataset.from_list(rows()),
        eval_dataset=Dataset.from_list(rows()),
        data_collator=collate,
        processing_class=tiny_tokenizer(),
        design=design,
        references=references,
    )


def sft_trainer(
    folder: Path, design: Any, references: Any = None, given: dict[str, Any] | None = None, **changes: Any
) -> Any:
    """TRL's SFTTrainer with a design. given: beside its arguments."""
    settings = {"max_length": 256, "activation_checkpointing": False, **changes}
    usual = {
        "model": tiny(),
        "args": arguments(trl.SFTConfig, folder, **settings),
        "train_dataset": Dataset.from_list(rows()),
        "processing_class": tiny_tokenizer(),
        "design": design,
        "references": references,
    }
    return QTargetSFTTrainer(**{**usual, **(given or {})})


def weights(lm: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in lm.named_parameters()}


def trained(trainer: Any) -> dict[str, Tensor]:
    trainer.train()
    return weights(trainer.model)


class ByHand(QTargetModule):
    """The module of `qtarget train` without Lightning's trainer, which knows the step."""

    step = 0

    @property
    def global_step(self) -> int:
        return self.step


def of_qtarget_train(design: Any, references: Any) -> dict[str, Tensor]:
    """What the module of `qtarget train` makes of the same rows and steps, each step as one micro-batch."""
    policy = Policy(tiny().train(), len(tiny_tokenizer()))
    frozen = {role: _frozen(what) for role, what in (references or {}).items()}
    optim = AdamW(lr=RATE, warmup=0.0, weight_decay=0.0, floor=1.0)
    made = ByHand(policy, design, frozen, optim, total_steps=STEPS)
    optimizer = made.configure_optimizers()["optimizer"]
    for made.step in range(STEPS):
        (batch,) = batches(eight_rows(), batch_size=8)
        optimizer.zero_grad()
        made.training_step(batch, 0).backward()
        optimizer.step()
    return weights(policy.lm)


def _frozen(what: Any) -> Frozen:
    vocabulary = len(tiny_tokenizer())
    if what == f"snapshot:{EVERY}":
        return Snapshot(Policy(tiny(), vocabulary), EVERY)
    return FrozenModel(Policy(tiny() if what == "frozen" else what, vocabulary))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-9) -> None:
    start = weights(tiny())
    assert found.keys() == expected.keys()
    assert any(not torch.allclose(expected[name].double(), start[name], atol=1e-4) for name in expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=atol, rtol=1e-7)
