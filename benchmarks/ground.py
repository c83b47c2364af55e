"""What all contenders of part (c) share: model, rows, settings, and how they report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from steps import SETTING, device
from transformers import AutoModelForCausalLM, PreTrainedModel

from qtarget.config.run_config import RunConfig
from qtarget.data.batch import Batch
from qtarget.data.example import Example
from qtarget.run import build
from qtarget.run.plan import Plan, make_plan

BATCH = 8
LR, CLIP = 1e-5, 1.0
DATA = ("data=gsm_symbolic", f"data.rows={BATCH}", f"trainer.batch_size={BATCH}")
OPTIMISER = (f"optim.lr={LR}", f"trainer.clip={CLIP}")


@dataclass
class Clock:
    """What a contender's optimizer steps took, and how many tokens it says it supervised in each."""

    seconds: list[float] = field(default_factory=list)
    supervised: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Ground:
    """One batch of rows, taken anew at every step, and a model in a folder."""

    model: str
    tokenizer: Any
    rows: Sequence[Example]
    overrides: tuple[str, ...]

    def plan(self, *overrides: str) -> Plan:
        return make_plan(RunConfig.compose([*self.overrides, *overrides]))

    def load(self) -> PreTrainedModel:
        """The model as transformers has it, in fp32."""
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32).train().to(device())

    @property
    def batch(self) -> Batch:
        return next(iter(build.data(self.plan("target=sft")).train_dataloader()))


Contender = Callable[[Ground, int], Clock]
"""(ground, optimizer steps) → what they took; the first one, which warms up, is among them."""


def ground(more: Sequence[str] = ()) -> Ground:
    overrides = (*SETTING, *DATA, *OPTIMISER, *more)
    made = make_plan(RunConfig.compose(list(overrides)))
    return Ground(made.model.location, made.tokenizer, made.prepared.train, overrides)
