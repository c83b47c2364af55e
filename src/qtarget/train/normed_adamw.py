"""AdamW whose steps have a given length: designs that shrink gradients move the weights as far as others."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from qtarget.model.sharding import is_shard, own_shard
from qtarget.parallel import all_reduce_sum


def exact(device: torch.device) -> torch.dtype:
    """fp64, or fp32 on Apple's GPUs, which have no more."""
    return torch.float32 if device.type == "mps" else torch.float64


class NormedAdamW(torch.optim.AdamW):
    """AdamW's direction at a given length. With θ all trained weights as one vector:

        θ_{t+1} = θ_t + ν_t · ‖θ_0‖₂ · u_t / ‖u_t‖₂        ν_t = update_norm · (the schedule's factor at t)

    where u_t = −(m̂_t / (√v̂_t + ε) + λ·θ_t) is AdamW's step at a learning rate of 1, its weight decay λ included. So
    ‖θ_{t+1} − θ_t‖ = ν_t·‖θ_0‖ whatever the gradients are.

    This is the trust ratio of LARS (arXiv 1708.03888) and LAMB (arXiv 1904.00962), φ(‖θ‖)·u/‖u‖, but for two things.
    It is taken over all weights at once, not layer by layer: the direction stays AdamW's. And its unit is ‖θ_0‖, not
    the present ‖θ‖: all designs move the weights equally far, step by step and in sum.

    The learning rate of the groups is the schedule's factor, 1 at its peak; ‖θ_0‖ is taken before the first step and is
    part of the state. A step holds a copy of the trained weights while it runs. As long as every gradient has been 0
    there is no direction: the weights stay, with a warning.
    Weights are fp32, which gives the length to a few parts in a million of ‖θ_t‖.
    """

    def __init__(self, groups: list[dict[str, Any]], update_norm: float, **settings: Any) -> None:
        super().__init__([{**group, "start_norm": None} for group in groups], lr=1.0, **settings)
        self.update_norm = update_norm
        self.rate = 0.0
        """The learning rate at which plain AdamW would have taken the last step."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        weights = [weight for group in self.param_groups for weight in group["params"]]
        length = self.lr_factor * self.update_norm * self._start_norm(weights)
        before = [weight.clone() for weight in weights]
        super().step()
        for weight, old in zip(weights, before, strict=True):
            weight.sub_(old)
        moments = [state["exp_avg"] for state in self.state.values() if "exp_avg" in state]
        ratio = _ratio(length, norm(weights) if norm(moments) > 0 else 0.0)
        for weight, old in zip(weights, before, strict=True):
            weight.mul_(ratio).add_(old)
        self.rate = ratio * self.lr_factor
        return loss

    @property
    def lr_factor(self) -> float:
        """The schedule's factor, in [0, 1]: 1 at the peak."""
        return float(self.param_groups[0]["lr"])

    def _start_norm(self, weights: Iterable[Tensor]) -> float:
        if self.param_groups[0]["start_norm"] is None:
            start = norm(weights)
            for group in self.param_groups:
                group["start_norm"] = start
        return float(self.param_groups[0]["start_norm"])


def _ratio(length: float, taken: float) -> float:
    if taken == 0:
        warnings.warn("no gradient has moved AdamW yet: without a direction the weights stay as they are", stacklevel=3)
        return 0.0
    return length / taken


def norm(tensors: Iterable[Tensor]) -> float:
    """‖·‖₂ of all of them as one vector, summed up exactly; of shards, that of the whole. Collective."""
    tensors = list(tensors)
    squares = [torch.linalg.vector_norm(own_shard(tensor), dtype=exact(tensor.device)).square() for tensor in tensors]
    total = torch.stack(squares).sum()
    return math.sqrt(float(all_reduce_sum(total) if any(map(is_shard, tensors)) else total))
