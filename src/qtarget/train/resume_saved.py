"""The state to go on from: which one it is, and how each format is read.

Format 3 is that of resume_state.py. Format 2, of earlier builds, is of one device: weights.safetensors and rest.pt, and
old.safetensors where the design reads a snapshot. It is read, and replaced by the next state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from qtarget.errors import QTargetError
from qtarget.parallel import rank_and_world
from qtarget.resume_folders import MANIFEST, PARTS, incomplete, missing_parts, newest, step_of
from qtarget.train import resume_state
from qtarget.train.lightning_module import QTargetModule
from qtarget.train.resume_state import RNG, readable
from qtarget.train.resume_writer import FORMAT

ONE_DEVICE = 2
"""The format before."""


@dataclass(frozen=True)
class ResumeState:
    """A state on disk. facts: what state.json says."""

    folder: Path
    facts: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The optimizer steps that were done."""
        return int(self.facts["step"])

    @property
    def is_final(self) -> bool:
        """Whether the run had taken its last step: then it holds no optimizer, and is evaluated from here."""
        return bool(self.facts.get("over"))

    @property
    def saved_by(self) -> str:
        """On how many devices, in words; empty where that is as many as now."""
        world = self.facts.get("world", rank_and_world()[1])
        return "" if world == rank_and_world()[1] else f", saved on {world} device{'s' * (world > 1)}"


def last_state(holder: Path) -> ResumeState | None:
    """The state to go on from, or None.

    Raises QTargetError for one that this version can't read, and where a file is gone of the only one there is.
    """
    folder = newest(holder)
    gone = max(incomplete(holder), key=step_of, default=None)
    if folder is None:
        if gone is None:
            return None
        raise QTargetError(
            f"the state {gone} lacks {', '.join(missing_parts(gone))}: put it back, or set resume=never to start afresh"
        )
    with readable(folder):
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if facts["format"] not in (ONE_DEVICE, FORMAT):
            raise ValueError(f"it has format {facts['format']}, this version reads {ONE_DEVICE} and {FORMAT}")
        for name, size in facts.get(PARTS, {}).items():
            if (is_now := (folder / name).stat().st_size) != size:
                raise ValueError(f"{name} has {is_now} bytes instead of {size}")
    return ResumeState(folder, facts)


def restore(state: ResumeState, trainer: L.Trainer, module: QTargetModule) -> None:
    """Put a saved state into a run that was set up anew. Raises QTargetError for a damaged state."""
    if state.facts["format"] == ONE_DEVICE:
        _restore_of_one_device(state, trainer, module)
    else:
        resume_state.restore(state.folder, int(state.facts["world"]), trainer, module, final=state.is_final)


def _restore_of_one_device(state: ResumeState, trainer: L.Trainer, module: QTargetModule) -> None:
    with readable(state.folder):
        saved = torch.load(state.folder / "rest.pt", weights_only=True, map_location="cpu")
        ranks = saved["ranks"] if state.is_final else [saved]
        own = [ranks[rank] for rank in resume_state.saved_ranks(len(ranks))]
        _fill(resume_state.weights(module), state.folder, "weights")
        if not state.is_final:
            for role, weights in resume_state.snapshot_weights(module).items():
                _fill(weights, state.folder, role)
            _fill_optimizer(trainer.optimizers[0], saved["optimizer"])
            resume_state.restore_trainer(saved, trainer, module)
        resume_state.restore_rank(own, trainer, module, len(ranks))
        resume_state.set_rng_state(own[0][RNG], module.device)


@torch.no_grad()
def _fill(weights: Mapping[str, Tensor], folder: Path, name: str) -> None:
    saved = load_file(folder / f"{name}.safetensors")
    if saved.keys() != weights.keys():
        raise ValueError(f"{name}.safetensors is of another model")
    for key, tensor in weights.items():
        tensor.copy_(_like(saved[key], tensor))


def _fill_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Its settings, and its tensors, which the format numbers in the order of the weights."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, values in saved["state"].items():
        weight = weights[number]
        optimizer.state[weight] = {
            key: _like(value, weight) if value.ndim else value.to(weight.device) for key, value in values.items()
        }
    for group, settings in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        group.update({key: value for key, value in settings.items() if key != "params"})


def _like(piece: Tensor, weight: Tensor) -> Tensor:
    """A whole weight, which every rank has read, where and as `weight` is, sharded or not."""
    piece = piece.to(weight.device)
    if not isinstance(weight, DTensor):
        return piece
    return distribute_tensor(piece, weight.device_mesh, weight.placements, src_data_rank=None)
