"""A frozen model beside the policy: the prior or a teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from qtarget.math.reference import Reference
from qtarget.model.policy import Policy


class FrozenModel:
    """A model in eval mode without gradients. Not an nn.Module: whoever holds it does not train, save or switch it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy.eval().requires_grad_(False)

    def to(self, device: torch.device) -> FrozenModel:
        self.policy.to(device)
        return self

    @torch.no_grad()
    def reference(self, input_ids: Tensor) -> Reference:
        """What this model says at the B·T positions of input_ids [B, T]."""
        return Reference.hidden(self.policy(input_ids).flatten(0, 1), self.policy.head)
