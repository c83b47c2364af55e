"""Whether what is given as a reference is a distribution: the first row that is none is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qtarget.errors import QTargetError

IGNORE = -100
"""Label of a position that is not supervised; among negatives, no token."""
ROUNDING = 0.05
"""Nats by which log Σ p may miss 0: half a step of bfloat16 at log p = −12 is 0.03, and large vocabularies go there."""
SLACK = 1e-2
"""By how much a stored scalar may leave its range, in its own unit: it may have been kept in 16 bits."""
TOP_ENTROPY = math.log(20) + SLACK
AT_A_TIME = 2**25
WAY_ON = "Rows of positions that aren't supervised have to be legal too, or are left out by .of_supervised()"


def full(logp: Tensor) -> None:
    """Rows [M, V] of log-probabilities that sum to 1."""
    floating("logp", logp)
    size = max(1, AT_A_TIME // max(1, logp.shape[1]))
    sums = (
        torch.cat([rows.to(_wide(rows)).logsumexp(-1) for rows in torch.split(logp, size)]) if len(logp) else logp[:, 0]
    )
    refuse(
        ~(sums.abs() <= ROUNDING),
        lambda row: (
            f"Reference.full takes log-probabilities, these don't sum to 1: row {row} of {len(logp)} sums to "
            f"{float(sums[row].exp()):.4g}. Take log_softmax(-1) of logits. {WAY_ON}"
        ),
    )


def topk(indices: Tensor, logp: Tensor, vocab_size: int) -> None:
    """Rows [M, k] of distinct token ids and their log-probabilities, which leave something or nothing to the others."""
    floating("logp", logp)
    rows, wide = len(logp), logp.to(_wide(logp))

    def says(problem: str, way: str) -> Callable[[int], str]:
        return lambda row: f"Reference.topk, row {row} of {rows}: {problem.format(*_shown(indices, wide, row))}. {way}"

    outside = (indices < 0) | (indices >= vocab_size)
    refuse(
        outside.any(-1),
        says(f"token ids must lie in [0, {vocab_size}), got {{0}}", "Padding is no token: cut all rows to as many"),
    )
    refuse((wide.isnan() | wide.isposinf()).any(-1), says("log-probabilities {1} aren't numbers", WAY_ON))
    refuse(
        wide.isneginf().any(-1),
        says(
            "log-probabilities {1} hold −∞, which padding has and no kept token",
            f"Cut all rows to the k that each has, or write −1e4 for a token that has probability 0. {WAY_ON}",
        ),
    )
    ordered = indices.sort(-1).values
    refuse(
        (ordered[:, 1:] == ordered[:, :-1]).any(-1),
        says("token ids must differ, got {0}", f"Padding is no token: cut all rows to the k that each has. {WAY_ON}"),
    )
    sums = wide.logsumexp(-1)
    refuse(
        sums > ROUNDING,
        says(
            "log-probabilities {1} sum to more than 1: they are logits, or probabilities",
            f"Take log_softmax over the whole vocabulary before the top k. {WAY_ON}",
        ),
    )


def draws(indices: Tensor, counts: Tensor, vocab_size: int) -> None:
    """Rows [M, K] of token ids and how often each was drawn."""

    def says(problem: str) -> Callable[[int], str]:
        return lambda row: (
            f"Reference.sampled, row {row} of {len(counts)}: {problem}; got ids {indices[row, :8].tolist()}, counts "
            f"{counts[row, :8].tolist()}. {WAY_ON}"
        )

    refuse(((indices < 0) | (indices >= vocab_size)).any(-1), says(f"token ids must lie in [0, {vocab_size})"))
    refuse((counts < 0).any(-1), says("a count is at least 0"))
    refuse(counts.sum(-1) < 1, says("nothing was drawn"))


RANGES: Mapping[str, tuple[float, float, str]] = {
    "logp": (-math.inf, SLACK, "a log-probability is at most 0"),
    "entropy": (-SLACK, math.inf, "an entropy is at least 0 nats"),
    "top_entropy": (-SLACK, TOP_ENTROPY, "the entropy of 20 tokens lies in [0, ln 20] nats"),
    "outranked": (-SLACK, 1 + SLACK, "a probability mass lies in [0, 1]"),
    "concentration": (0.0, 1 + SLACK, "Σ p² lies in (0, 1]"),
}
"""Label scalar → least, most, and the rule in words."""


def label(labels: Tensor, scalars: Mapping[str, Tensor]) -> None:
    """Scalars [M], each within its range where the label [M] is supervised."""
    supervised = labels != IGNORE
    for name, values in scalars.items():
        least, most, rule = RANGES[name]
        inside = (values >= least) & (values <= most) & ((values > 0) | (name != "concentration"))
        refuse(
            supervised & ~inside,
            lambda row, name=name, values=values, rule=rule: (  # type: ignore[misc]
                f"Reference.label, row {row} of {len(labels)}: {name} = {float(values[row]):.4g}, and {rule}. Give log "
                "π(y), not −log π(y), and nats"
            ),
        )


def label_over(role: str, entropy: Tensor, vocab_size: int) -> None:
    """Entropies [N], none above that of a uniform distribution over the vocabulary."""
    refuse(
        entropy > math.log(vocab_size) + SLACK,
        lambda row: (
            f"the {role}'s entropy at supervised token {row} is {float(entropy[row]):.4g} nats; over "
            f"{vocab_size} tokens it is at most {math.log(vocab_size):.4g}"
        ),
    )


def floating(name: str, *tensors: Tensor) -> None:
    """Raise unless all hold floating-point numbers."""
    for tensor in tensors:
        if not (isinstance(tensor, Tensor) and tensor.is_floating_point()):
            raise QTargetError(f"{name} must be a tensor of floating-point numbers, got {_kind(tensor)}")


def whole(name: str, tensor: Tensor) -> None:
    """Raise unless it holds whole numbers."""
    is_tensor = isinstance(tensor, Tensor)
    if not is_tensor or tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise QTargetError(f"{name} must be a tensor of whole numbers (int64), got {_kind(tensor)}")


def refuse(wrong: Tensor, message: Callable[[int], str]) -> None:
    """Raise for the first row that is wrong."""
    if wrong.any():
        raise QTargetError(message(int(wrong.nonzero()[0, 0])))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _shown(indices: Tensor, logp: Tensor, row: int) -> tuple[str, str]:
    """The first few ids and log-probabilities of a row."""
    ids, values = indices[row, :8].tolist(), [f"{value:.4g}" for value in logp[row, :8].tolist()]
    more = ", …" * (indices.shape[1] > 8)
    return f"[{', '.join(map(str, ids))}{more}]", f"[{', '.join(values)}{more}]"


def _kind(value: object) -> str:
    return str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
