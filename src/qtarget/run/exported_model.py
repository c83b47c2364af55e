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

from qtarget.data.chat import STOPS, ChatFormat
from qtarget.data.example import Message
from qtarget.errors import QTargetError
from qtarget.files import replacing
from qtarget.model import provide
from qtarget.model.adapter import merge, save_adapter
from qtarget.model.agreement import measured_logits, own_logits
from qtarget.model.policy import Policy
from qtarget.model.sharding import reshard, whole_weights
from qtarget.parallel import is_rank_zero
from qtarget.run import build
from qtarget.run.plan import Plan

CHECKPOINT, ADAPTER = "checkpoint", "adapter"
SCRATCH = ".checkpoint.new"
GENERATION_CONFIG_NAME = "generation_config.json"
EXACT, ROUNDED = 1e-4, 4e-2
"""Of the largest logit: how far a checkpoint in fp32, and one rounded to 16 bits, may be from what was measured."""


def save_checkpoint(plan: Plan, policy: Policy, folder: Path, optimizer: Mapping[str, Any] | None) -> None:
    """Write `folder`/checkpoint, and of an adapter, which is merged there, `folder`/adapter as peft loads it.

    The policy stays as it is. optimizer: what is saved beside the weights. Where weights are sharded, every rank has to
    call it and rank 0 writes. Raises QTargetError where there is no room.
    """
    reshard(policy)
    gathered = whole_weights(policy)
    if not is_rank_zero():
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


def _write(plan: Plan, policy: Policy, gathered: Any, folder: Path, optimizer: Mapping[str, Any] | None) -> None:
    whole, chat, measured = _apart(plan, policy, gathered), ChatFormat(plan.tokenizer), None
    tokenizer = stopping(chat)
    if whole.has_adapter:
        save_adapter(whole, folder / ADAPTER)
        tokenizer.save_pretrained(folder / ADAPTER)
        whole.lm.to(torch.float32)  # a merge into 16 bits would round away much of what was learnt
        measured = measured_logits(whole)
        merge(whole)
    with replacing(folder / CHECKPOINT, folder / SCRATCH) as scratch:
        whole.lm.to(provide.DTYPES[plan.cfg.checkpoint.dtype]).save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        end_generation(scratch, chat)
        if measured is not None:
            _check_merged(plan, scratch, measured)
        if optimizer:
            torch.save(dict(optimizer), scratch / "optimizer.pt")


def _apart(plan: Plan, policy: Policy, gathered: Any) -> Policy:
    """The policy in one piece; another one where saving would change it, because it is evaluated afterwards."""
    if gathered is not None:
        return build.rebuilt(plan, gathered)
    if policy.has_adapter or plan.cfg.checkpoint.dtype != plan.cfg.model.dtype:
        return build.rebuilt(plan, policy.lm.state_dict())
    return policy


def _check_merged(plan: Plan, folder: Path, measured: Tensor) -> None:
    """Raise QTargetError where the merged weights, read again, make other logits than the adapted model does."""
    merged = own_logits(build.reloaded(plan, folder))
    width = min(merged.shape[-1], measured.shape[-1])
    ours, theirs = (logits[..., :width] for logits in (measured, merged))
    real = torch.isfinite(ours)  # padded rows are −∞
    error, largest = float((ours - theirs)[real].abs().max()), float(ours[real].abs().max())
    if error <= (EXACT if plan.cfg.checkpoint.dtype == "float32" else ROUNDED) * largest:
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
