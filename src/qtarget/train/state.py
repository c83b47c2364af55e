"""What a run is between two optimizer steps: all that its later steps and its closing numbers depend on.

weights.safetensors   what is trained, as it is trained
old.safetensors       the same of the policy as it was, where the design looks at that
rest.pt               optimizer, schedule, random numbers, running means, and what callbacks remember
state.json            the step, and what the record says of itself
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

from qtarget.errors import QTargetError
from qtarget.model.frozen import Snapshot
from qtarget.model.policy import Policy
from qtarget.states import MANIFEST, newest, publish
from qtarget.train.module import QTargetModule

FORMAT = 2
WEIGHTS, REST = "weights.safetensors", "rest.pt"
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, UnpicklingError)


@dataclass(frozen=True)
class State:
    """A state on disk. facts: what state.json says."""

    folder: Path
    facts: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The optimizer steps that were done."""
        return int(self.facts["step"])


def last_state(holder: Path) -> State | None:
    """The state to go on from, or None. Raises QTargetError for one that this version can't read."""
    folder = newest(holder)
    if folder is None:
        return None
    with _readable(folder):
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ValueError(f"it has format {facts['format']}, this version reads {FORMAT}")
    return State(folder, facts)


# Saving


def save(
    holder: Path, trainer: L.Trainer, module: QTargetModule, drawn: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """The run as it is between two optimizer steps. drawn: `random_state` right after the first of them.

    Raises QTargetError where there is no room for it; the state before is then still there.
    """
    try:
        publish(holder, facts["step"], partial(_write, trainer, module, drawn, facts))
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is any of them
        raise QTargetError(
            f"can't save the run's state in {holder}: {error}. Make room, and the same command goes on from the state "
            "before; or set checkpoint.every=null"
        ) from error


def _write(
    trainer: L.Trainer, module: QTargetModule, drawn: Mapping[str, Any], facts: Mapping[str, Any], folder: Path
) -> None:
    _save(_trained(module.policy, module.policy), folder / WEIGHTS)
    for role, old in _snapshots(module).items():
        _save(_trained(old.policy, module.policy), folder / f"{role}.safetensors")
    torch.save({**_rest(trainer, module), "drawn": dict(drawn)}, folder / REST)
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, **facts}, indent=1), encoding="utf-8")


def _save(weights: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)


def _rest(trainer: L.Trainer, module: QTargetModule) -> dict[str, Any]:
    (schedule,) = trainer.lr_scheduler_configs
    remembered = {callback.state_key: callback.state_dict() for callback in _callbacks(trainer)}
    return {
        "optimizer": trainer.optimizers[0].state_dict(),
        "schedule": schedule.scheduler.state_dict(),
        "measured": [measured.state_dict() for measured in module.measured],
        "callbacks": {key: state for key, state in remembered.items() if state},
        "taken": {role: old.taken for role, old in _snapshots(module).items()},
        "chunk_size": module.chunk_size,  # on a GPU that of the memory that was free at the start
    }


def _trained(policy: Policy, like: Policy) -> dict[str, Tensor]:
    """The weights of a policy that `like` is trained in, by name; what the two share is not kept."""
    names = {name for name, tensor in like.named_parameters() if tensor.requires_grad}
    return {name: tensor.detach() for name, tensor in policy.named_parameters() if name in names}


def _snapshots(module: QTargetModule) -> dict[str, Snapshot]:
    return {role: frozen for role, frozen in module.references.items() if isinstance(frozen, Snapshot)}


def _callbacks(trainer: L.Trainer) -> list[L.Callback]:
    found: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return found


def random_state(device: torch.device) -> dict[str, Any]:
    """Of every generator that a step may draw from."""
    name, keys, place, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(place),
            int(has_gauss),
            float(gauss),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


# Going on


def restore(state: State, trainer: L.Trainer, module: QTargetModule) -> None:
    """Make a run that was set up anew the one that was saved. Raises QTargetError for a damaged state."""
    with _readable(state.folder):
        rest = torch.load(state.folder / REST, weights_only=True, map_location="cpu")
        _fill(_trained(module.policy, module.policy), state.folder / WEIGHTS)
        for role, old in _snapshots(module).items():
            _fill(_trained(old.policy, module.policy), state.folder / f"{role}.safetensors")
            old.taken = rest["taken"][role]
        trainer.optimizers[0].load_state_dict(rest["optimizer"])
        (schedule,) = trainer.lr_scheduler_configs
        schedule.scheduler.load_state_dict(rest["schedule"])
        for measured, held in zip(module.measured, rest["measured"], strict=True):
            measured.load_state_dict(held)
        for callback in _callbacks(trainer):
            if callback.state_key in rest["callbacks"]:
                callback.load_state_dict(rest["callbacks"][callback.state_key])
        module.chunk_size = rest["chunk_size"]
        _draw_on(rest["drawn"], module.device)


@torch.no_grad()
def _fill(weights: Mapping[str, Tensor], path: Path) -> None:
    held = load_file(path)
    if held.keys() != weights.keys():
        raise ValueError(f"{path.name} is of another model")
    for name, tensor in weights.items():
        tensor.copy_(held[name])


def _draw_on(drawn: Mapping[str, Any], device: torch.device) -> None:
    random.setstate(drawn["python"])
    name, keys, place, has_gauss, gauss = drawn["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), place, has_gauss, gauss))
    torch.set_rng_state(drawn["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(drawn["cuda"], device)


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
