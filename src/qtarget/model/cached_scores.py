"""What a cache stores of a frozen model at each supervised token, and how it is read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from qtarget import checks
from qtarget.math.distribution import LABEL_SCALARS, TOP, Distribution
from qtarget.math.head import Head, matmul_dtype
from qtarget.math.reference import Reference
from qtarget.math.tokens import IGNORE, default_chunk
from qtarget.model.frozen import Inputs
from qtarget.model.policy import Policy
from qtarget.model.provide import DTYPES

DETAILS_ON_DISK = ("label", "topk", "hidden")
ON_DISK = "statistics"
"""What the tensor of label scalars is called in a shard."""


@dataclass(frozen=True)
class Recipe:
    """How much is stored of each token, and how exactly. detail, thinnest first:

        label     the five scalars of `LABEL_SCALARS`, fp32: 20 bytes
        topk      the `topk` likeliest token ids (int32) and their log-probabilities (fp32): 8·k bytes
        hidden    the last hidden state in `dtype`; a product with the head, stored once, gives the exact distribution

    precision: of the model's products while it scores, as trainer.precision.
    """

    detail: str
    topk: int
    dtype: str
    precision: str

    def __post_init__(self) -> None:
        checks.choice("detail", self.detail, DETAILS_ON_DISK)
        checks.choice("store_dtype", self.dtype, tuple(DTYPES))
        checks.whole("topk", self.topk, 1)

    def token_bytes(self, hidden_size: int) -> int:
        """Bytes on disk per supervised token."""
        sizes = {"label": 4 * len(LABEL_SCALARS), "topk": 8 * self.topk}
        return sizes.get(self.detail) or DTYPES[self.dtype].itemsize * hidden_size

    def __str__(self) -> str:
        """What the numbers depend on, and nothing else."""
        how = {"label": "", "topk": f" {self.topk}", "hidden": f" {self.dtype}"}[self.detail]
        return f"{self.detail}{how}, scored in {self.precision}"

    @property
    def head_dtype(self) -> torch.dtype:
        """That of products: under bf16 a wider head would be rounded at every use."""
        return torch.bfloat16 if self.precision == "bf16-mixed" else torch.float32

    @torch.no_grad()
    def scores(self, policy: Policy, batch: Inputs) -> dict[str, Tensor]:
        """name → [N, …] of the N supervised tokens of a batch, in the order of their positions."""
        supervised, device = batch.labels != IGNORE, batch.labels.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            hidden = policy(batch.input_ids, batch.position_ids)[supervised]
            dtype = matmul_dtype(hidden)
        if self.detail == "hidden":
            return {"hidden": hidden.to(DTYPES[self.dtype])}
        head = policy.head.cast(dtype)
        with torch.autocast(device, enabled=False):  # it would round sums
            pieces = [self._of_chunk(h, y, head) for h, y in _chunks(hidden.to(dtype), batch.labels[supervised], head)]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]} if pieces else {}

    def _of_chunk(self, hidden: Tensor, labels: Tensor, head: Head) -> dict[str, Tensor]:
        logits = head.logits(hidden, hidden.dtype)
        known = Distribution(labels, partial(torch.log_softmax, logits, dim=-1))
        if self.detail == "label":
            return {ON_DISK: _label_scalars(known)}
        logp, indices = known.logp.topk(min(self.topk, logits.shape[1]), dim=-1)
        return {"indices": indices.int(), "logp": logp}

    def reference(self, stored: Mapping[str, Tensor], labels: Tensor, head: Head | None, tail: str) -> Reference:
        """From what `scores` made of the supervised tokens with these labels [N]."""
        if self.detail == "label":
            columns = stored[ON_DISK].unbind(-1)
            reference = Reference(labels=labels, label_scalars=dict(zip(LABEL_SCALARS, columns, strict=True)))
        elif self.detail == "topk":
            reference = Reference(rows=stored["logp"], indices=stored["indices"].long(), tail=tail)
        else:
            assert head is not None
            reference = Reference.hidden(stored["hidden"].to(head.weight.dtype), head)
        return reference.of_supervised()


def _label_scalars(known: Distribution) -> Tensor:
    """[n, 5], in the order of `LABEL_SCALARS`."""
    top = known.top_entropy(TOP)
    return torch.stack([known.label_logp, known.entropy, top, known.outranked, known.concentration], dim=-1)


def _chunks(hidden: Tensor, labels: Tensor, head: Head) -> list[tuple[Tensor, Tensor]]:
    size = default_chunk(len(head.weight))
    return list(zip(hidden.split(size), labels.split(size), strict=True)) if len(labels) else []
