"""The old policy in a Trainer's checkpoint: without it a resumed run would not be the one that was stopped."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qtarget.errors import QTargetError
from qtarget.model.frozen import Snapshot
from qtarget.train.policy_loss import PolicyLoss

TAKEN = "taken"


def save(folder: Path, loss: PolicyLoss) -> None:
    """qtarget_ROLE.safetensors: the trained weights as they were, and after how many optimizer steps."""
    for role, old in _snapshots(loss).items():
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.cpu().contiguous() for name, tensor in _trained(old, loss).items()}
        save_file(weights, _file(folder, role), metadata={TAKEN: str(old.taken)})


@torch.no_grad()
def restore(folder: Path, loss: PolicyLoss) -> None:
    """Raises QTargetError for a checkpoint without them."""
    for role, old in _snapshots(loss).items():
        path, weights = _file(folder, role), _trained(old, loss)
        try:
            with safe_open(path, framework="pt") as held:
                taken = held.metadata()[TAKEN]
                for name, tensor in weights.items():
                    tensor.copy_(held.get_tensor(name))
        except (OSError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise QTargetError(
                f"can't read the old policy of the checkpoint from {path} ({error}): go on from a checkpoint that a "
                "trainer with this design saved, or start afresh"
            ) from error
        old.taken = None if taken == str(None) else int(taken)


def _file(folder: Path, role: str) -> Path:
    return folder / f"qtarget_{role}.safetensors"


def _snapshots(loss: PolicyLoss) -> dict[str, Snapshot]:
    return {role: frozen for role, frozen in loss.references.items() if isinstance(frozen, Snapshot)}


def _trained(old: Snapshot, loss: PolicyLoss) -> dict[str, Tensor]:
    """Of the old policy, by name, the weights that are trained."""
    names = {name for name, tensor in loss.policy.named_parameters() if tensor.requires_grad}
    return {name: tensor.detach() for name, tensor in old.policy.named_parameters() if name in names}
