"""What stands for the prior, the teacher and the old policy beside a Trainer's model."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from qtarget import checks
from qtarget.errors import QTargetError
from qtarget.math.target import Design, check_references, needs
from qtarget.math.tokens import ROLES
from qtarget.model.adapting import check_base
from qtarget.model.agreement import check_logits
from qtarget.model.frozen import AdapterOff, Frozen, FrozenModel, Snapshot
from qtarget.model.policy import Policy
from qtarget.model.provide import DTYPES, UnknownModelError, check_same_tokenizer, load_policy, load_tokenizer, resolve
from qtarget.trainers.forward import own_forward

HOW = {
    "prior": '"frozen" (a copy of the model as it is now), "adapter_off" (a PEFT model without its adapter), a model, '
    "or a model's name or folder",
    "teacher": "a model, or a model's name or folder",
    "old": '"snapshot" or "snapshot:N" (the policy as it was, copied anew every N optimizer steps; 8 by default)',
}
EVERY = 8


def make_references(
    given: Mapping[str, Any], design: Design, policy: Policy, tokenizer: Any, device: torch.device
) -> dict[str, Frozen]:
    """role → what stands for it. Raises QTargetError for roles that the design lacks or doesn't look at, and for what
    can't stand for one. A prior may be given to any design: how far the policy has gone from it is measured.
    """
    wanted = needs(design)
    for role in given:
        checks.choice("the role of a reference", role, ROLES)
        if role not in wanted and role != "prior":
            raise QTargetError(f"this design doesn't look at the {role}: leave references[{role!r}] out")
    for role in wanted:
        if given.get(role) is None:
            raise QTargetError(f"this design looks at the {role}: give references={{{role!r}: …}}, {HOW[role]}")
    made = {role: _frozen(role, what, policy, tokenizer) for role, what in given.items() if what is not None}
    _check_enough(design, made)
    return {role: frozen.to(device) for role, frozen in made.items()}


def _frozen(role: str, what: Any, policy: Policy, tokenizer: Any) -> Frozen:
    if isinstance(what, str):
        kind, _, number = what.partition(":")
        if kind in KINDS:
            return KINDS[kind](role, number, policy)
        try:
            return _named(role, what, policy, tokenizer)
        except UnknownModelError as error:
            close = difflib.get_close_matches(what, [kind for kind in KINDS if kind in HOW[role]], n=1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            raise QTargetError(f"references[{role!r}]: {meant}It is {HOW[role]}; {error.reason}") from error
    if isinstance(what, nn.Module):
        return _model(role, what, policy)
    if all(hasattr(what, method) for method in ("reference", "exact", "to")):
        if isinstance(what, FrozenModel):
            _check_apart(role, what.policy, policy)
        frozen: Frozen = what
        return frozen
    raise QTargetError(f"references[{role!r}] is {HOW[role]}; got {type(what).__name__}")


def _copied(role: str, number: str, policy: Policy) -> Frozen:
    _check_plain("frozen", role, number, ("prior",))
    return FrozenModel(Policy(_copy(policy.lm), policy.vocab_size))


def _adapter_off(role: str, number: str, policy: Policy) -> Frozen:
    _check_plain("adapter_off", role, number, ("prior",))
    if not policy.has_adapter:
        raise QTargetError(
            "adapter_off is a PEFT model with its adapter switched off, and this model has none: give peft_config, or "
            'references={"prior": "frozen"}, a copy of the weights'
        )
    check_base(policy.lm)
    return AdapterOff(policy)


def _snapshot(role: str, number: str, policy: Policy) -> Frozen:
    _check_plain("snapshot", role, "", ("old",))
    if number and not number.isdecimal():
        raise QTargetError(f"snapshot:N takes a whole number of optimizer steps, got {number!r}")
    every = int(number) if number else EVERY
    checks.whole("N of snapshot:N", every, 1)
    return Snapshot(Policy(_copy(policy.lm), policy.vocab_size), every)


KINDS: dict[str, Callable[[str, str, Policy], Frozen]] = {
    "frozen": _copied,
    "adapter_off": _adapter_off,
    "snapshot": _snapshot,
}


def _check_plain(kind: str, role: str, number: str, roles: tuple[str, ...]) -> None:
    if number or role not in roles:
        raise QTargetError(f"references[{role!r}] is {HOW[role]}; {kind}{f':{number}' if number else ''} is not")


def _named(role: str, name: str, policy: Policy, tokenizer: Any) -> Frozen:
    source = resolve(name)
    if tokenizer is not None:
        check_same_tokenizer(role, load_tokenizer(source), tokenizer)
    lm = policy.lm
    dtype = next((name for name, dtype in DTYPES.items() if dtype == lm.dtype), "float32")
    attention = getattr(lm.config, "_attn_implementation", None) or "sdpa"
    return FrozenModel(load_policy(source, policy.vocab_size, dtype=dtype, attention=attention))


def _model(role: str, lm: Any, policy: Policy) -> Frozen:
    own = Policy(lm, policy.vocab_size)
    _check_apart(role, own, policy)
    with own_forward(lm):
        check_logits(own)
    return FrozenModel(own)


def _copy(lm: Any) -> Any:
    try:
        with own_forward(lm):
            return deepcopy(lm)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise QTargetError(f"{type(lm).__name__} can't be copied ({error}): give a model of its own") from error


def _check_apart(role: str, own: Policy, policy: Policy) -> None:
    trained = {tensor.data_ptr() for tensor in policy.parameters()}
    if any(tensor.data_ptr() in trained for tensor in own.parameters()):
        raise QTargetError(
            f"the {role} shares weights with the model that is trained: give a copy ('frozen'), a model loaded once "
            "more, or, of a PEFT model, 'adapter_off'"
        )


def _check_enough(design: Design, made: Mapping[str, Frozen]) -> None:
    """Models hold all of a distribution, or its top k where they were told so."""
    kept = {role: getattr(frozen, "topk", None) for role, frozen in made.items()}
    held = {role: "full" if topk is None else "topk" for role, topk in kept.items()}
    tails = {role: str(getattr(made[role], "tail", "bucket")) for role, topk in kept.items() if topk is not None}
    check_references(design, held, tails)
