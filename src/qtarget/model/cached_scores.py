"""What a cache stores of a frozen model at each supervised token, and how it is read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from qtarget import checks
from qtarget.choices import DETAILS_ON_DISK, MOST_DRAWS
from qtarget.math.distribution import LABEL_SCALARS, TOP, Distribution
from qtarget.math.head import Head, matmul_dtype
from qtarget.math.reference import Reference
from qtarget.math.tokens import IGNORE, default_chunk, slices
from qtarget.model.draws import DISTINCT, drawn, packed, uniform, unpacked
from qtarget.model.frozen import Inputs
from qtarget.model.policy import Policy
from qtarget.model.provide import DTYPES

ON_DISK = "statistics"
"""What the tensor of label scalars is called in a shard."""


@dataclass(frozen=True)
class Recipe:
    """How much is stored of each token, and how exactly. detail, thinnest first:

        label     the five scalars of `LABEL_SCALARS`, fp32: 20 bytes
        sampled   `draws` independent draws: 3 bytes for each distinct token and its count, and 1 for how many there are
        topk      the `topk` likeliest token ids (int32) and their log-probabilities (fp32): 8·k bytes
        hidden    the last hidden state in `dtype`; a product with the head, stored once, gives the exact distribution

    precision: of the model's products while it scores, as trainer.precision. seed: of the draws.
    """

    detail: str
    topk: int
    dtype: str
    precision: str
    draws: int = MOST_DRAWS
    seed: int = 0

    def __post_init__(self) -> None:
        checks.choice("detail", self.detail, DETAILS_ON_DISK)
        checks.choice("store_dtype", self.dtype, tuple(DTYPES))
        checks.whole("topk", self.topk, 1)

    def token_bytes(self, hidden_size: int) -> int:
        """Bytes on disk per supervised token; of draws about, as few of them are distinct."""
        sampled = 1 + 3 * min(self.draws, DISTINCT)
        sizes = {"label": 4 * len(LABEL_SCALARS), "sampled": sampled, "topk": 8 * self.topk}
        return sizes.get(self.detail) or DTYPES[self.dtype].itemsize * hidden_size

    def __str__(self) -> str:
        """What the numbers depend on, and nothing else."""
        sampled = f" {self.draws} draws, seed {self.seed}"
        how = {"label": "", "sampled": sampled, "topk": f" {self.topk}", "hidden": f" {self.dtype}"}[self.detail]
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
            hidden = policy(batch.input_ids, batch.position_ids, batch.lengths)[supervised]
            dtype = matmul_dtype(hidden)
        if self.detail == "hidden":
            return {"hidden": hidden.to(DTYPES[self.dtype])}
        head, labels = policy.head.cast(dtype), batch.labels[supervised]
        at = self._uniform(batch.label_indices[supervised])
        with torch.autocast(device, enabled=False):  # it would round sums
            chunks = slices(len(labels), default_chunk(len(head.weight))) if len(labels) else []
            pieces = [self._of_chunk(hidden[rows].to(dtype), labels[rows], head, at[rows]) for rows in chunks]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]} if pieces else {}

    def _uniform(self, indices: Tensor) -> Tensor:
        """What the draws of some tokens are made of; nothing where none are drawn."""
        first = int(indices.min()) if len(indices) else 0
        return uniform(len(indices), self.draws if self.detail == "sampled" else 0, self.seed, first)

    def _of_chunk(self, hidden: Tensor, labels: Tensor, head: Head, at: Tensor) -> dict[str, Tensor]:
        logits = head.logits(hidden, hidden.dtype)
        known = Distribution(labels, partial(torch.log_softmax, logits, dim=-1))
        if self.detail == "label":
            return {ON_DISK: _label_scalars(known)}
        if self.detail == "sampled":
            return {"draws": drawn(known.logp, at)}
        logp, indices = known.logp.topk(min(self.topk, logits.shape[1]), dim=-1)
        return {"indices": indices.int(), "logp": logp}

    @staticmethod
    def are_numbers(values: Tensor) -> bool:
        """Whether the model gave numbers for every token: a draw from none is a token below 0."""
        return not bool((values.isnan() if values.is_floating_point() else values < 0).any())

    def on_disk(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What `scores` made of a shard's tokens, as it is written."""
        return packed(scores["draws"]) if self.detail == "sampled" and scores else scores

    def rows_of(self, shard: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """Some tokens of a shard as it was written, by their places in it."""
        if self.detail == "sampled":
            return unpacked(shard, rows)
        return {name: tensor[rows] for name, tensor in shard.items()}

    def reference(self, stored: Mapping[str, Tensor], labels: Tensor, head: Head | None, tail: str) -> Reference:
        """From what `scores` made of the supervised tokens with these labels [N]."""
        if self.detail == "label":
            columns = stored[ON_DISK].unbind(-1)
            reference = Reference(labels=labels, label_scalars=dict(zip(LABEL_SCALARS, columns, strict=True)))
        elif self.detail == "sampled":
            most = int((stored["counts"] > 0).sum(-1).max()) if len(labels) else 1
            reference = Reference(indices=stored["indices"][:, :most], counts=stored["counts"][:, :most])
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
