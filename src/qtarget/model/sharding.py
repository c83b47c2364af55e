"""Where the weights of a model lie: spread over ranks by FSDP2, in the machine's memory, or whole on the device.

Under FSDP2 each rank holds a shard of every weight, and gathers a layer when it needs it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from qtarget.errors import QTargetError
from qtarget.model.policy import Policy
from qtarget.parallel import rank_and_world


def shard(policy: Policy, mesh: DeviceMesh, *, offload: bool = False) -> None:
    """Shard each decoder layer, then what is left: embeddings, last norm and head.

    The latter stay whole between a forward and its backward, because the loss reads the head after the forward; their
    gradients are reduced at the end of the backward like all others. offload: the shards lie in the machine's memory
    and go to the device, where they are gathered, layer by layer.
    """
    on_gpu = mesh.device_type == "cuda"
    kept = CPUOffloadPolicy(pin_memory=on_gpu) if offload and on_gpu else OffloadPolicy()  # on a CPU they lie there
    for layer in decoder_layers(policy):
        fully_shard(layer, mesh=mesh, offload_policy=kept)
    fully_shard(policy, mesh=mesh, reshard_after_forward=False, offload_policy=kept)
    for method in ("generate", "next_scores"):
        register_fsdp_forward_method(policy, method)


def all_ranks(device_type: str) -> DeviceMesh:
    """The mesh of all ranks of the run. Collective."""
    return init_device_mesh(device_type, (rank_and_world()[1],))


def offload(policy: Policy, device: torch.device) -> None:
    """Keep the decoder layers of a model that isn't trained in the machine's memory.

    Each goes to the device for its forward alone (accelerate's hooks); embeddings, last norm and head stay there.
    """
    from accelerate import cpu_offload

    for layer in decoder_layers(policy):
        pinned = device.type == "cuda"
        weights = {name: tensor.pin_memory() if pinned else tensor for name, tensor in layer.state_dict().items()}
        # a layer at a time: some read the weights of their parts themselves
        cpu_offload(layer, device, state_dict=weights, preload_module_classes=[type(layer).__name__])
    for tensor in (*policy.parameters(), *policy.buffers()):
        if not tensor.is_meta:
            tensor.data = tensor.data.to(device)


def is_sharded(policy: Policy) -> bool:
    return isinstance(policy, FSDPModule)


def is_placed(policy: Policy) -> bool:
    """Whether its weights lie where they are to stay, so that nothing may move them."""
    return is_sharded(policy) or any(weight.is_meta for weight in policy.parameters())


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


def shard_alike(policy: Policy, other: Policy) -> Policy:
    """The policy, sharded as `other` is."""
    if is_sharded(other):
        shard(policy, next(tensor.device_mesh for tensor in other.parameters() if isinstance(tensor, DTensor)))
    return policy


@torch.no_grad()
def round_weights(policy: Policy, dtype: torch.dtype) -> None:
    """Give every weight the value that it has in `dtype`; its own dtype stays. Of sharded ones, each rank its shard."""
    for tensor in policy.lm.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype))


def decoder_layers(policy: Policy) -> list[Any]:
    """The modules that transformers says must stay in one piece: the decoder layers."""
    names = set(getattr(policy.lm, "_no_split_modules", None) or ())
    layers = [module for module in policy.modules() if type(module).__name__ in names]
    if not layers:
        raise QTargetError(f"{type(policy.lm).__name__} names no layers to shard: use trainer.strategy=ddp")
    return layers
