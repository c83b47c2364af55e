"""What a design wants to know of a whole optimizer step before its first backward: statistics, and a denominator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qtarget.data.batch import Batch, StepWindow
from qtarget.math.loss import LossOutput
from qtarget.math.scope_statistics import TokenTable, statistics_of, surveying
from qtarget.math.target import Design, counted
from qtarget.parallel import all_gather_objects, all_reduce_sum, rank_and_world

STEP = ("step",)
PULLED = ("kept", "weight_sum")
"""Normalizers that are known only once the design has looked at every token of the step."""


@dataclass(frozen=True)
class StepShare:
    """A micro-batch's part in its step: what multiplies its tokens' losses, and its rows of the step's statistics."""

    token_scale: Tensor | float
    statistics: Mapping[object, Tensor] = field(default_factory=dict)


def scoring_passes(design: Design) -> int:
    """How often the policy reads a step's tokens without gradients before it trains on them."""
    return bool(surveying(design, STEP)) + (normalizer(design) in PULLED)


def normalizer(design: Design) -> str:
    return str(getattr(design, "normalize", "tokens"))


@dataclass
class StepNormalizer:
    """Works out each micro-batch's share of its step, the same however the step is cut and spread over ranks.

    With d_t the weight that the data gives a token (row × message × span; a token of weight 0 is no label), a step's
    loss is Σ_t d_t·loss_t, divided by what `normalize` says: tokens, the number of tokens with d_t > 0; kept, those of
    them that the design pulls; weight_sum, Σ_t d_t·w_t, where w_t is the design's own weight, as in `mass`; sequences,
    (1/S)·Σ_s (Σ_{t∈s} d_t·loss_t) / N_s, where N_s tokens of a sequence have d_t > 0.
    survey(batch) and score(batch, statistics) read one micro-batch with the policy, its dropout off, without gradients.
    """

    design: Design
    policy: nn.Module
    survey: Callable[[Batch], TokenTable]
    score: Callable[[Batch, Mapping[object, Tensor]], LossOutput]
    _window: tuple[Batch, ...] | None = field(default=None, init=False)
    _shares: list[StepShare] = field(default_factory=list, init=False)

    def share(self, batch: Batch) -> StepShare:
        """The share of a training micro-batch; the step is read at its first one."""
        assert batch.window is not None
        if not scoring_passes(self.design):
            return StepShare(self._scale(batch, batch.window))
        if batch.window.index == 0 or batch.window.batches is not self._window:
            from qtarget.model.policy import evaluating  # needs transformers, which hf_loss does not

            with torch.no_grad(), evaluating(self.policy):
                self._shares = self._read(batch.window, batch.labels.device)
            self._window = batch.window.batches
        return self._shares[batch.window.index]

    def _scale(self, batch: Batch, window: StepWindow) -> Tensor | float:
        scale: Tensor | float = window.loss_scale
        if normalizer(self.design) == "sequences":
            scale = window.undo / max(window.sequences, 1) / batch.sequence_lengths.clamp_min(1)
        return _weighted(scale, batch)

    def _read(self, window: StepWindow, device: torch.device) -> list[StepShare]:
        batches = [batch.to(device) for batch in window.batches]
        statistics = self._statistics(batches)
        if normalizer(self.design) not in PULLED:
            return [StepShare(self._scale(b, window), s) for b, s in zip(batches, statistics, strict=True)]
        pairs = list(zip(batches, statistics, strict=True))
        masses = [self.score(batch, found).mass * batch.data_weights for batch, found in pairs]
        divisor = float(all_reduce_sum(torch.stack([counted(mass, normalizer(self.design)) for mass in masses]).sum()))
        scale = window.undo / divisor if divisor > 0 else 0.0
        return [StepShare(_weighted(scale, batch), found) for batch, found in pairs]

    def _statistics(self, batches: list[Batch]) -> list[Mapping[object, Tensor]]:
        """Per micro-batch, its rows of the statistics of the whole step."""
        if not surveying(self.design, STEP):
            return [{} for _ in batches]
        tables = [self.survey(batch) for batch in batches]
        mine = TokenTable.join(tables)
        rank, world = rank_and_world()
        everyone = _gathered(mine, world)
        whole = statistics_of(self.design, TokenTable.join(everyone), STEP)
        before = sum(len(table.labels) for table in everyone[:rank])
        sizes = [len(table.labels) for table in tables]
        rows = {part: values[before : before + sum(sizes)].split(sizes) for part, values in whole.items()}
        return [{part: pieces[index] for part, pieces in rows.items()} for index in range(len(batches))]


def _weighted(scale: Tensor | float, batch: Batch) -> Tensor | float:
    """With the weights of the data; a number where every token has the same."""
    return scale if batch.weights is None else scale * batch.weights


def _gathered(table: TokenTable, world: int) -> list[TokenTable]:
    """The tables of all ranks, in rank order."""
    if world == 1:
        return [table]
    return [other.to(table.labels.device) for other in all_gather_objects(table.to("cpu"))]
