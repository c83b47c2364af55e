"""A causal language model, split where the loss needs it: hidden states and head."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from qtarget.math.head import Head


class Policy(nn.Module):
    """Wraps a transformers causal LM. forward: input_ids [B, T] → last hidden states [B, T, D]."""

    def __init__(self, lm: Any, vocab_size: int) -> None:
        """vocab_size: the tokenizer's; rows of the head beyond it are padding and never receive probability."""
        super().__init__()
        self.lm = lm
        self.vocab_size = vocab_size

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.lm.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        return hidden

    @property
    def head(self) -> Head:
        layer, config = self.lm.get_output_embeddings(), self.lm.config
        padded = layer.weight.shape[0] > self.vocab_size
        return Head(
            weight=layer.weight,
            bias=getattr(layer, "bias", None),
            softcap=getattr(config, "final_logit_softcapping", None),
            scale=_logit_scale(config),
            true_vocab=self.vocab_size if padded else None,
        )


def _logit_scale(config: Any) -> float:
    """Cohere multiplies its logits by `logit_scale`; Granite divides them by `logits_scaling`."""
    return float(getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1))
