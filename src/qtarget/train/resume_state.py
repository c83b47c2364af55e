"""A run between two optimizer steps, on disk: all that its later steps and its closing numbers depend on.

weights.safetensors   what is trained, as it is trained
old.safetensors       the same of the snapshot that the design reads as "old", where it reads one
rest.pt               optimizer, schedule, random numbers, running means, and what callbacks remember
state.json            the step, and what the record says of itself

The state after the last step is shorter, and may be of several ranks: the weights in one piece, and in rest.pt what
each rank has measured. A run is evaluated from it; no step is taken.

Lightning's own checkpoints resume as exactly. These stay until several devices can share the states of a run.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from qtarget.errors import QTargetError
from qtarget.model.frozen import Snapshot
from qtarget.model.policy import Policy
from qtarget.model.sharding import reshard, whole
from qtarget.parallel import all_gather_objects, is_rank_zero, rank_and_world
from qtarget.resume_folders import MANIFEST, newest, publish
from qtarget.train.lightning_module import QTargetModule

FORMAT = 2
WEIGHTS, REST = "weights.safetensors", "rest.pt"
RNG = "drawn"
"""The key of random numbers in rest.pt."""
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, UnpicklingError)


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


def last_state(holder: Path) -> ResumeState | None:
    """The state to go on from, or None. Raises QTargetError for one that this version can't read."""
    folder = newest(holder)
    if folder is None:
        return None
    with _readable(folder):
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ValueError(f"it has format {facts['format']}, this version reads {FORMAT}")
    return ResumeState(folder, facts)


# Saving


def save_state(
    holder: Path, trainer: L.Trainer, module: QTargetModule, rng: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """The run as it is between two optimizer steps. rng: `rng_state` right after the first of them.

    Raises QTargetError where there is no room for it; the state before is then still there.
    """
    try:
        publish(holder, facts["step"], partial(_write, trainer, module, rng, facts))
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is any of them
        raise QTargetError(
            f"can't save the run's state in {holder}: {error}. Make room, and the same command goes on from the state "
            "before; or set checkpoint.every=null"
        ) from error


def _write(
    trainer: L.Trainer, module: QTargetModule, rng: Mapping[str, Any], facts: Mapping[str, Any], folder: Path
) -> None:
    _save(_trained(module.policy, module.policy), folder / WEIGHTS)
    for role, old in _snapshots(module).items():
        _save(_trained(old.policy, module.policy), folder / f"{role}.safetensors")
    torch.save({**_trainer_state(trainer, module), RNG: dict(rng)}, folder / REST)
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, **facts}, indent=1), encoding="utf-8")


def save_final_state(holder: Path, trainer: L.Trainer, module: QTargetModule, facts: Mapping[str, Any]) -> None:
    """The run after its last step, for evaluating it. Collective; rank 0 writes.

    Raises QTargetError where there is no room for it.
    """
    reshard(module.policy)
    weights = {}
    for name, part in _trained(module.policy, module.policy).items():
        piece = whole(part)  # on every rank: it is a collective call
        if is_rank_zero():
            weights[name] = piece.cpu()
    ranks = all_gather_objects({**_measured(trainer, module), RNG: rng_state(module.device)})
    if not is_rank_zero():
        return

    def write(folder: Path) -> None:
        _save(weights, folder / WEIGHTS)
        torch.save({"ranks": ranks}, folder / REST)
        manifest = {"format": FORMAT, **facts, "over": True}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    try:
        publish(holder, facts["step"], write)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise QTargetError(f"can't save what was trained in {holder}: {error}") from error


def _save(weights: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)


def _trainer_state(trainer: L.Trainer, module: QTargetModule) -> dict[str, Any]:
    (schedule,) = trainer.lr_scheduler_configs
    return {
        **_measured(trainer, module),
        "optimizer": trainer.optimizers[0].state_dict(),
        "schedule": schedule.scheduler.state_dict(),
        "taken": {role: old.taken for role, old in _snapshots(module).items()},
        "chunk_size": module.chunk_size,  # on a GPU that of the memory that was free at the start
    }


def _measured(trainer: L.Trainer, module: QTargetModule) -> dict[str, Any]:
    """By this rank."""
    remembered = {callback.state_key: callback.state_dict() for callback in _callbacks(trainer)}
    return {
        "measured": [measured.state_dict() for measured in module.measured],
        "callbacks": {key: state for key, state in remembered.items() if state},
    }


def _trained(policy: Policy, like: Policy) -> dict[str, Tensor]:
    """A policy's weights by name, of those that are trained in `like`; frozen ones the two share."""
    names = {name for name, tensor in like.named_parameters() if tensor.requires_grad}
    return {name: tensor.detach() for name, tensor in policy.named_parameters() if name in names}


def _snapshots(module: QTargetModule) -> dict[str, Snapshot]:
    return {role: frozen for role, frozen in module.references.items() if isinstance(frozen, Snapshot)}


def _callbacks(trainer: L.Trainer) -> list[L.Callback]:
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def rng_state(device: torch.device) -> dict[str, Any]:
    """Of every generator that a step may draw from."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


# Going on


def restore(state: ResumeState, trainer: L.Trainer, module: QTargetModule) -> None:
    """Put a saved state into a run that was set up anew. Raises QTargetError for a damaged state."""
    with _readable(state.folder):
        saved = torch.load(state.folder / REST, weights_only=True, map_location="cpu")
        _fill(_trained(module.policy, module.policy), state.folder / WEIGHTS)
        if state.is_final:
            own = saved["ranks"][rank_and_world()[0]]
            _restore_measured(own, trainer, module)
            set_rng_state(own[RNG], module.device)
            return
        for role, old in _snapshots(module).items():
            _fill(_trained(old.policy, module.policy), state.folder / f"{role}.safetensors")
            old.taken = saved["taken"][role]
        trainer.optimizers[0].load_state_dict(saved["optimizer"])
        (schedule,) = trainer.lr_scheduler_configs
        schedule.scheduler.load_state_dict(saved["schedule"])
        _restore_measured(saved, trainer, module)
        module.chunk_size = saved["chunk_size"]
        set_rng_state(saved[RNG], module.device)


def _restore_measured(saved: Mapping[str, Any], trainer: L.Trainer, module: QTargetModule) -> None:
    """What was measured, and what callbacks remember."""
    for measured, state in zip(module.measured, saved["measured"], strict=True):
        measured.load_state_dict(state)
    for callback in _callbacks(trainer):
        if callback.state_key in saved["callbacks"]:
            callback.load_state_dict(saved["callbacks"][callback.state_key])


@torch.no_grad()
def _fill(weights: Mapping[str, Tensor], path: Path) -> None:
    saved = load_file(path)
    if saved.keys() != weights.keys():
        raise ValueError(f"{path.name} is of another model")
    for name, tensor in weights.items():
        tensor.copy_(_like(saved[name], tensor))


def _like(piece: Tensor, weight: Tensor) -> Tensor:
    """A whole weight, which every rank has read, sharded as `weight` is."""
    if not isinstance(weight, DTensor):
        return piece
    return distribute_tensor(piece.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)


def set_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Back to what `rng_state` returned."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        raise QTargetError(
            f"the state {folder} can't be read ({type(error).__name__}: {error}): set resume=never to start afresh"
        ) from error
