"""What has to be known of a whole optimizer step before its first backward: scope values, and the loss's divisor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qtarget.data.batch import Batch, StepWindow
from qtarget.math.loss import LossOutput
from qtarget.math.scope_values import TokenTable, scope_values_of, scoped_parts
from qtarget.math.target import Design, divisor_part
from qtarget.parallel import all_gather_objects, all_reduce_sum, rank_and_world

STEP = ("step",)
NEED_A_FORWARD = ("kept", "weight_sum")
"""Values of `normalize` whose divisor is known only once the policy has read every token of the step."""


@dataclass(frozen=True)
class MicroBatchScale:
    """What the loss of a micro-batch takes from its step.

    token_scale: multiplies its tokens' losses, a number or [B, T]. scope_values: its rows of the step's, part → [N].
    """

    token_scale: Tensor | float
    scope_values: Mapping[object, Tensor] = field(default_factory=dict)


def extra_forward_passes(design: Design) -> int:
    """How often the policy reads a step's tokens, without gradients, before it trains on them: 0, 1 or 2."""
    return bool(scoped_parts(design, STEP)) + (normalizer(design) in NEED_A_FORWARD)


def normalizer(design: Design) -> str:
    """What the design's loss is divided by: one of math.target.NORMALIZERS."""
    return str(getattr(design, "normalize", "tokens"))


@dataclass
class StepNormalizer:
    """Works out the scale of each micro-batch, the same however the step is cut and spread over ranks.

    The data gives token t the weight d_t (row × message × span; a token of weight 0 is no label), the design the weight
    w_t. A step's loss is then, by `normalize`:

        tokens        Σ_t d_t·loss_t / (number of tokens with d_t > 0)
        kept          Σ_t d_t·loss_t / (number of those with mass > 0: those that the design pulls)
        weight_sum    Σ_t d_t·loss_t / Σ_t d_t·mass_t, mass_t = w_t·(positive masses of Q)
        sequences     (1/S)·Σ_s (Σ_{t∈s} d_t·loss_t) / (number of tokens of s with d_t > 0)

    token_table(batch) and loss(batch, scope_values) read one micro-batch with the policy, its dropout off, without
    gradients.
    """

    design: Design
    policy: nn.Module
    token_table: Callable[[Batch], TokenTable]
    loss: Callable[[Batch, Mapping[object, Tensor]], LossOutput]
    _window: tuple[Batch, ...] | None = field(default=None, init=False)
    _scales: list[MicroBatchScale] = field(default_factory=list, init=False)

    def for_batch(self, batch: Batch) -> MicroBatchScale:
        """The scale of a training micro-batch. At the first one of a step the policy reads them all."""
        window = batch.window
        assert window is not None
        if not extra_forward_passes(self.design):
            return MicroBatchScale(self._scale(batch, window))
        # the first one always: the same micro-batches may come back, and the policy's weights have changed since
        if window.index == 0 or window.batches is not self._window:
            from qtarget.model.policy import evaluating  # needs transformers, which hf_loss does not

            with torch.no_grad(), evaluating(self.policy):
                self._scales = self._read(window, batch.labels.device)
            self._window = window.batches
        return self._scales[window.index]

    def _scale(self, batch: Batch, window: StepWindow) -> Tensor | float:
        scale: Tensor | float = window.per_token_scale
        if normalizer(self.design) == "sequences":
            scale = window.averaging_factor / max(window.sequences, 1) / batch.sequence_lengths.clamp_min(1)
        return _weighted(scale, batch)

    def _read(self, window: StepWindow, device: torch.device) -> list[MicroBatchScale]:
        batches = [batch.to(device) for batch in window.batches]
        pairs = list(zip(batches, self._scope_values(batches), strict=True))
        if normalizer(self.design) not in NEED_A_FORWARD:
            return [MicroBatchScale(self._scale(batch, window), values) for batch, values in pairs]
        masses = [self.loss(batch, values).mass * batch.data_weights for batch, values in pairs]
        divisor = float(
            all_reduce_sum(torch.stack([divisor_part(mass, normalizer(self.design)) for mass in masses]).sum())
        )
        scale = window.averaging_factor / divisor if divisor > 0 else 0.0
        return [MicroBatchScale(_weighted(scale, batch), values) for batch, values in pairs]

    def _scope_values(self, batches: list[Batch]) -> list[Mapping[object, Tensor]]:
        """Per micro-batch, its rows of the scope values of the whole step."""
        if not scoped_parts(self.design, STEP):
            return [{} for _ in batches]
        tables = [self.token_table(batch) for batch in batches]
        rank, _ = rank_and_world()
        everyone = _gathered(TokenTable.join(tables))
        whole = scope_values_of(self.design, TokenTable.join(everyone), STEP)
        before = sum(len(table.labels) for table in everyone[:rank])
        sizes = [len(table.labels) for table in tables]
        rows = {part: values[before : before + sum(sizes)].split(sizes) for part, values in whole.items()}
        return [{part: pieces[index] for part, pieces in rows.items()} for index in range(len(batches))]


def _weighted(scale: Tensor | float, batch: Batch) -> Tensor | float:
    """With the weights of the data; a number where every token has the same."""
    return scale if batch.weights is None else scale * batch.weights


def _gathered(table: TokenTable) -> list[TokenTable]:
    """The tables of all ranks, in rank order."""
    if rank_and_world()[1] == 1:
        return [table]
    return [other.to(table.labels.device) for other in all_gather_objects(table.to("cpu"))]
