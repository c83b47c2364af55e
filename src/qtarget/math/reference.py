"""What is known of a frozen distribution, per supervised token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from qtarget.errors import QTargetError
from qtarget.math.head import Head, matmul_dtype


@dataclass(frozen=True)
class Reference:
    """A frozen distribution (prior or teacher) at N supervised tokens, in the thinnest form that was available.

    Build one with `full`, `hidden` or `label`. `hidden` is expanded chunk by chunk, so nobody ever holds N × V.
    """

    rows: Tensor | None = None  # [N, V] log-probabilities, or [N, D] hidden states where `head` is given
    head: Head | None = None
    labels: Tensor | None = None  # [N], with `statistics`
    statistics: Mapping[str, Tensor] | None = None  # name → [N]

    @classmethod
    def full(cls, logp: Tensor) -> Reference:
        """From normalised log-probabilities [N, V]."""
        return cls(rows=logp.detach())

    @classmethod
    def hidden(cls, hidden: Tensor, head: Head) -> Reference:
        """From last hidden states [N, D] and the head that turns them into the exact full distribution."""
        return cls(rows=hidden.detach(), head=head)

    @classmethod
    def label(cls, labels: Tensor, statistics: Mapping[str, Tensor]) -> Reference:
        """From per-token scalars: statistics["logp"] [N] is log π(y), for the labels [N] it was computed with."""
        return cls(labels=labels, statistics=dict(statistics))

    def __len__(self) -> int:
        tensor = self.labels if self.rows is None else self.rows
        assert tensor is not None
        return tensor.shape[0]

    def select(self, index: Tensor | slice) -> Reference:
        """The same reference for some of the tokens."""
        return replace(
            self,
            rows=None if self.rows is None else self.rows[index],
            labels=None if self.labels is None else self.labels[index],
            statistics=None if self.statistics is None else {k: v[index] for k, v in self.statistics.items()},
        )

    def at(self, labels: Tensor, vocab_size: int) -> ReferenceView:
        return ReferenceView(self, labels, vocab_size)


@dataclass(frozen=True)
class ReferenceView:
    """One chunk of a reference, beside the labels [n] of that chunk. Computed on first use, in fp32 (fp64 stays)."""

    reference: Reference
    labels: Tensor
    vocab_size: int

    @cached_property
    def logp(self) -> Tensor:
        """log π [n, V] over the policy's vocabulary. Raises QTargetError where only label statistics are held."""
        rows, head = self.reference.rows, self.reference.head
        if rows is None:
            raise QTargetError("the full distribution of this reference was asked for; it holds label statistics only")
        logp = rows if head is None else torch.log_softmax(head.logits(rows, matmul_dtype(rows)), dim=-1)
        return _align(logp, self.vocab_size)

    @cached_property
    def label_logp(self) -> Tensor:
        """log π(y) [n]."""
        if self.reference.statistics is None:
            return self.logp.gather(1, self.labels[:, None]).squeeze(1)
        if not torch.equal(self.reference.labels, self.labels):  # type: ignore[arg-type]
            raise QTargetError(
                "the reference's label statistics belong to other labels than the batch's: rows, tokenizer, template "
                "or truncation differ from those it was computed with"
            )
        return self.reference.statistics["logp"]


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
