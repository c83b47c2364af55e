"""The model that a run leaves behind: a folder that plain transformers loads, there as a whole or not at all."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from qtarget.config.run_config import AS_TRAINED
from qtarget.data.chat import STOPS, ChatFormat
from qtarget.data.example import Message
from qtarget.errors import QTargetError
from qtarget.files import replacing
from qtarget.model import provide
from qtarget.model.adapting import merge, save_adapter
from qtarget.model.agreement import measured_logits, own_logits
from qtarget.model.policy import Policy
from qtarget.model.sharding import reshard, round_weights, shard_alike, whole_weights
from qtarget.parallel import all_gather_objects, is_rank_zero
from qtarget.resume_folders import STATE
from qtarget.run import build
from qtarget.run.plan import Plan

CHECKPOINT, ADAPTER, OPTIMIZER = "checkpoint", "adapter", "optimizer.pt"
SCRATCH = ".checkpoint.new"
WITHOUT_OPTIMIZER = (
    f"What was trained is kept in {STATE}/, without the optimizer: the same command with checkpoint.optimizer=false "
    "goes on from there, and with resume=never it trains again"
)
GENERATION_CONFIG_NAME = "generation_config.json"
EXACT, ROUNDED = 1e-4, 4e-2
"""Of the largest logit: how far a checkpoint in fp32, and one rounded to 16 bits, may be from what was measured."""


def save_checkpoint(plan: Plan, policy: Policy, folder: Path) -> None:
    """Write `folder`/checkpoint, and of an adapter, which is merged there, `folder`/adapter as peft loads it.

    The policy stays as it is. Where weights are sharded, every rank has to call it and rank 0 writes. Raises
    QTargetError where there is no room.
    """
    reshard(policy)
    gathered = whole_weights(policy)
    if not is_rank_zero():
        return
    try:
        _write(plan, policy, gathered, folder)
    except (OSError, SafetensorError) as error:
        raise QTargetError(
            f"can't save the checkpoint in {folder}: {error}. What was trained is kept in {folder / STATE}: make room, "
            "and the same command goes on from there"
        ) from error


def save_optimizer(state: Mapping[str, Any], folder: Path) -> None:
    """Write `folder`/optimizer.pt. Raises QTargetError where there is no room."""
    try:
        with replacing(folder / OPTIMIZER) as scratch:
            torch.save(dict(state), scratch)
    except (OSError, RuntimeError) as error:  # of a full disk torch tells as the latter, and not that it is full
        raise QTargetError(
            f"can't save the optimizer's state in {folder}, as where a disk is full: {error}. {WITHOUT_OPTIMIZER}"
        ) from error


def check_optimizer_kept(folder: Path) -> None:
    """Raise QTargetError where the attempt that took the last step has left no optimizer.pt."""
    if not (folder / OPTIMIZER).is_file():
        raise QTargetError(
            f"checkpoint.optimizer=true, and the attempt that took the last step left no {OPTIMIZER} in {folder}. "
            f"{WITHOUT_OPTIMIZER}"
        )


def discard_checkpoint(folder: Path) -> None:
    """Take away what an earlier attempt has left."""
    for name in (CHECKPOINT, ADAPTER, SCRATCH):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)


def as_saved(plan: Plan, policy: Policy, folder: Path) -> Policy:
    """The model that lies in `folder`/checkpoint: the policy, which is rounded where the checkpoint is.

    A rounded checkpoint with a merged adapter is another model, and read again. Collective.
    """
    if not plan.cfg.rounds:
        return policy
    if policy.has_adapter:
        all_gather_objects(None)  # until rank 0 has written it
        read = build.reloaded(plan, folder / CHECKPOINT, plan.cfg.model.dtype)
        return shard_alike(read, policy)
    reshard(policy)
    round_weights(policy, provide.DTYPES[plan.cfg.saved_dtype])
    return policy


def _write(plan: Plan, policy: Policy, gathered: Any, folder: Path) -> None:
    whole, chat, measured = _apart(plan, policy, gathered), ChatFormat(plan.tokenizer), None
    tokenizer = stopping(chat)
    if whole.has_adapter:
        save_adapter(whole, folder / ADAPTER)
        tokenizer.save_pretrained(folder / ADAPTER)
        whole.lm.to(torch.float32)  # a merge into 16 bits would round away much of what was learnt
        measured = measured_logits(whole)
        merge(whole)
    with replacing(folder / CHECKPOINT, folder / SCRATCH) as scratch:
        _in_saved_dtype(plan, whole).lm.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        end_generation(scratch, chat)
        if measured is not None:
            _check_merged(plan, scratch, measured)


def _in_saved_dtype(plan: Plan, whole: Policy) -> Policy:
    """As it was trained, all of it, unless another dtype is asked for: some models keep parts in fp32."""
    if plan.cfg.checkpoint.dtype != AS_TRAINED:
        whole.lm.to(provide.DTYPES[plan.cfg.checkpoint.dtype])
    return whole


def _apart(plan: Plan, policy: Policy, gathered: Any) -> Policy:
    """The policy in one piece; another one where saving would change it, because it is evaluated afterwards."""
    if gathered is not None:
        return build.rebuilt(plan, gathered)
    if policy.has_adapter or plan.cfg.saved_dtype != plan.cfg.model.dtype:
        return build.rebuilt(plan, policy.lm.state_dict())
    return policy


def _check_merged(plan: Plan, folder: Path, measured: Tensor) -> None:
    """Raise QTargetError where the merged weights, read again, make other logits than the adapted model does."""
    merged = own_logits(build.reloaded(plan, folder, plan.cfg.saved_dtype))
    width = min(merged.shape[-1], measured.shape[-1])
    ours, theirs = (logits[..., :width] for logits in (measured, merged))
    real = torch.isfinite(ours)  # padded rows are −∞
    error, largest = float((ours - theirs)[real].abs().max()), float(ours[real].abs().max())
    if error <= (EXACT if plan.cfg.saved_dtype == "float32" else ROUNDED) * largest:
        return
    shutil.rmtree(folder)
    raise QTargetError(
        f"merged into the weights the adapter makes other logits than it made in training: they differ by {error:.3g}, "
        f"of at most {largest:.3g}, so no checkpoint is saved. The adapter as it was trained is in {ADAPTER}/, for "
        "peft to load on the model it was trained on; other model.adapter.targets merge"
    )


def stopping(chat: ChatFormat) -> Any:
    """A copy of the tokenizer whose eos is the end of turn that was taught, where its template then writes the same."""
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.init_kwargs[STOPS] = sorted(chat.ends)
    end = tokenizer.convert_ids_to_tokens(chat.end_of_turn)
    before = _written(tokenizer)
    eos, tokenizer.eos_token = tokenizer.eos_token, end
    if _written(tokenizer) != before:
        tokenizer.eos_token = eos
    return tokenizer


def _written(tokenizer: Any) -> list[Any]:
    chat: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    template = ChatFormat(tokenizer).template
    prompt, talk = [*template.opening, *chat[:1]], [*template.opening, *chat]
    ids = tokenizer("a b", add_special_tokens=True)["input_ids"]
    written = [
        template.attempt(prompt, reply=True),
        *(template.attempt(t, reply=False) for t in (talk, [*talk, *chat])),
    ]
    return [*written, ids]


def end_generation(folder: Path, chat: ChatFormat) -> None:
    """Have plain generate() end where replies ended in training, and at the control tokens of the model's own settings.

    An end among the latter that is ordinary text goes: replies would break off there, and in the evaluation they don't.
    """
    path = folder / GENERATION_CONFIG_NAME
    if not path.is_file():
        return
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("_from_model_config", None)  # transformers 4 made them again from config.json where this is true
    given, added = settings.get("eos_token_id"), chat.tokenizer.added_tokens_decoder
    own = given if isinstance(given, list) else [given]
    ends = [chat.end_of_turn, *sorted(chat.ends), *(token for token in own if token in added)]
    settings |= {"eos_token_id": list(dict.fromkeys(ends)), "pad_token_id": int(chat.tokenizer.pad_token_id)}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
