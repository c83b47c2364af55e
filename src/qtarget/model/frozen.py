"""A frozen distribution beside the policy: the prior, a teacher, or the policy as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from qtarget.errors import QTargetError
from qtarget.math.reference import Reference
from qtarget.model.policy import Policy, evaluating
from qtarget.model.sharding import is_placed, is_shard, own_shard, reshard, whole


class Inputs(Protocol):
    """A batch, as far as a frozen distribution looks at it: tensors are [B, T], see data.batch.Batch."""

    @property
    def input_ids(self) -> Tensor: ...
    @property
    def position_ids(self) -> Tensor | None: ...
    @property
    def lengths(self) -> Sequence[Sequence[int]] | None: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def label_indices(self) -> Tensor: ...


class Frozen(Protocol):
    """A distribution that isn't trained, at the positions of a batch: run beside the policy, or read from disk.

    reference: as much of it as the design reads. exact: the whole distribution; QTargetError where less is stored.
    """

    def reference(self, batch: Inputs) -> Reference: ...
    def exact(self, batch: Inputs) -> Reference: ...
    def to(self, device: torch.device) -> Frozen: ...


class FrozenModel:
    """A model in eval mode without gradients. No nn.Module, so that a module that holds it doesn't train or save it.

    topk: how many of the likeliest tokens a reference has, the others by the rule `tail`; None: all, exactly.
    """

    def __init__(self, policy: Policy, topk: int | None = None, tail: str = "bucket") -> None:
        self.policy = policy.eval().requires_grad_(False)
        self.topk, self.tail = topk, tail

    def to(self, device: torch.device) -> FrozenModel:
        if not is_placed(self.policy):
            self.policy.to(device)
        return self

    def reference(self, batch: Inputs) -> Reference:
        """Its distribution at the B·T positions of a batch, cut to `topk`."""
        exact = self.exact(batch)
        return exact if self.topk is None else exact.truncated(self.topk, self.tail)

    @torch.no_grad()
    def exact(self, batch: Inputs) -> Reference:
        """Its distribution at the B·T positions of a batch."""
        return Reference.hidden(self.policy(batch.input_ids, batch.position_ids, batch.lengths), self.policy.head)


class AdapterOff:
    """The policy with its adapter switched off: the model that the adapter is trained on, without a second copy.

    Dropout is off too. Raises QTargetError for a policy without an adapter: its weights are the ones being trained.
    """

    def __init__(self, policy: Policy) -> None:
        if not policy.has_adapter:
            raise QTargetError(
                "adapter_off is the policy with its adapter switched off, and this policy has none: add "
                "model/adapter=lora, or take reference@references.prior=frozen, a copy of the weights"
            )
        if not policy.adapter_off_is_base:
            raise QTargetError(
                "adapter_off is the policy with its adapter switched off, and with these model.adapter.options that is "
                "not the model that training started from: its biases are trained, or the adapter starts with a part "
                "of the weights. Take reference@references.prior=frozen, a copy of the weights"
            )
        self.policy = policy

    def to(self, device: torch.device) -> AdapterOff:
        return self  # goes where the policy goes

    def reference(self, batch: Inputs) -> Reference:
        return self.exact(batch)

    @torch.no_grad()
    def exact(self, batch: Inputs) -> Reference:
        with evaluating(self.policy), self.policy.lm.disable_adapter():
            return Reference.hidden(self.policy(batch.input_ids, batch.position_ids, batch.lengths), self.policy.head)


class Snapshot(FrozenModel):
    """A copy of the policy, renewed every `every` optimizer steps (PSFT's old policy)."""

    def __init__(self, policy: Policy, every: int) -> None:
        super().__init__(policy)
        self.every = every
        self.taken: int | None = None  # the optimizer steps done when it was copied

    @torch.no_grad()
    def renew(self, policy: Policy, step: int) -> None:
        """Copy the policy's weights if `step`, the optimizer steps done, is due and not yet taken."""
        if step % self.every or step == self.taken:
            return
        self.taken = step
        for gathered in (self.policy, policy):  # by an evaluation
            reshard(gathered)
        for mine, theirs in zip(self.policy.parameters(), policy.parameters(), strict=True):
            own_shard(mine).copy_(own_shard(theirs) if is_shard(mine) else whole(theirs))


def check_not_shared(role: str, frozen: Frozen, policy: Policy) -> None:
    """Raise QTargetError where a reference holds weights that training the policy changes."""
    if not isinstance(frozen, FrozenModel):
        return
    trained = {tensor.data_ptr() for tensor in policy.parameters()}
    held = (own_shard(tensor) for tensor in frozen.policy.parameters() if not tensor.is_meta)
    if any(tensor.data_ptr() in trained for tensor in held):
        raise QTargetError(
            f"the {role} shares its weights with the policy, which is being trained: give a copy, or, for a policy "
            "with an adapter, reference@references.prior=adapter_off"
        )
