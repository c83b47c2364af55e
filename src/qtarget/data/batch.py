"""Examples → micro-batches that know their optimizer step. Labels are shifted here, once, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from qtarget.data.example import Example
from qtarget.data.packing import Pack
from qtarget.math.loss import IGNORE
from qtarget.parallel import all_reduce_sum, rank_and_world


@dataclass(frozen=True)
class StepWindow:
    """tokens, sequences: supervised tokens, and rows that have some, of the whole optimizer step over all ranks.

    averaging_factor: accumulate·world. Lightning divides every micro-batch's loss by `accumulate`, and DDP averages
    gradients over `world` ranks: times this factor they are sums again, which are divided once, by the whole step's.
    batches: the step's micro-batches on this rank, of which this is number `index`.
    """

    tokens: int
    sequences: int
    averaging_factor: int
    batches: tuple[Batch, ...] = ()
    index: int = 0

    @property
    def per_token_scale(self) -> float:
        """What one token's loss is multiplied by so that the optimizer sees Σ loss / tokens."""
        return self.averaging_factor / max(self.tokens, 1)


@dataclass(frozen=True, eq=False)
class Batch:
    """B rows padded on the right to T positions.

    input_ids [B, T] int64; labels [B, T] int64, labels[b, t] is the token after input_ids[b, t] where that is
    supervised and −100 elsewhere; columns: name → [B, T], aligned with labels; label_indices [B, T]: which of the data
    set's supervised tokens a label is, from 0 (−1 where there is none); position_ids [B, T] where several
    demonstrations share a row: each counts its own from 0; weights [B, T] fp32, aligned with labels: what the data
    multiplies a token's loss by, above 0 where it is supervised and 0 elsewhere (None: 1 for all); window: the
    optimizer step this micro-batch belongs to (None outside training); real_tokens: of demonstrations that teach
    something, padding aside; lengths: of each row, the tokens of its demonstrations (None: not known). No attention
    mask: padding stands after every real token and attention is causal, so nothing real ever sees it; and in packed
    rows a mask would hide from transformers where the demonstrations begin.
    """

    input_ids: Tensor
    labels: Tensor
    columns: Mapping[str, Tensor]
    label_indices: Tensor
    position_ids: Tensor | None = None
    weights: Tensor | None = None
    window: StepWindow | None = None
    real_tokens: int = 0
    lengths: tuple[tuple[int, ...], ...] | None = None

    @property
    def supervised(self) -> int:
        return int((self.labels != IGNORE).sum())

    @property
    def data_weights(self) -> Tensor | float:
        """Those of the supervised tokens [N], in the order of their positions; 1.0 where the data says nothing."""
        return 1.0 if self.weights is None else self.weights[self.labels != IGNORE]

    @property
    def sequence_ids(self) -> Tensor:
        """[B, T]: which demonstration of the batch a position belongs to, from 0; padding may be one of its own."""
        if self.position_ids is None:
            rows, width = self.labels.shape
            return torch.arange(rows, device=self.labels.device)[:, None].expand(rows, width)
        return ((self.position_ids == 0).flatten().cumsum(0) - 1).view_as(self.labels)

    @property
    def sequences(self) -> int:
        """Demonstrations with a supervised token."""
        return len(self.sequence_ids[self.labels != IGNORE].unique())

    @property
    def sequence_lengths(self) -> Tensor:
        """[B, T]: how many supervised tokens the demonstration of a position has."""
        ids = self.sequence_ids
        counts = torch.bincount(ids[self.labels != IGNORE], minlength=int(ids.max()) + 1)
        return counts[ids]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        columns = {name: move(column) for name, column in self.columns.items()}
        return replace(
            self,
            input_ids=move(self.input_ids),
            labels=move(self.labels),
            columns=columns,
            label_indices=move(self.label_indices),
            position_ids=None if self.position_ids is None else move(self.position_ids),
            weights=None if self.weights is None else move(self.weights),
        )


@dataclass(frozen=True)
class Collate:
    """Callable for a DataLoader: a list of examples, or of packs of them → Batch."""

    pad_id: int

    def __call__(self, rows: Sequence[Example] | Sequence[Pack]) -> Batch:
        packs = [row if isinstance(row, tuple) else (row,) for row in rows]
        batch = self._padding(len(packs), max(sum(map(len, pack)) for pack in packs), packs[0][0].columns)
        for row, pack in enumerate(packs):
            start = 0
            for example in pack:
                _write(batch, row, slice(start, start + len(example)), example)
                start += len(example)
        examples = [example for pack in packs for example in pack]
        return replace(
            batch,
            real_tokens=sum(len(example) for example in examples if any(example.supervised)),
            position_ids=batch.position_ids if rows[0] is packs[0] else None,
            weights=batch.weights if any(example.weights is not None for example in examples) else None,
            lengths=tuple(tuple(map(len, pack)) for pack in packs),
        )

    def _padding(self, rows: int, width: int, columns: Iterable[str]) -> Batch:
        return Batch(
            input_ids=torch.full((rows, width), self.pad_id),
            labels=torch.full((rows, width), IGNORE),
            columns={name: torch.zeros(rows, width, dtype=torch.bool) for name in columns},
            label_indices=torch.full((rows, width), -1),
            position_ids=torch.arange(width).repeat(rows, 1),
            weights=torch.zeros(rows, width),
        )


def _write(batch: Batch, row: int, at: slice, example: Example) -> None:
    """One demonstration into its part of a row."""
    assert batch.position_ids is not None
    assert batch.weights is not None
    ids, supervised = torch.tensor(example.input_ids), torch.tensor(example.supervised)[1:]
    shifted = slice(at.start, at.stop - 1)
    batch.input_ids[row, at] = ids
    batch.position_ids[row, at] = torch.arange(len(ids))
    batch.labels[row, shifted] = torch.where(supervised, ids[1:], IGNORE)
    batch.label_indices[row, shifted] = torch.where(supervised, example.first_label + supervised.cumsum(0) - 1, -1)
    weights = torch.ones(len(supervised)) if example.weights is None else torch.tensor(example.weights)[1:].float()
    batch.weights[row, shifted] = torch.where(supervised, weights, 0.0)
    for name, column in batch.columns.items():
        column[row, shifted] = torch.tensor(example.columns[name])[1:]


@dataclass(frozen=True)
class WindowedLoader:
    """Wraps a loader: reads the micro-batches of a coming optimizer step, then hands them out with their StepWindow."""

    loader: Iterable[Batch]
    accumulate: int = 1

    @property
    def sampler(self) -> object:
        """Lightning looks for it here, to tell it the epoch."""
        return getattr(self.loader, "sampler", None)

    def __len__(self) -> int:
        assert isinstance(self.loader, Sized)
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while micro_batches := list(islice(batches, self.accumulate)):
            window = step_window(micro_batches, self.accumulate * rank_and_world()[1])
            for index, batch in enumerate(micro_batches):
                yield replace(batch, window=replace(window, index=index))


def step_window(batches: Sequence[Batch], undo: int, device: torch.device | None = None) -> StepWindow:
    """The optimizer step of these micro-batches of this rank. Collective; device: where counts travel."""
    counts = torch.tensor([(batch.supervised, batch.sequences) for batch in batches], device=device).sum(0)
    tokens, sequences = all_reduce_sum(counts).tolist()
    return StepWindow(tokens, sequences, undo, tuple(batches))
