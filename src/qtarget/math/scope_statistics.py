"""Statistics of a sequence, a batch or a whole optimizer step, for designs that look beyond single tokens.

A part that does has a `scope` and a method `statistic(table) → [N]`; the loss works it out once over the tokens of the
scope and hands each chunk its rows as `view.statistic(part)`. Rows are never split over micro-batches, so what is said
of a sequence is the same however a batch is cut; a step's statistics have to be made from all its micro-batches, and
given to the loss as `statistics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor

from qtarget.errors import QTargetError

SCOPES = ("sequence", "batch", "step")
"""How far a statistic looks: one row; the tokens of one call (a micro-batch on one rank); the optimizer step."""


class UnknownSequencesError(QTargetError):
    """A design looks at whole sequences, and nothing says which tokens make one."""


@dataclass(frozen=True)
class TokenTable:
    """Scalars of all N tokens in a scope.

    label_logp: source → log-probability of the label [N]; sequence_ids [N], None where nothing is said of sequences.
    """

    label_logp: Mapping[str, Tensor]
    labels: Tensor
    sequence_ids: Tensor | None = None
    progress: float = 0.0

    def to(self, device: torch.device | str) -> TokenTable:
        """The same table on another device."""
        ids = None if self.sequence_ids is None else self.sequence_ids.to(device)
        moved = {source: values.to(device) for source, values in self.label_logp.items()}
        return TokenTable(moved, self.labels.to(device), ids, self.progress)

    def sequence_means(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of `values` [N] per sequence [S], and for each token the number of its sequence [N]."""
        place, count = self.sequences()
        sums = values.new_zeros(count).index_add_(0, place, values)
        return sums / torch.bincount(place, minlength=count), place

    def sequences(self) -> tuple[Tensor, int]:
        """For each token the number of its sequence [N], and how many there are. Raises QTargetError where unknown."""
        if self.sequence_ids is None:
            raise UnknownSequencesError(
                "this design looks at whole sequences: give labels as [B, T] rows, or sequence_ids shaped as the labels"
            )
        found, place = torch.unique(self.sequence_ids, return_inverse=True)
        return place, len(found)

    @classmethod
    def join(cls, tables: Sequence[TokenTable]) -> TokenTable:
        """One table of several micro-batches; no sequence stands in two of them."""
        first = tables[0]
        ids, offset = [], 0
        for table in tables if first.sequence_ids is not None else ():
            place, count = table.sequences()
            ids.append(place + offset)
            offset += count
        return cls(
            {source: torch.cat([table.label_logp[source] for table in tables]) for source in first.label_logp},
            torch.cat([table.labels for table in tables]),
            torch.cat(ids) if ids else None,
            first.progress,
        )


def parts(design: object) -> Iterator[object]:
    """A design and everything it is composed of."""
    yield design
    if is_dataclass(design):
        for field in fields(design):
            value = getattr(design, field.name)
            if callable(value):
                yield from parts(value)


def surveying(design: object, scopes: Sequence[str] = SCOPES) -> list[object]:
    """The parts of a design that look beyond single tokens, as far as one of `scopes`."""
    return [part for part in parts(design) if hasattr(part, "statistic") and getattr(part, "scope", None) in scopes]


def statistics_of(design: object, table: TokenTable, scopes: Sequence[str] = SCOPES) -> dict[object, Tensor]:
    """part → its statistic [N] over the tokens of `table`, for the parts of a design with one of `scopes`."""
    return {part: part.statistic(table) for part in surveying(design, scopes)}  # type: ignore[attr-defined]
