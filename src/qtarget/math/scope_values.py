"""Scope values: what a part of a design makes of a whole sequence, batch or optimizer step, one number a token.

    class Part:
        scope = "sequence"                           # or "batch", "step"
        def scope_value(self, table): ...            # [N], once, from all N tokens of the scope
        def __call__(self, view): ...                # reads its n of them by view.scope_value(self)

A sequence is never split over micro-batches, so its values are the same however a batch is cut. Those of a step are
made from the tables of all its micro-batches, and given to the loss as `scope_values`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from qtarget.errors import QTargetError

SCOPES = ("sequence", "batch", "step")
"""How far a part looks: one row; the tokens of one call (a micro-batch on one rank); the optimizer step."""


class UnknownSequencesError(QTargetError):
    """A design looks at whole sequences, and nothing says which tokens make one."""


@dataclass(frozen=True)
class TokenTable:
    """Scalars of all N tokens in a scope.

    label_logp: source → log-probability of the label [N]; sequence_ids [N], None where nothing is said of sequences.
    entropy: source → entropy [N] in nats, of the sources that a part names as its `entropy_of`.
    """

    label_logp: Mapping[str, Tensor]
    labels: Tensor
    sequence_ids: Tensor | None = None
    progress: float = 0.0
    entropy: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> TokenTable:
        """The same table on another device."""
        ids = None if self.sequence_ids is None else self.sequence_ids.to(device)
        logp, entropy = (
            {source: values.to(device) for source, values in held.items()} for held in (self.label_logp, self.entropy)
        )
        return TokenTable(logp, self.labels.to(device), ids, self.progress, entropy)

    def sequence_means(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of `values` [N] per sequence [S], and for each token the number of its sequence [N]."""
        sequence, count = self.sequences()
        sums = values.new_zeros(count).index_add_(0, sequence, values)
        return sums / torch.bincount(sequence, minlength=count), sequence

    def sequences(self) -> tuple[Tensor, int]:
        """For each token the number of its sequence [N], and how many there are. Raises QTargetError where unknown."""
        if self.sequence_ids is None:
            raise UnknownSequencesError(
                "this design looks at whole sequences: give labels as [B, T] rows, or sequence_ids shaped as the labels"
            )
        distinct, sequence = torch.unique(self.sequence_ids, return_inverse=True)
        return sequence, len(distinct)

    def largest(self, values: Tensor, keep: float, scope: str) -> Tensor:
        """1 for the share `keep` with the largest of `values` [N] in each sequence, or of all; of ties the earlier."""
        groups = self.sequences()[0] if scope == "sequence" else torch.zeros_like(self.labels)
        kept = torch.zeros_like(values)
        for group in torch.unique(groups):
            members = (groups == group).nonzero().squeeze(1)
            order = values[members].argsort(descending=True, stable=True)
            kept[members[order[: max(1, round(keep * len(members)))]]] = 1.0
        return kept

    @classmethod
    def join(cls, tables: Sequence[TokenTable]) -> TokenTable:
        """One table of several micro-batches; no sequence stands in two of them."""
        first = tables[0]
        ids, offset = [], 0
        for table in tables if first.sequence_ids is not None else ():
            sequence, count = table.sequences()
            ids.append(sequence + offset)
            offset += count
        return cls(
            {source: torch.cat([table.label_logp[source] for table in tables]) for source in first.label_logp},
            torch.cat([table.labels for table in tables]),
            torch.cat(ids) if ids else None,
            first.progress,
            {source: torch.cat([table.entropy[source] for table in tables]) for source in first.entropy},
        )


def design_parts(design: object) -> Iterator[object]:
    """A design and everything it is composed of."""
    yield design
    if is_dataclass(design):
        for field in fields(design):
            value = getattr(design, field.name)
            if callable(value):
                yield from design_parts(value)


def scoped_parts(design: object, scopes: Sequence[str] = SCOPES) -> list[object]:
    """The parts of a design that look beyond single tokens, as far as one of `scopes`."""
    return [part for part in design_parts(design) if _reader(part) and getattr(part, "scope", None) in scopes]


def scope_values_of(design: object, table: TokenTable, scopes: Sequence[str] = SCOPES) -> dict[object, Tensor]:
    """part → its scope value [N] over the tokens of `table`, for the parts of a design with one of `scopes`."""
    return {part: _reader(part)(table) for part in scoped_parts(design, scopes)}


def _reader(part: object) -> Any:
    """A part's method; `statistic` is its earlier name."""
    return getattr(part, "scope_value", None) or getattr(part, "statistic", None)
