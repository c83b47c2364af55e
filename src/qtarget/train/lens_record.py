"""What the design makes of a few training rows while training goes on: a line a step, for `qtarget lens RUN`.

lens.jsonl of a run's folder holds the rows in its first line, and then a line for every step that is recorded:

    {"rows": [{"row": 3, "tokens": [["What is 1+1?", 0], ["2", 1], ["<|end|>", 2]]}]}
    {"step": 10, "texts": {"17": "3"}, "rows": [[{"p": 0.2, "q": 1.0, "trust": 1.0, …, "top": [[17, 0.4, 0.0]]}, …]]}

A token stands with its text and 0 (not recorded), 1 (recorded) or 2 (recorded, and made wrong by noise). A step has,
for each recorded token in order, p(y) and Q(y) = p(y) − ∂L/∂z(y), the measures of the lens, and the other tokens with
the largest max(p, |Q|): id, p, Q.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor

from qtarget.data.batch import Batch, Collate
from qtarget.data.example import Example
from qtarget.data.token_text import UNFINISHED, pieces, token_text
from qtarget.errors import QTargetError
from qtarget.math.loss import IGNORE, LossOutput
from qtarget.math.scoring import ChunkTokens
from qtarget.measures import MEASURES, Measure
from qtarget.model.policy import evaluating
from qtarget.train.lightning_module import QTargetModule

SEARCHED = 2000  # first training rows, among which those with noise are looked for
DIGITS = 6  # significant ones
SHOWN = tuple(measure.name for measure in MEASURES if measure.in_lens)
NOT_RECORDED, RECORDED, WRONG = 0, 1, 2


class LensFile(Protocol):
    """The record of a run, as far as it takes lines for the lens."""

    def lens(self, line: Mapping[str, Any]) -> None: ...
    def first_of_lens(self) -> Mapping[str, Any] | None: ...


@dataclass(frozen=True)
class LensRows:
    """The rows that are recorded: the first training ones, those with noise before the others.

    tokens: at most so many supervised tokens of each, around its first wrong one where it has one, else its first.
    top: other tokens of each.
    """

    examples: Sequence[Example]
    tokenizer: Any
    tokens: int
    top: int

    @classmethod
    def first(cls, train: Sequence[Example], tokenizer: Any, *, rows: int, tokens: int, top: int) -> LensRows:
        ordered = sorted(islice(train, SEARCHED), key=lambda example: not any(example.wrong))
        return cls(ordered[:rows], tokenizer, tokens, top)

    @cached_property
    def batch(self) -> Batch:
        return Collate(int(self.tokenizer.pad_token_id))(self.examples)

    @cached_property
    def windows(self) -> list[slice]:
        """Of each row, which of its supervised tokens are recorded."""
        return [self._window([example.wrong[place] for place in _labels(example)]) for example in self.examples]

    def _window(self, wrong: Sequence[bool]) -> slice:
        first = next((place for place, is_wrong in enumerate(wrong) if is_wrong), 0)
        start = max(0, min(first - self.tokens // 2, len(wrong) - self.tokens))
        return slice(start, min(start + self.tokens, len(wrong)))

    def described(self) -> dict[str, Any]:
        """The first line of the file."""
        rows = zip(self.examples, self.windows, strict=True)
        return {"rows": [{"row": example.row, "tokens": self._described(example, window)} for example, window in rows]}

    def _described(self, example: Example, window: slice) -> list[list[Any]]:
        """Tokens that aren't recorded are put together."""
        recorded = set(_labels(example)[window])
        described: list[list[Any]] = []
        for place, text in enumerate(pieces(self.tokenizer, example.input_ids)):
            kind = (WRONG if example.wrong[place] else RECORDED) if place in recorded else NOT_RECORDED
            if kind == NOT_RECORDED and described and described[-1][1] == NOT_RECORDED:
                described[-1][0] += text.replace(UNFINISHED, "")
            else:
                described.append([text if kind else text.replace(UNFINISHED, ""), kind])
        return described

    @torch.no_grad()
    def read(self, module: QTargetModule, step: int) -> dict[str, Any]:
        """The line of a step. Draws no random number; of a sharded policy collective."""
        earlier = module.measures
        module.measures = (*earlier, _distributions(self.top))
        try:
            with evaluating(module.policy):
                out = module.token_loss(self.batch.to(module.policy.lm.device), compiled=False)
        finally:
            module.measures = earlier
        values = list(_token_values(out))
        rows = [values[part] for part in self._recorded()]
        ids = {other[0] for row in rows for token in row for other in token["top"]}
        return {"step": step, "texts": {str(one): token_text(self.tokenizer, one) for one in sorted(ids)}, "rows": rows}

    def _recorded(self) -> Iterator[slice]:
        """The windows, counted among the supervised tokens of all rows."""
        counts = (self.batch.labels != IGNORE).sum(-1).tolist()
        start = 0
        for count, window in zip(counts, self.windows, strict=True):
            yield slice(start + window.start, start + window.stop)
            start += count


def _labels(example: Example) -> list[int]:
    """Places of the tokens that are predicted and supervised; the first token of a row is nobody's label."""
    return [place for place, supervised in enumerate(example.supervised) if supervised and place]


DISTRIBUTIONS = "lens_distributions"


def _distributions(top: int) -> Measure:
    """[n, 2 + 3·top] of each token: p(y), Q(y); ids, p and Q of the other tokens with the largest max(p, |Q|)."""

    def read(scored: ChunkTokens) -> Tensor:
        policy = scored.view.policy.p
        target = policy - scored.gradient
        label = scored.view.labels[:, None]
        size = torch.maximum(policy, target.abs()).scatter(1, label, -1.0)
        ids = size.topk(min(top, size.shape[1] - 1), dim=-1).indices
        places = torch.cat([label, ids], dim=1)
        return torch.cat([ids.to(policy.dtype), policy.gather(1, places), target.gather(1, places)], dim=1)

    return Measure(DISTRIBUTIONS, "", "", None, "policy and induced target", read)


def _token_values(out: LossOutput) -> Iterator[dict[str, Any]]:
    """What is recorded of each supervised token."""
    measures = {name: out.of(name).tolist() for name in SHOWN}
    for place, row in enumerate(out.of(DISTRIBUTIONS).tolist()):
        top = len(row) // 3
        ids, policy, target = row[:top], row[top : 2 * top + 1], row[2 * top + 1 :]
        others = zip(map(int, ids), map(_short, policy[1:]), map(_short, target[1:]), strict=True)
        scalars = {name: _short(values[place]) for name, values in measures.items()}
        yield {"p": _short(policy[0]), "q": _short(target[0]), **scalars, "top": [list(one) for one in others]}


def _short(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


class LensRecorder(L.Callback):
    """Records the rows before training, after every `every` optimizer steps and after the last.

    autocast: what the model reads under. Among callbacks it stands before the one that saves the run's state, which
    notes how long the file is: a run that goes on continues it where the state was saved. All ranks read, as a sharded
    policy has to; rank 0 writes.
    """

    def __init__(
        self, rows: LensRows, file: LensFile, every: int, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.rows, self.file, self.every, self.autocast = rows, file, every, autocast
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        self._begin()
        if not self._step:
            self._record(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # a step has several micro-batches
        self._step = trainer.global_step
        if self._step % self.every == 0 or self._step == trainer.max_steps:
            self._record(pl_module)

    def _record(self, module: L.LightningModule) -> None:
        assert isinstance(module, QTargetModule)
        with self.autocast():
            line = self.rows.read(module, self._step)
        self.file.lens(line)

    def _begin(self) -> None:
        """Write the rows, where no earlier attempt has. Raises QTargetError where it recorded other tokens."""
        rows, earlier = self.rows.described(), self.file.first_of_lens()
        if earlier is None:
            self.file.lens(rows)
        elif earlier != rows:
            raise QTargetError(
                "lens.jsonl of this run holds other tokens than lens.rows and lens.tokens now say: set them to what "
                "they were when it began, or resume=never to start afresh"
            )
