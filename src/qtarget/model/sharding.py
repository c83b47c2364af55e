"""A policy spread over ranks by FSDP2: each holds a shard of every weight, and gathers a layer when it needs it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from qtarget.errors import QTargetError
from qtarget.model.policy import Policy


def shard(policy: Policy, mesh: DeviceMesh) -> None:
    """Shard each decoder layer, then what is left: embeddings, last norm and head.

    The latter stay whole between a forward and its backward, because the loss reads the head after the forward; their
    gradients are reduced at the end of the backward like all others.
    """
    for layer in _layers(policy):
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(policy, "generate")


def is_sharded(policy: Policy) -> bool:
    return isinstance(policy, FSDPModule)


def reshard(policy: Policy) -> None:
    """After an evaluation the last gathered weights are still whole, and are not those that the optimizer knows."""
    if isinstance(policy, FSDPModule):
        policy.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A weight in one piece. Where it is sharded, this is a collective call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_shard(tensor: Tensor) -> bool:
    """Whether other ranks hold other parts of it."""
    return isinstance(tensor, DTensor)


def own_shard(tensor: Tensor) -> Tensor:
    """The shard of a weight that this rank holds; a whole weight as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_weights(policy: Policy) -> dict[str, Tensor] | None:
    """The language model's state dict in one piece, on the CPU of rank 0 ({} elsewhere); None: it is whole already.

    Where it is sharded, this is a collective call.
    """
    if not is_sharded(policy):
        return None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(policy.lm, options=options)
    return weights


def _layers(policy: Policy) -> list[Any]:
    """The modules that transformers says must stay in one piece: the decoder layers."""
    names = set(getattr(policy.lm, "_no_split_modules", None) or ())
    layers = [module for module in policy.modules() if type(module).__name__ in names]
    if not layers:
        raise QTargetError(f"{type(policy.lm).__name__} names no layers to shard: use trainer.strategy=ddp")
    return layers
