"""A frozen model beside the policy: the prior, a teacher, or the policy as it was."""

from __future__ import annotations

import torch
from torch import Tensor

from qtarget.math.reference import Reference
from qtarget.model.policy import Policy


class FrozenModel:
    """A model in eval mode without gradients. Not an nn.Module: whoever holds it does not train, save or switch it.

    topk: how many of the likeliest tokens a reference keeps, the others by the rule `tail`; None: all, exactly.
    """

    def __init__(self, policy: Policy, topk: int | None = None, tail: str = "bucket") -> None:
        self.policy = policy.eval().requires_grad_(False)
        self.topk, self.tail = topk, tail

    def to(self, device: torch.device) -> FrozenModel:
        self.policy.to(device)
        return self

    @torch.no_grad()
    def reference(self, input_ids: Tensor) -> Reference:
        """What this model says at the B·T positions of input_ids [B, T], as far as it is kept."""
        exact = self.exact(input_ids)
        return exact if self.topk is None else exact.truncated(self.topk, self.tail)

    @torch.no_grad()
    def exact(self, input_ids: Tensor) -> Reference:
        """What this model says at the B·T positions of input_ids [B, T]."""
        return Reference.hidden(self.policy(input_ids).flatten(0, 1), self.policy.head)


class Snapshot(FrozenModel):
    """The policy as it was a few optimizer steps ago: copied anew every `every` steps (PSFT's old policy)."""

    def __init__(self, policy: Policy, every: int) -> None:
        super().__init__(policy)
        self.every = every
        self._taken: int | None = None

    @torch.no_grad()
    def renew(self, policy: Policy, step: int) -> None:
        """Copy the policy's weights if `step`, the optimizer steps done, is due and not yet taken."""
        if step % self.every or step == self._taken:
            return
        self._taken = step
        for mine, theirs in zip(self.policy.parameters(), policy.parameters(), strict=True):
            mine.copy_(theirs)
