"""AdamW, and a learning rate that warms up linearly and falls along a cosine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qtarget import checks


@dataclass(frozen=True)
class AdamW:
    """lr: peak learning rate; warmup: share of the steps; floor: final lr as a share of the peak.

    Weight decay acts on matrices only; norms and biases are left alone.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01
    warmup: float = 0.1
    floor: float = 0.0

    def __post_init__(self) -> None:
        beta1, beta2 = self.betas
        ranges = {"lr": self.lr, "warmup": self.warmup, "floor": self.floor, "weight_decay": self.weight_decay}
        for name, value in (*ranges.items(), ("betas", beta1), ("betas", beta2), ("eps", self.eps)):
            checks.number(f"optim.{name}", value, 0, 1)

    def configure(self, parameters: Iterable[nn.Parameter], steps: int) -> dict[str, Any]:
        """What LightningModule.configure_optimizers returns."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=self.lr, betas=(self.betas[0], self.betas[1]), eps=self.eps, fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def factor(self, step: int, steps: int) -> float:
        """The learning rate of optimizer step `step` (from 0) as a share of the peak."""
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        done = min(1.0, (step - warm) / max(1, steps - warm))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))
