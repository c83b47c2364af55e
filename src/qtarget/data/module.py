"""Demonstrations prepared for training and evaluation, as a LightningDataModule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Protocol

import lightning as L
from torch.utils.data import DataLoader, DistributedSampler
from transformers import PreTrainedTokenizerBase

from qtarget import checks
from qtarget.data.chat import ChatFormat
from qtarget.data.collate import Collate, Pack
from qtarget.data.example import Demonstration, Example
from qtarget.data.noise import Noise, NoNoise
from qtarget.data.pack import pack
from qtarget.data.ranks import rank_and_world
from qtarget.data.window import WindowedLoader
from qtarget.errors import QTargetError

TRUNCATIONS = ("error", "drop", "cut")


class Source(Protocol):
    """Where demonstrations come from; rows with an `entry` can be asked of a model and judged."""

    def rows(self, split: str, count: int | None) -> list[Demonstration]: ...


@dataclass(frozen=True)
class DataConfig:
    """Which demonstrations, how many, how noisy.

    rows: training demonstrations, to which noise is applied. reserve_rows: clean ones from a split of their own, added
    unspoilt. heldout_rows: clean ones for evaluation. truncation of rows longer than max_length (None: the model's
    context): "error", "drop" the row, or "cut" its end. packing: training rows of up to so many tokens hold several
    demonstrations that don't see each other; None: one each.
    """

    source: Source
    rows: int | None
    reserve_rows: int = 0
    heldout_rows: int | None = 400
    noise: Noise = field(default_factory=NoNoise)
    max_length: int | None = None
    truncation: str = "error"
    packing: int | None = None

    def __post_init__(self) -> None:
        checks.choice("data.truncation", self.truncation, TRUNCATIONS)


@dataclass(frozen=True)
class Prepared:
    """Tokenised demonstrations, and what happened to them on the way.

    rows: the training ones as they go into batches, each by itself or packed.
    """

    train: Sequence[Example]
    heldout: Sequence[Example]
    heldout_rows: Sequence[Demonstration]
    counts: dict[str, int]
    rows: Sequence[Example] | Sequence[Pack]


def prepare(config: DataConfig, tokenizer: PreTrainedTokenizerBase, context: int) -> Prepared:
    """Read, spoil, tokenise and measure. Everything a row can be wrong about is said here, before a model is loaded."""
    chat = ChatFormat(tokenizer)
    spoilt = config.noise(config.source.rows("train", config.rows))
    reserve = config.source.rows("reserve", config.reserve_rows)
    heldout = config.source.rows("heldout", config.heldout_rows)
    limit = min(config.max_length or context, context)
    train = _fit([chat.encode(row) for row in (*spoilt, *reserve)], limit, config.truncation)
    heldout_examples = _fit([chat.encode(row) for row in heldout], limit, config.truncation)
    rows_fit = {example.row for example in heldout_examples}
    kept = [row for row in heldout if row.row in rows_fit]
    if not train:
        raise QTargetError(
            f"no training row is left of {config.source}: ask for more rows, or give a file that has some"
        )
    counts = {
        "train": len(train),
        "noisy": sum(any(example.wrong) for example in train),
        "reserve": len(reserve),
        "heldout": len(kept),
        "dropped": len(spoilt) + len(reserve) - len(train),
    }
    train, heldout_examples = _placed(train), _placed(heldout_examples)
    rows = train if config.packing is None else pack(train, _pack_length(config.packing, train, limit))
    return Prepared(train, heldout_examples, kept, counts, rows)


def _placed(examples: Sequence[Example]) -> list[Example]:
    """Told where their supervised tokens stand among those of all."""
    starts = accumulate((example.labels for example in examples), initial=0)
    return [replace(example, place=start) for example, start in zip(examples, starts, strict=False)]


def _pack_length(packing: int, examples: Sequence[Example], context: int) -> int:
    longest = max(map(len, examples))
    if not longest <= packing <= context:
        raise QTargetError(
            f"data.packing must lie between the longest row ({longest} tokens) and the longest allowed ({context}, "
            f"from the model's context or data.max_length), got {packing}"
        )
    return packing


def _fit(examples: list[Example], limit: int, truncation: str) -> list[Example]:
    too_long = [example for example in examples if len(example) > limit]
    if not too_long:
        return examples
    if truncation == "error":
        worst = max(too_long, key=len)
        raise QTargetError(
            f"{len(too_long)} of {len(examples)} rows are longer than {limit} tokens (the longest, row {worst.row}, "
            f"has {len(worst)}): set data.truncation=drop or =cut, or raise data.max_length up to the model's context"
        )
    if truncation == "drop":
        return [example for example in examples if len(example) <= limit]
    return [_cut(example, limit) for example in examples]


def _cut(example: Example, limit: int) -> Example:
    cut = replace(
        example,
        input_ids=example.input_ids[:limit],
        supervised=example.supervised[:limit],
        columns={name: column[:limit] for name, column in example.columns.items()},
    )
    if not any(cut.supervised):
        raise QTargetError(
            f"row {example.row}: cut to {limit} tokens, no supervised token is left; use truncation=drop"
        )
    return cut


def steps_an_epoch(rows: int, *, batch_size: int, accumulate: int, world: int) -> int:
    """Optimizer steps in which `world` ranks read `rows` once; a short rest makes a micro-batch, and a step, too."""
    batches = math.ceil(math.ceil(rows / world) / batch_size)
    return math.ceil(batches / accumulate)


class SFTData(L.LightningDataModule):
    """Training micro-batches with their StepWindow, in an order fixed by `seed` and the epoch."""

    def __init__(
        self,
        rows: Sequence[Example] | Sequence[Pack],
        pad_id: int,
        *,
        batch_size: int,
        accumulate: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.rows, self.collate = rows, Collate(pad_id)
        self.batch_size, self.accumulate, self.seed = batch_size, accumulate, seed

    def train_dataloader(self) -> WindowedLoader:
        rank, world = rank_and_world()
        rows: Any = self.rows  # torch asks for a Dataset and takes any sequence
        sampler: DistributedSampler[Example] = DistributedSampler(rows, world, rank, seed=self.seed)
        loader = DataLoader(rows, batch_size=self.batch_size, sampler=sampler, collate_fn=self.collate)
        return WindowedLoader(loader, self.accumulate)
