"""Part (c)'s contenders from TRL: SFTTrainer (nll and dft) and its two distillation trainers, on our rows' tokens."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timing
import torch
from datasets import Dataset
from datasets.utils import logging as datasets_logging
from ground import BATCH, CLIP, LR, Clock, Contender, Ground
from steps import autocast, device
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, TrainerCallback
from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from qtarget.data.example import Example
from qtarget.math.loss import IGNORE

Build = Callable[[Ground, Mapping[str, Any]], Any]
"""(ground, settings shared by all) → a trainer of TRL's."""


def trl(build: Build) -> Contender:
    def train(where: Ground, steps: int) -> Clock:
        callback = StepClock()
        datasets_logging.disable_progress_bar()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = build(where, settings(folder, steps))
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(callback)
            trainer.data_collator = Counting(trainer.data_collator, callback.clock)
            trainer.train()
        return callback.clock

    return train


def settings(folder: str, steps: int) -> dict[str, Any]:
    """Ours, in TRL's words; gradient checkpointing is TRL's default and is off here as it is with us."""
    return {
        "output_dir": folder,
        "use_cpu": device().type == "cpu",
        "bf16": True,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": BATCH,
        "max_steps": steps,
        "learning_rate": LR,
        "max_grad_norm": CLIP,
        "optim": "adamw_torch_fused",
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
    }


def sft(loss_type: str) -> Build:
    def build(where: Ground, shared: Mapping[str, Any]) -> SFTTrainer:
        config = SFTConfig(**shared, loss_type=loss_type, completion_only_loss=True, max_length=None)
        return SFTTrainer(where.load(), config, train_dataset=tokenised(where), processing_class=where.tokenizer)

    return build


def gkd(where: Ground, shared: Mapping[str, Any]) -> GKDTrainer:
    """KL(π_T‖p) (beta=0) on the given rows, never on samples (lmbda=0)."""
    config = GKDConfig(**shared, beta=0.0, lmbda=0.0, seq_kd=False, temperature=1.0)
    data, tokenizer = tokenised(where), where.tokenizer
    return GKDTrainer(where.load(), where.load(), config, train_dataset=data, processing_class=tokenizer)


def distillation(where: Ground, shared: Mapping[str, Any]) -> DistillationTrainer:
    """KL(π_T‖p) (beta=0), chunked, on the given rows."""
    config = DistillationConfig(**shared, beta=0.0, temperature=1.0)
    numbered = Dataset.from_list([{"prompt": "", "row": index} for index in range(len(where.rows))])
    tokenizer = where.tokenizer
    made = GivenRows(where.load(), where.load(), config, train_dataset=numbered, processing_class=tokenizer)
    made.data_collator = Completions(where.rows, int(tokenizer.pad_token_id))
    return made


def tokenised(where: Ground) -> Dataset:
    """The rows as TRL takes tokenised ones; `prompt` keeps GKD's collator from looking for messages."""
    return Dataset.from_list(
        [
            {"input_ids": list(row.input_ids), "completion_mask": [int(kept) for kept in row.supervised], "prompt": ""}
            for row in where.rows
        ]
    )


class GivenRows(DistillationTrainer):
    """TRL's trainer generates completions; handed those of the rows, it goes on as it would with its own."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with autocast():  # its models are called past the wrapper that would have set it, and ran in fp32
            return super().compute_loss(*args, **kwargs)

    def _prepare_inputs(self, generation_batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inputs = {name: generation_batch[name].to(self.accelerator.device) for name in Completions.FIELDS}
        return inputs | {"num_items_in_batch": inputs["completion_mask"].sum().float()}


class Completions:
    """Collates as TRL's trainer does after generating: prompts padded on the left, completions on the right."""

    FIELDS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")

    def __init__(self, rows: Sequence[Example], pad_id: int) -> None:
        self.rows, self.pad_id = rows, pad_id

    def __call__(self, numbered: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        rows = [self.rows[given["row"]] for given in numbered]
        starts = [row.supervised.index(True) for row in rows]
        prompts = [torch.tensor(row.input_ids[:start]) for row, start in zip(rows, starts, strict=True)]
        completions = [torch.tensor(row.input_ids[start:]) for row, start in zip(rows, starts, strict=True)]
        padded = [*self._pad(prompts, "left"), *self._pad(completions, "right")]
        labels = padded[2].masked_fill(padded[3] == 0, IGNORE)
        return dict(zip(self.FIELDS, padded, strict=True)) | {"labels": labels}

    def _pad(self, rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
        ids = pad_sequence(rows, batch_first=True, padding_value=self.pad_id, padding_side=side)
        return ids, pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)


class Counting:
    """A collator that also notes how many labels of its batch are supervised."""

    def __init__(self, collate: Callable[..., Any], clock: Clock) -> None:
        self.collate, self.clock = collate, clock

    def __call__(self, examples: Any) -> Any:
        batch = self.collate(examples)
        self.clock.supervised.add(int((batch["labels"] != IGNORE).sum()))
        return batch


class StepClock(TrainerCallback):
    """Times the same span of a step as ours: from the batch at hand to the weights updated."""

    def __init__(self) -> None:
        self.clock, self._lap = Clock(), timing.Lap()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._lap.start()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.clock.seconds.append(self._lap.stop())
