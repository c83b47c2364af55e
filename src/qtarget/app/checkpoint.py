"""The model that a run leaves behind: a folder that plain transformers loads, there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from qtarget.app import compose
from qtarget.data.ranks import leads
from qtarget.errors import QTargetError
from qtarget.model import provide
from qtarget.model.adapter import merge, save_adapter
from qtarget.model.policy import Policy
from qtarget.model.sharding import reshard, whole_weights

CHECKPOINT, ADAPTER = "checkpoint", "adapter"
SCRATCH = ".checkpoint.new"


def save_checkpoint(plan: compose.Plan, policy: Policy, folder: Path, optimizer: Mapping[str, Any] | None) -> None:
    """Write `folder`/checkpoint, and of an adapter, which is merged there, `folder`/adapter as peft loads it.

    The policy stays as it is. optimizer: what is saved beside the weights. Where weights are sharded, every rank has to
    call it and rank 0 writes. Raises QTargetError where there is no room.
    """
    reshard(policy)
    gathered = whole_weights(policy)
    if not leads():
        return
    try:
        _write(plan, policy, gathered, folder, optimizer)
    except (OSError, SafetensorError) as error:
        raise QTargetError(
            f"can't save the checkpoint in {folder}: {error}. What was trained is kept in {folder / 'state'}: make "
            "room, and the same command goes on from there"
        ) from error


def discard_checkpoint(folder: Path) -> None:
    """Take away what an earlier attempt has left."""
    for name in (CHECKPOINT, ADAPTER, SCRATCH):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)


def _write(
    plan: compose.Plan, policy: Policy, gathered: Any, folder: Path, optimizer: Mapping[str, Any] | None
) -> None:
    scratch, dtype = folder / SCRATCH, plan.cfg.checkpoint.dtype
    if scratch.is_dir():
        shutil.rmtree(scratch)
    whole = _apart(plan, policy, gathered)
    if whole.has_adapter:
        save_adapter(whole, folder / ADAPTER)
        plan.tokenizer.save_pretrained(folder / ADAPTER)
        merge(whole)
    whole.lm.to(provide.DTYPES[dtype]).save_pretrained(scratch)
    plan.tokenizer.save_pretrained(scratch)
    if optimizer:
        torch.save(dict(optimizer), scratch / "optimizer.pt")
    os.replace(scratch, folder / CHECKPOINT)


def _apart(plan: compose.Plan, policy: Policy, gathered: Any) -> Policy:
    """The policy in one piece; another one where saving would change it, because it is evaluated afterwards."""
    if gathered is not None:
        return compose.rebuilt(plan, gathered)
    if policy.has_adapter or plan.cfg.checkpoint.dtype != plan.cfg.model.dtype:
        return compose.rebuilt(plan, policy.lm.state_dict())
    return policy
