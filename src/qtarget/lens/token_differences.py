"""What a model's tokens show of designs beside another one: their whole targets, subtracted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from qtarget.data.batch import Batch
from qtarget.errors import QTargetError
from qtarget.lens.differences import Alternative, DesignDifference, TokenDifference, ratio
from qtarget.math.loss import IGNORE, LossOutput
from qtarget.measures import Measure
from qtarget.plot.looks import Mark

MOST_BYTES = 2**32
"""Of one design's targets over the whole vocabulary; two of them and their difference are in memory at a time."""
LARGEST = 3  # other tokens that are named of each difference
TARGET = Measure(
    "whole_target",
    "target",
    "",
    None,
    "Q = p − ∂L/∂z over the whole vocabulary, [n, V]",
    lambda scored: scored.view.policy.p - scored.gradient,
)
Losses = Callable[[str], LossOutput]
"""A design's name → its loss on the batch, with `TARGET` among its measures."""


def check_room(batch: Batch, vocab_size: int) -> None:
    """Raises QTargetError where whole targets of the batch would not fit `MOST_BYTES`."""
    count, rows = int((batch.labels != IGNORE).sum()), len(batch.labels)
    size = 4 * count * vocab_size
    if size > MOST_BYTES:
        fitting = max(1, rows * MOST_BYTES // size)
        mend = f"set rows={fitting}" if rows > 1 else "give shorter rows, such as data.max_tokens=…"
        raise QTargetError(
            f"--against subtracts targets over the whole vocabulary: {count} supervised tokens × {vocab_size} entries "
            f"are {size / 1e9:.1f} GB, and at most {MOST_BYTES / 1e9:.1f} GB are taken; {mend}"
        )


@dataclass(frozen=True)
class TokenDifferences:
    """Designs beside the one called `other` on the rows of a batch. text: of a token id, to name it."""

    losses: Losses
    other: str
    batch: Batch
    text: Callable[[int], str]

    def rows(self, marks: Mapping[str, Mark]) -> Iterator[tuple[DesignDifference, ...]]:
        """Row by row, every design of `marks` but `other` itself."""
        counts = (self.batch.labels != IGNORE).sum(-1).tolist()
        base = self.losses(self.other)
        by_design = {name: self._tokens(self.losses(name), base) for name in marks if name != self.other}
        start = 0
        for count in counts:
            part = slice(start, start + count)
            yield tuple(
                DesignDifference(marks[name], self.other, tuple(tokens[part])) for name, tokens in by_design.items()
            )
            start += count

    def _tokens(self, own: LossOutput, base: LossOutput) -> Sequence[TokenDifference]:
        labels = self.batch.labels[self.batch.labels != IGNORE]
        delta = own.of(TARGET.name) - base.of(TARGET.name)
        columns = {
            "label": delta.gather(1, labels[:, None]).squeeze(1).tolist(),
            "distance": (delta.abs().sum(-1) / 2).tolist(),
            "gradient": _ratios(own.trust, base.trust),
            "weight": _ratios(own.weight, base.weight),
            "largest": list(self._largest(delta.scatter(1, labels[:, None], 0.0))),
        }
        return [TokenDifference(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]

    def _largest(self, delta: Tensor) -> Iterator[tuple[Alternative, ...]]:
        places = delta.abs().topk(min(LARGEST, delta.shape[1] - 1), dim=-1).indices
        for ids, values in zip(places.tolist(), delta.gather(1, places).tolist(), strict=True):
            yield tuple(Alternative(self.text(token), value) for token, value in zip(ids, values, strict=True))


def _ratios(own: Tensor, other: Tensor) -> list[float | None]:
    return [ratio(a, b) for a, b in zip(own.tolist(), other.tolist(), strict=True)]
