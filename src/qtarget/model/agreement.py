"""Whether hidden states and head make the logits that a model itself makes: looked at when it is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from qtarget.errors import QTargetError
from qtarget.model.architecture import ANOTHER, named, plain
from qtarget.model.policy import Policy, evaluating

LENGTH = 6
"""Tokens of each of the two rows that the model reads."""
LARGE = 60.0
"""Size of the products at which the second half of a row is compared: caps show there, whatever the weights are."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
COARSE = 4e-2
"""Of the largest number compared; COARSE for dtypes of 16 bits, in which the model itself rounds its logits."""
ON_CPU = ("sdpa", "eager")


@torch.no_grad()
def check_logits(policy: Policy) -> None:
    """Raise QTargetError where the loss would use other logits than the model's, or where tokens see later ones.

    Two rows of a few tokens, alike but for the last one, go through the decoder and through the whole model. For the
    latter the decoder's last hidden states are made larger in the second half of each row, so that caps show. Leaves
    modes, random states, the kind of attention and compilation as they are.
    """
    lm = plain(policy.lm)
    with evaluating(policy), _undisturbed(lm):
        ids = _few_tokens(lm, policy.vocab_size)
        hidden = _decoded(policy, ids)
        _check_causal(lm, hidden)
        factors = _factors(policy, hidden)
        own, enlarged = _own_logits(policy, ids, factors)
        hidden = hidden * factors if enlarged else hidden
        _compare(lm, _ours(policy, hidden), own)


@torch.no_grad()
def measured_logits(policy: Policy) -> Tensor:
    """What the loss makes of a few tokens, [rows, tokens, V] in fp32. Leaves everything as it is."""
    lm = plain(policy.lm)
    with evaluating(policy), _undisturbed(lm):
        return _ours(policy, _decoded(policy, _few_tokens(lm, policy.vocab_size))).float()


@torch.no_grad()
def own_logits(policy: Policy) -> Tensor:
    """What the model itself makes of the same tokens."""
    lm = plain(policy.lm)
    with evaluating(policy), _undisturbed(lm):
        logits: Tensor = lm(input_ids=_few_tokens(lm, policy.vocab_size), use_cache=False).logits
    return logits.float()


@contextmanager
def _undisturbed(lm: Any) -> Iterator[None]:
    """On the CPU flash attention has no kernel; some models draw random numbers in every forward."""
    kind = getattr(lm.config, "_attn_implementation", None)
    replaced = kind is not None and kind not in ON_CPU and lm.device.type == "cpu"
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.autocast(lm.device.type, enabled=False):
        if replaced:
            lm.set_attn_implementation("eager")
        try:
            yield
        finally:
            if replaced:
                lm.set_attn_implementation(kind)


def _few_tokens(lm: Any, vocab_size: int) -> Tensor:
    """[2, LENGTH] ordinary tokens: the ids a configuration names may stand for images, or be masked as padding."""
    rows = min(vocab_size, lm.get_input_embeddings().weight.shape[0])
    named = set(_named_ids(lm.config.to_dict()))
    ids = [token for token in range(rows) if token not in named][: 4 * LENGTH] or [0]
    chosen = [ids[(3 * index) % len(ids)] for index in range(LENGTH + 1)]
    first, second = chosen[:LENGTH], [*chosen[: LENGTH - 1], chosen[LENGTH]]
    return torch.tensor([first, second], device=lm.device)


def _named_ids(config: dict[str, Any]) -> Iterator[int]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _named_ids(value)
        elif str(key).endswith(("_token_id", "_token_index", "pad_index")):
            yield from value if isinstance(value, list) else [value] if isinstance(value, int) else []


def _decoded(policy: Policy, ids: Tensor) -> Tensor:
    """The decoder's last hidden states [2, LENGTH, D], as training asks for them."""
    try:
        hidden: Tensor = policy.decoder(input_ids=ids, position_ids=None, use_cache=False).last_hidden_state
    except Exception as error:
        raise _fails(policy, error) from error
    if hidden.shape[:2] != ids.shape:
        raise QTargetError(
            f"{named(policy.lm)} gives hidden states of the shape {tuple(hidden.shape)} for {tuple(ids.shape)} "
            f"tokens: {ANOTHER}"
        )
    return hidden


def _check_causal(lm: Any, hidden: Tensor) -> None:
    before, largest = hidden[:, : LENGTH - 1].float(), float(hidden.float().abs().max())
    change = float((before[0] - before[1]).abs().max())
    if change > (1e-4 if hidden.dtype in TOLERANCE else COARSE) * largest:
        raise QTargetError(
            f"{named(lm)} lets tokens see the ones that follow: another last token changes earlier hidden states by "
            f"{change:.3g}, of at most {largest:.3g}. It would be trained to copy what it is to predict: {ANOTHER}"
        )


def _factors(policy: Policy, hidden: Tensor) -> Tensor:
    """[LENGTH, 1]: 1 in the first half of a row; then what makes the largest product with the output layer `LARGE`."""
    head = policy.head
    states = policy.reading(hidden).flatten(0, 1).to(head.weight.dtype)
    largest = float((states @ head.weight.T).float().abs().max()) * head.scale
    factors = torch.ones(LENGTH, 1, dtype=hidden.dtype, device=hidden.device)
    factors[LENGTH // 2 :] = LARGE / largest if largest > 0 else 1.0
    return factors


def _own_logits(policy: Policy, ids: Tensor, factors: Tensor) -> tuple[Tensor, bool]:
    """What the model itself makes of the tokens, and whether its decoder was seen, and its hidden states enlarged."""
    seen = []

    def enlarge(module: Any, args: Any, output: Any) -> Any:
        if getattr(output, "last_hidden_state", None) is None:
            return output
        seen.append(module)
        output.last_hidden_state = output.last_hidden_state * factors
        return output

    hook = policy.decoder.register_forward_hook(enlarge)
    try:
        logits: Tensor = plain(policy.lm)(input_ids=ids, use_cache=False, return_dict=True).logits
    except Exception as error:
        raise _fails(policy, error) from error
    finally:
        hook.remove()
    return logits, bool(seen)


def _ours(policy: Policy, hidden: Tensor) -> Tensor:
    head = policy.head
    logits = head.logits(policy.reading(hidden).flatten(0, 1), head.weight.dtype)
    return logits.unflatten(0, hidden.shape[:2])


def _compare(lm: Any, ours: Tensor, own: Tensor) -> None:
    if own.shape[:2] != ours.shape[:2]:
        raise QTargetError(
            f"{named(lm)} gives logits of the shape {tuple(own.shape)} where the loss "
            f"has {tuple(ours.shape)}: {ANOTHER}"
        )
    width = min(own.shape[-1], ours.shape[-1])
    real = torch.isfinite(ours[0, 0, :width])  # padded rows are −∞
    tolerance = TOLERANCE.get(own.dtype if own.dtype == lm.dtype else lm.dtype, COARSE)
    half = LENGTH // 2
    for half_row in (slice(0, half), slice(half, LENGTH)):
        mine, theirs = (logits[:, half_row, :width][..., real].float() for logits in (ours, own))
        error = (mine - theirs).abs()
        if not float(error.max()) <= tolerance * float(theirs.abs().max()):  # NaN too
            raise _differs(lm, mine.flatten(), theirs.flatten(), int(error.argmax()))


def _differs(lm: Any, mine: Tensor, theirs: Tensor, index: int) -> QTargetError:
    return QTargetError(
        f"{named(lm)} makes other logits than its last hidden state and output layer do: where the model says "
        f"{float(theirs[index]):.4g}, the loss would use {float(mine[index]):.4g}. What it does to its logits isn't "
        f"known here: {ANOTHER} and whose logits can be reproduced"
    )


def _fails(policy: Policy, error: Exception) -> QTargetError:
    reason = next(iter(str(error).strip().splitlines()), "")
    return QTargetError(
        f"{named(policy.lm)} can't read {LENGTH} tokens of text alone ({type(error).__name__}: {reason}), so that its "
        f"logits can't be checked: {ANOTHER}"
    )
