"""TRL's SFTTrainer with a target design as its loss: `pip install 'qtarget[trl]'`."""

from __future__ import annotations

from typing import Any

import torch

from qtarget.extras import require_trl

require_trl("qtarget.trl")

import trl  # noqa: E402  after its absence is said in words

from qtarget.parallel import all_reduce_sum  # noqa: E402
from qtarget.trainers.mixin import QTargetTrainerMixin  # noqa: E402

__all__ = ["QTargetSFTTrainer", "QTargetTrainerMixin"]


class QTargetSFTTrainer(QTargetTrainerMixin, trl.SFTTrainer):  # type: ignore[misc]
    """`trl.SFTTrainer` that trains towards the target of a design: see `QTargetTrainerMixin` for what it takes.

    Data, packing, PEFT and the log are TRL's (1.16); entropy and mean_token_accuracy are means over tokens, not over
    micro-batches. Raises QTargetError before training for settings of TRL's that a design can't honour.
    """

    _tag_names = ["trl", "sft", "qtarget"]  # noqa: RUF012  TRL's own

    def compute_loss(
        self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            self._total_train_tokens += int(all_reduce_sum(self._tokens(inputs)))
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]  # TRL's log reads it
        return result

    def _tokens(self: Any, inputs: Any) -> torch.Tensor:
        """Read by the model in this micro-batch on this rank, padding aside."""
        if "attention_mask" in inputs:
            read: torch.Tensor = inputs["attention_mask"].sum()
            return read
        return torch.tensor(inputs["input_ids"].numel(), device=self.args.device)
