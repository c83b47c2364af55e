"""AdamW, and a learning rate or a length of the steps that warms up linearly and falls along a cosine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from qtarget.errors import QTargetError
from qtarget.settings import FLAG, Checked, Listed, Nullable, Number, setting

if TYPE_CHECKING:
    import torch
    from torch import nn

NEARLY_1 = 1 - 1e-9
SMALLEST_EPS = 1e-30
"""0 would divide 0 by 0 where a gradient is 0."""
SHORTEST = 1e-6
"""Of update_norm: below it a step of fp32 weights is mostly rounding."""


@dataclass(frozen=True)
class AdamW(Checked):
    """lr: peak learning rate; warmup: fraction of the steps; floor: final lr as a fraction of the peak.

    update_norm, in place of lr, which is then None: the peak of ‖θ_{t+1} − θ_t‖ / ‖θ_0‖, the length of a step over all
    trained weights relative to those that training starts from (see `NormedAdamW`). Weight decay acts on matrices only;
    norms and biases are left alone. allow_bf16_rounding: train weights that are bfloat16 themselves, in which a step
    that is smaller than 2⁻⁹ of a weight rounds to nothing.
    """

    NODE_KEY: ClassVar[str] = "optim"
    lr: float | None = setting(
        1e-4, Nullable(Number(0, 1)), "learning rate at its peak; null where update_norm is given"
    )
    betas: tuple[float, float] = setting(
        (0.9, 0.95), Listed(Number(0, NEARLY_1), 2), "decay of the means of gradients and of their squares"
    )
    eps: float = setting(1e-8, Number(SMALLEST_EPS, 1), "added to the root of the mean square")
    weight_decay: float = setting(0.01, Number(0, 1), "of matrices; norms and biases are left alone")
    warmup: float = setting(0.1, Number(0, 1), "share of the steps in which the rate rises")
    floor: float = setting(0.0, Number(0, 1), "last learning rate, as a share of the peak")
    update_norm: float | None = setting(
        None, Nullable(Number(SHORTEST, 1)), "‖θ_{t+1} − θ_t‖ / ‖θ_0‖ at the peak of the schedule, in place of lr"
    )
    allow_bf16_rounding: bool = setting(
        False, FLAG, "train weights that are bfloat16 themselves, in which small steps round to nothing"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.lr is None) == (self.update_norm is None):
            raise QTargetError(
                "exactly one of optim.lr and optim.update_norm says how large a step is, got "
                f"{self.lr} and {self.update_norm}: set the other to null, or take optim=adamw or optim=equal_norm"
            )

    def configure(self, parameters: Iterable[nn.Parameter], steps: int) -> dict[str, Any]:
        """What LightningModule.configure_optimizers returns."""
        import torch  # reading a configuration needs none

        from qtarget.train.normed_adamw import NormedAdamW

        trained = [parameter for parameter in parameters if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        settings: dict[str, Any] = {"betas": (self.betas[0], self.betas[1]), "eps": self.eps, "fused": True}
        optimizer = (
            torch.optim.AdamW(groups, lr=self.lr or 0.0, **settings)
            if self.update_norm is None
            else NormedAdamW(groups, self.update_norm, **settings)
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.lr_factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def step_size_metrics(self, step: int, steps: int, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """How large optimizer step `step` (from 0) was, by metric: `optimizer` took it last and no other since.

        At a given length train/lr is the learning rate at which plain AdamW would have taken this step.
        """
        factor = self.lr_factor(step, steps)
        if self.update_norm is None:
            assert self.lr is not None
            return {"train/lr": self.lr * factor}
        rate: float = optimizer.rate  # type: ignore[attr-defined]  # of NormedAdamW
        return {"train/lr": rate, "train/update_norm": self.update_norm * factor if rate else 0.0}

    def lr_factor(self, step: int, steps: int) -> float:
        """The learning rate of optimizer step `step` (from 0) as a fraction of the peak."""
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        done = min(1.0, (step - warm) / max(1, steps - warm))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))
