"""A run between two optimizer steps, on disk: all that its later steps and its closing numbers depend on.

    rank-0-of-2.safetensors   what this rank holds of the weights that are trained, of the optimizer's moments, and of
                              the snapshot that the design reads as "old", where it reads one (see resume_shards.py)
    rank-0-of-2.pt            its random numbers, running means, and what callbacks remember; and, the same on all
                              ranks, the schedule and the optimizer's settings. Read with weights_only=True
    state.json                the step, the files with their sizes, and what the record says of itself

Any number of ranks may go on from it. Rank r of W takes the generators of saved rank r mod (saved ranks), and what
saved ranks r, r + W, … have measured.

The state after the last step is shorter: it has no optimizer. A run is evaluated from it; no step is taken.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from qtarget.errors import QTargetError
from qtarget.files import settle
from qtarget.math.products import ONEDNN
from qtarget.model.frozen import Snapshot
from qtarget.model.policy import Policy
from qtarget.model.sharding import is_shard, reshard
from qtarget.parallel import rank_and_world
from qtarget.train.callbacks import Meter
from qtarget.train.lightning_module import QTargetModule
from qtarget.train.resume_shards import SUFFIX, TensorPiece, own_pieces, read_into, saved_tensors, write_pieces

RNG = "drawn"
"""The key of random numbers in the file of a rank."""
MOMENTS = "optimizer"
"""How names of the optimizer's tensors begin: optimizer/exp_avg/NAME OF THE WEIGHT."""
POLICY = "policy"
UNREADABLE = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, AssertionError, SafetensorError),
    UnpicklingError,
)


@dataclass(frozen=True)
class StatePart:
    """A rank's part of a state: a copy on the CPU, which training doesn't change."""

    name: str
    pieces: Mapping[str, TensorPiece]
    rest: Mapping[str, Any]

    def write(self, folder: Path) -> dict[str, int]:
        """To disk; returns the bytes of its files."""
        write_pieces(self.pieces, folder / f"{self.name}{SUFFIX}")
        torch.save(dict(self.rest), folder / f"{self.name}.pt")
        settle(folder / f"{self.name}.pt")
        return {path.name: path.stat().st_size for path in folder.glob(f"{self.name}.*")}


def part_name(rank: int, world: int) -> str:
    return f"rank-{rank}-of-{world}"


# Saving


def capture(trainer: L.Trainer, module: QTargetModule, rng: Mapping[str, Any], *, final: bool = False) -> StatePart:
    """This rank's part of the run as it is between two optimizer steps. rng: `rng_state` right after the first of them.

    final: as it is after the last.
    """
    for policy in (module.policy, *(old.policy for old in _snapshots(module).values())):
        reshard(policy)  # after an evaluation
    rank, world = rank_and_world()
    rest = {**_measured(trainer, module), RNG: dict(rng)}
    tensors = _all_weights(module, final=final)
    if not final:
        tensors |= _moments(trainer, module)
        rest |= _trainer_state(trainer, module)
    return StatePart(part_name(rank, world), own_pieces(tensors, rank, world), _as_copy(rest))


def _trainer_state(trainer: L.Trainer, module: QTargetModule) -> dict[str, Any]:
    """What is the same on all ranks, tensors of one number among it."""
    (schedule,) = trainer.lr_scheduler_configs
    optimizer = trainer.optimizers[0]
    return {
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
        "numbers": {name: dict(values) for name, values in _states(trainer, module, of_one_number=True)},
        "schedule": schedule.scheduler.state_dict(),
        "taken": {role: old.taken for role, old in _snapshots(module).items()},
        "chunk_size": module.chunk_size,  # on a GPU that of the memory that was free at the start
        "library": module.library,  # what a trial at the start said
    }


def _moments(trainer: L.Trainer, module: QTargetModule) -> dict[str, Tensor]:
    return {
        f"{MOMENTS}/{key}/{name}": tensor
        for name, values in _states(trainer, module, of_one_number=False)
        for key, tensor in values.items()
    }


def _states(trainer: L.Trainer, module: QTargetModule, *, of_one_number: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the optimizer keeps by the weight's name: numbers and tensors of one number, or the other tensors."""
    state = trainer.optimizers[0].state
    for name, weight in module.policy.named_parameters():
        if values := state.get(weight):
            yield name, {key: value for key, value in values.items() if _is_one_number(value) == of_one_number}


def _is_one_number(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.ndim == 0


def _measured(trainer: L.Trainer, module: QTargetModule) -> dict[str, Any]:
    """By this rank."""
    remembered = {callback.state_key: callback.state_dict() for callback in _callbacks(trainer)}
    return {
        "measured": [measured.state_dict() for measured in module.measured],
        "callbacks": {key: state for key, state in remembered.items() if state},
    }


def weights(module: QTargetModule) -> dict[str, Tensor]:
    """Of the policy, those that are trained, by name."""
    return _trained(module.policy, module.policy)


def snapshot_weights(module: QTargetModule) -> dict[str, dict[str, Tensor]]:
    """By role, the same ones of each snapshot: frozen ones it shares with the policy."""
    return {role: _trained(old.policy, module.policy) for role, old in _snapshots(module).items()}


def _trained(policy: Policy, like: Policy) -> dict[str, Tensor]:
    names = {name for name, tensor in like.named_parameters() if tensor.requires_grad}
    return {name: tensor.detach() for name, tensor in policy.named_parameters() if name in names}


def _all_weights(module: QTargetModule, *, final: bool) -> dict[str, Tensor]:
    """By the name that they are saved under."""
    by_role = {POLICY: weights(module), **({} if final else snapshot_weights(module))}
    return {f"{role}/{name}": tensor for role, named in by_role.items() for name, tensor in named.items()}


def _snapshots(module: QTargetModule) -> dict[str, Snapshot]:
    return {role: frozen for role, frozen in module.references.items() if isinstance(frozen, Snapshot)}


def _callbacks(trainer: L.Trainer) -> list[L.Callback]:
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def _as_copy(value: Any) -> Any:
    """Plain data with every tensor copied to the CPU: training changes some of them in place."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _as_copy(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_as_copy(each) for each in value)
    return value


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


def restore(folder: Path, world: int, trainer: L.Trainer, module: QTargetModule, *, final: bool) -> None:
    """Put the state that `world` ranks saved into a run that was set up anew, on this rank.

    Raises QTargetError for a damaged state, and for one of another model.
    """
    with readable(folder):
        files = [folder / f"{part_name(rank, world)}.pt" for rank in range(world)]
        own = [_read(files[saved]) for saved in saved_ranks(world)]
        kept, tensors = saved_tensors(folder), _all_weights(module, final=final)
        if not final:
            tensors |= _new_moments(kept, trainer, module)
        if kept.keys() != tensors.keys():
            raise ValueError("it is of another model")
        read_into(tensors, folder)
        if not final:
            _restore_optimizer(own[0], trainer.optimizers[0], module)
            restore_trainer(own[0], trainer, module)
        restore_rank(own, trainer, module, world)
        set_rng_state(own[0][RNG], module.device)


def saved_ranks(world: int) -> list[int]:
    """Whose state this rank goes on with: the first gives its generators, those below `world` what was measured."""
    rank, now = rank_and_world()
    return list(range(rank, world, now)) or [rank % world]


def _read(path: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return saved


def _new_moments(
    kept: Mapping[str, tuple[torch.Size, torch.dtype]], trainer: L.Trainer, module: QTargetModule
) -> dict[str, Tensor]:
    """Tensors for what the optimizer keeps of each weight, as they were saved. kept: see `saved_tensors`."""
    state, moments = trainer.optimizers[0].state, {}
    named = dict(module.policy.named_parameters())
    for saved in sorted(name for name in kept if name.startswith(f"{MOMENTS}/")):
        _, key, name = saved.split("/", 2)
        state[named[name]][key] = moments[saved] = _new_moment(named[name], *kept[saved])
    return moments


def _new_moment(weight: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Sharded as its weight is. Adafactor's are rows and columns of it, and those of 8-bit optimizers not floats."""
    if shape == weight.shape:
        return torch.zeros_like(weight, dtype=dtype, requires_grad=False)
    if is_shard(weight):
        raise ValueError(f"the optimizer keeps a tensor {tuple(shape)} of a sharded weight {tuple(weight.shape)}")
    return torch.zeros(shape, dtype=dtype, device=weight.device)


def _restore_optimizer(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, module: QTargetModule) -> None:
    """Its settings, its numbers, and its tensors of one number."""
    named = dict(module.policy.named_parameters())
    for name, numbers in saved["numbers"].items():
        for key, number in numbers.items():
            optimizer.state[named[name]][key] = number.to(named[name].device) if isinstance(number, Tensor) else number
    for group, settings in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(settings)


def restore_trainer(saved: Mapping[str, Any], trainer: L.Trainer, module: QTargetModule) -> None:
    """Schedule, snapshots' steps, the size of chunks and what makes fp32 products: before it was saved, oneDNN."""
    (schedule,) = trainer.lr_scheduler_configs
    schedule.scheduler.load_state_dict(saved["schedule"])
    for role, old in _snapshots(module).items():
        old.taken = saved["taken"][role]
    module.chunk_size = saved["chunk_size"]
    module.library = saved.get("library", ONEDNN)


def restore_rank(own: Sequence[Mapping[str, Any]], trainer: L.Trainer, module: QTargetModule, world: int) -> None:
    """What was measured, and what callbacks remember. own: the states of the ranks that this one goes on for.

    A rank beyond the `world` that there were has measured nothing, and remembers what another does.
    """
    is_new = rank_and_world()[0] >= world
    for index, measured in enumerate(module.measured):
        measured.load_states([] if is_new else [saved["measured"][index] for saved in own])
    for callback in _callbacks(trainer):
        states = [saved["callbacks"][callback.state_key] for saved in own if callback.state_key in saved["callbacks"]]
        if isinstance(callback, Meter):
            callback.load_states([] if is_new else states)
        elif states:
            callback.load_state_dict(states[0])


def set_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Back to what `rng_state` returned."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:  # a run that began on a CPU has drawn nothing there
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Raise QTargetError where what is read in it can't be."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        raise QTargetError(
            f"the state {folder} can't be read ({type(error).__name__}: {error}): set resume=never to start afresh"
        ) from error
