"""What is known of a frozen distribution, per supervised token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from qtarget import checks
from qtarget.choices import SAMPLED, TAILS
from qtarget.errors import QTargetError
from qtarget.math import legal
from qtarget.math.distribution import LABEL_SCALARS, Distribution
from qtarget.math.head import Head, matmul_dtype

DETAILS = ("label", "topk", "full")
"""How much is held of a distribution, thinnest first. A design says which it needs at least."""


@dataclass(frozen=True)
class Reference:
    """A frozen distribution (prior, teacher or old policy) at N tokens, in the thinnest form that was available.

    Build one with `full`, `hidden`, `topk`, `sampled` or `label`. `hidden` is expanded chunk by chunk: nobody ever
    holds N × V.
    """

    rows: Tensor | None = None  # [N, V] log-probabilities; [N, D] hidden states beside `head`; [N, k] beside `indices`
    head: Head | None = None
    indices: Tensor | None = None  # [N, k] token ids
    counts: Tensor | None = None  # [N, K] beside `indices`: how often each was drawn
    keep: int | None = None  # of full or hidden rows, only the `keep` likeliest tokens count
    tail: str = "bucket"
    labels: Tensor | None = None  # [N], beside `label_scalars`
    label_scalars: Mapping[str, Tensor] = field(default_factory=dict)  # name → [N]
    supervised_only: bool = False  # a row for every supervised position, instead of for every position
    is_multiplied: bool = False  # `rows` are [N, V] products of hidden states and head already
    is_trusted: bool = True  # by whoever made it; what the constructors below are given is looked at

    @classmethod
    def full(cls, logp: Tensor) -> Reference:
        """From normalised log-probabilities [..., V], a row for every position, supervised or not.

        Raises QTargetError for the first row whose Σ exp(logp) isn't 1 within e^±0.05, what bfloat16 rounds off at
        most, or is NaN: logits want `.log_softmax(-1)` first.
        """
        legal.floating("logp", logp)
        if not logp.ndim or not logp.shape[-1]:
            raise QTargetError(f"logp must be [..., V], got {tuple(logp.shape)}")
        rows = logp.detach().reshape(-1, logp.shape[-1])
        legal.full(rows)
        return cls(rows=rows, is_trusted=False)

    @classmethod
    def hidden(cls, hidden: Tensor, head: Head) -> Reference:
        """From last hidden states [..., D] of every position, and the head that makes exact distributions of them.

        Raises QTargetError where their shapes don't fit. That they are numbers is seen where they are used.
        """
        if not isinstance(head, Head):
            raise QTargetError(f"the head of a reference must be a qtarget.Head, got {type(head).__name__}")
        legal.floating("hidden states", hidden)
        if hidden.ndim < 1 or hidden.shape[-1] != head.weight.shape[1]:
            raise QTargetError(
                f"hidden states {tuple(hidden.shape)} don't go with a head of weight {tuple(head.weight.shape)}: they "
                "are [..., D] and [V, D]"
            )
        return cls(rows=hidden.detach().reshape(-1, hidden.shape[-1]), head=head)

    @classmethod
    def topk(cls, indices: Tensor, logp: Tensor, vocab_size: int, tail: str = "bucket") -> Reference:
        """From the k likeliest tokens [..., k] of every position and their log-probabilities; `tail`: one of `TAILS`.

        Raises QTargetError for an unknown tail, shapes that differ, and the first row in which ids repeat or lie
        outside [0, vocab_size), a log-probability is NaN or ±∞ (padding is none), or Σ exp(logp)
        exceeds e^0.05 (logits).
        """
        checks.choice("tail", tail, TAILS)
        checks.whole("vocab_size", vocab_size, 1)
        legal.floating("logp", logp)
        legal.whole("indices", indices)
        if indices.shape != logp.shape or indices.ndim < 2:
            raise QTargetError(f"indices {tuple(indices.shape)} and logp {tuple(logp.shape)} must both be [..., k]")
        checks.whole("k", indices.shape[-1], 1)
        indices, logp = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (indices, logp))
        legal.topk(indices, logp, vocab_size)
        return cls(rows=logp.detach(), indices=indices.long(), tail=tail, is_trusted=False)

    @classmethod
    def sampled(cls, indices: Tensor, counts: Tensor, vocab_size: int) -> Reference:
        """From draws of a distribution: q̂_v = Σ_{j: indices_j = v} counts_j / Σ_j counts_j, whose mean is π_v.

        indices, counts [..., K], whole numbers: tokens of every position and how often each was drawn. An entry of
        count 0 is padding; a token may stand in several. Random sampling KD (arXiv 2503.16870): a gradient that is
        linear in π is unbiased, which a top k's is not, and designs of any other are refused.
        Raises QTargetError for shapes that differ, and the first row in which an id lies outside [0, vocab_size), a
        count is negative, or nothing was drawn.
        """
        checks.whole("vocab_size", vocab_size, 1)
        legal.whole("indices", indices)
        legal.whole("counts", counts)
        if indices.shape != counts.shape or indices.ndim < 1:
            raise QTargetError(f"indices {tuple(indices.shape)} and counts {tuple(counts.shape)} must both be [..., K]")
        indices, counts = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (indices, counts))
        legal.draws(indices, counts, vocab_size)
        return cls(indices=indices.long(), counts=counts.long(), is_trusted=False)

    @classmethod
    def label(
        cls,
        labels: Tensor,
        label_scalars: Mapping[str, Tensor] | None = None,
        *,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> Reference:
        """From scalars [...] of every position, by the names of `LABEL_SCALARS`, and the labels [...] they belong to.

        "logp" = log π(y) must be among them. `statistics` is the earlier name of `label_scalars`. Raises QTargetError
        for a name that nobody reads, shapes that differ, and the first row, of those with a label other than −100, in
        which a scalar is out of its range.
        """
        scalars = {**(statistics or {}), **(label_scalars or {})}
        unknown = sorted(set(scalars) - set(LABEL_SCALARS))
        if unknown or "logp" not in scalars:
            raise QTargetError(f"label scalars are {', '.join(LABEL_SCALARS)}, logp always; got {sorted(scalars)}")
        legal.whole("labels", labels)
        for name, values in scalars.items():
            legal.floating(f"the label scalar {name}", values)
            if values.shape != labels.shape:
                raise QTargetError(
                    f"the label scalar {name} has the shape {tuple(values.shape)}, the labels {tuple(labels.shape)}; "
                    "they must be the same"
                )
        flat = {name: values.detach().reshape(-1) for name, values in scalars.items()}
        legal.label(labels.reshape(-1), flat)
        return cls(labels=labels.reshape(-1), label_scalars=flat, is_trusted=False)

    @property
    def statistics(self) -> Mapping[str, Tensor]:
        """The earlier name of `label_scalars`."""
        return self.label_scalars

    @property
    def detail(self) -> str:
        """How much is held: one of `DETAILS`, or `SAMPLED`."""
        if self.counts is not None:
            return SAMPLED
        if self.rows is None:
            return "label"
        return "full" if self.indices is None and self.keep is None else "topk"

    def of_supervised(self) -> Reference:
        """The same, said to hold the rows of supervised positions alone, in their order."""
        return replace(self, supervised_only=True)

    def truncated(self, keep: int, tail: str = "bucket") -> Reference:
        """The same full or hidden rows, of which only the `keep` likeliest tokens count."""
        checks.choice("tail", tail, TAILS)
        checks.whole("topk", keep, 1)
        if self.rows is None or self.indices is not None:
            raise QTargetError(f"this reference holds {self.detail} already; only a full or hidden one is truncated")
        return replace(self, keep=keep, tail=tail)

    def __len__(self) -> int:
        return next(self.tensors()).shape[0]

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor with a row per token."""
        tensors = (self.rows, self.indices, self.counts, self.labels, *self.label_scalars.values())
        yield from (tensor for tensor in tensors if tensor is not None)

    def cast(self) -> Reference:
        """The same with hidden states and head in the dtype that matrix products have here: for many chunks."""
        if self.head is None or self.rows is None:
            return self
        dtype = matmul_dtype(self.rows)
        return replace(self, rows=self.rows.to(dtype), head=self.head.cast(dtype))

    def multiplied(self) -> Reference:
        """The same with the products [N, V] of its hidden states and head, which one large product makes fastest."""
        if self.head is None or self.rows is None or self.is_multiplied:
            return self
        return replace(self, rows=self.head.products(self.rows, matmul_dtype(self.rows)), is_multiplied=True)

    def select(self, index: Tensor | slice) -> Reference:
        """The same reference for some of the tokens."""

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[index]

        return replace(
            self,
            rows=pick(self.rows),
            indices=pick(self.indices),
            counts=pick(self.counts),
            labels=pick(self.labels),
            label_scalars={name: values[index] for name, values in self.label_scalars.items()},
        )

    def at(self, labels: Tensor, policy_logp: Tensor) -> Distribution:
        """This reference beside the labels [n] and the policy [n, V] of a chunk."""
        return Distribution(
            labels,
            expand=partial(self._expand, policy_logp),
            known={name: values.to(policy_logp.dtype) for name, values in self.label_scalars.items()},
            is_exact=self.detail == "full",
            stored=partial(self._support, policy_logp),
        )

    def _expand(self, policy_logp: Tensor) -> Tensor:
        if self.counts is not None and self.indices is not None:
            return _frequencies(self.indices, self.counts, policy_logp)
        support = self._support(policy_logp)
        return self._full(policy_logp) if support is None else complete(*support, policy_logp, self.tail)

    def _full(self, policy_logp: Tensor) -> Tensor:
        """Over the policy's vocabulary and in its dtype: what is stored in bf16 is rounded, not computed with."""
        if self.rows is None:
            names = ", ".join(self.label_scalars)
            raise QTargetError(f"more of this reference was asked for than its label scalars ({names})")
        products = self.multiplied()
        if products.head is None or products.rows is None:
            return _align(self.rows.to(policy_logp.dtype), policy_logp.shape[1])
        logits = products.head.finished(products.rows)
        return _align(torch.log_softmax(logits.to(policy_logp.dtype), dim=-1), policy_logp.shape[1])

    def _support(self, policy_logp: Tensor) -> tuple[Tensor, Tensor] | None:
        """Token ids and log-probabilities [n, k], where this is a top-k reference."""
        if self.indices is not None and self.rows is not None:
            return self.indices, self.rows.to(policy_logp.dtype)
        if self.keep is None:
            return None
        topk, indices = self._full(policy_logp).topk(min(self.keep, policy_logp.shape[1]), dim=-1)
        return indices, topk


def _frequencies(indices: Tensor, counts: Tensor, policy_logp: Tensor) -> Tensor:
    """log q̂ [n, V], −∞ where nothing was drawn."""
    shares = counts.to(policy_logp.dtype)
    shares = shares / shares.sum(-1, keepdim=True)
    return torch.zeros_like(policy_logp).scatter_add_(1, indices, shares).log_()


def complete(indices: Tensor, topk: Tensor, policy_logp: Tensor, tail: str) -> Tensor:
    """log π [n, V] from its k likeliest tokens: `kept` [n, k] at `indices`, the others by the rule `tail`."""
    mass = topk.logsumexp(-1, keepdim=True)
    others = policy_logp.scatter(1, indices, -torch.inf)
    if tail == "renormalised":
        return torch.full_like(policy_logp, -torch.inf).scatter(1, indices, topk - mass)
    left = (-torch.expm1(mass)).clamp_min(torch.finfo(topk.dtype).tiny).log()  # rounding may fill the k to 1 and above
    if tail == "uniform":
        others = torch.where(torch.isneginf(others), others, 0.0)
    spread = others.logsumexp(-1, keepdim=True)
    return (others + torch.where(torch.isneginf(spread), 0.0, left - spread)).scatter(1, indices, topk)


def _align(logp: Tensor, vocab_size: int) -> Tensor:
    """Cut or pad log-probabilities to the policy's vocabulary: padded rows hold no probability on either side."""
    extra = vocab_size - logp.shape[1]
    if extra == 0:
        return logp
    if extra > 0:
        return torch.nn.functional.pad(logp, (0, extra), value=-torch.inf)
    lost = logp[:, vocab_size:].exp().sum(-1).max()
    if lost > 1e-4:
        raise QTargetError(
            f"the reference has {logp.shape[1]} vocabulary rows, the policy {vocab_size}, and the surplus rows hold "
            f"probability {lost:.2g}: they are real tokens. Use a reference with the policy's tokenizer"
        )
    return torch.log_softmax(logp[:, :vocab_size], dim=-1)
