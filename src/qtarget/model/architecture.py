"""What qtarget reads of a causal LM of transformers: its decoder, its output layer, and what is done to the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    PreTrainedModel,
)

from qtarget.errors import QTargetError
from qtarget.math.head import Head

ANOTHER = "take a decoder-only language model that AutoModelForCausalLM loads"


@dataclass(frozen=True)
class LogitRule:
    """Which keys of a text config say what happens to the product of hidden state and output layer.

    multiply, divide: scales; both stand before the cap. caps: c of c·tanh(z/c).
    """

    multiply: tuple[str, ...] = ("logit_scale", "lm_head_multiplier", "output_multiplier")
    divide: tuple[str, ...] = ("logits_scaling", "logits_mup_width_multiplier")
    caps: tuple[str, ...] = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")

    def scale(self, config: Any) -> float:
        value = 1.0
        for name in self.multiply:
            value *= float(getattr(config, name, None) or 1.0)
        for name in self.divide:
            value /= float(getattr(config, name, None) or 1.0)
        return value

    def cap(self, config: Any) -> float | None:
        return next((float(cap) for name in self.caps if (cap := getattr(config, name, None))), None)


RULES = {
    "hyperclovax": LogitRule(multiply=("logits_scaling",), divide=()),
    "gemma3": LogitRule(caps=()),
    "mpt": LogitRule(multiply=()),
}
"""model_type → where a name means something else than elsewhere.

As in transformers 5.23: Cohere (`logit_scale`), Falcon-H1 (`lm_head_multiplier`) and Muse (`output_multiplier`)
multiply, Granite (`logits_scaling`) divides, HyperCLOVA X multiplies by a key of the same name; MiniCPM3
(`logits_scaling`) and Inkling (`logits_mup_width_multiplier`) divide the hidden states. The caps are those of Gemma,
RecurrentGemma and xLSTM; Gemma 3 as a multimodal class leaves its text config's cap out, and MPT its `logit_scale`.
"""

BETWEEN = {"modernbert-decoder": "lm_head"}
"""model_type → the module that stands between the last hidden state and the output layer."""


def check_config(config: Any, name: str) -> None:
    """Raise QTargetError for a model that is no causal language model, as far as its configuration tells.

    name: of the model, for the message.
    """
    if reason := _unusable(config):
        raise QTargetError(f"the model {name!r} ({config.model_type}) {reason}")


def _unusable(config: Any) -> str | None:
    if getattr(config, "is_encoder_decoder", False):
        return f"is an encoder-decoder: what it is asked and what it answers don't share one sequence; {_alone(config)}"
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not _reads_forwards(config):
        return f"is an encoder: its tokens see the ones that follow, which they are to predict; {ANOTHER}"
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return f"is loaded as a multimodal model only, not by AutoModelForCausalLM; {_text_model(config)}"
    return f"has no causal language model in transformers; {ANOTHER}"


def _alone(config: Any) -> str:
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return ANOTHER
    return f"{ANOTHER}, or one saved as the decoder alone (is_encoder_decoder=false in its config.json)"


def _reads_forwards(config: Any) -> bool:
    """BERT and its like as decoders (`is_decoder`), XLM as a language model (`causal`)."""
    return bool(getattr(config, "is_decoder", False) or getattr(config, "causal", False))


def _text_model(config: Any) -> str:
    text = text_config(config)
    if text is config or type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return ANOTHER
    return f"save the weights of its text model ({text.model_type}) as a causal LM of its own, and train that"


def text_config(config: Any) -> Any:
    """That of the decoder; the configuration itself where it has none, or several, of its own."""
    try:
        return config.get_text_config(decoder=True)
    except ValueError:
        return config


def plain(lm: Any) -> Any:
    """The causal LM under an adapter of peft."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


def named(lm: Any) -> str:
    """A model's class and type, for messages."""
    lm = plain(lm)
    return f"{type(lm).__name__} ({lm.config.model_type})"


def decoder_of(lm: Any) -> Any:
    """The module whose `last_hidden_state` the output layer reads. Raises QTargetError where there is none.

    transformers' `get_decoder` gives the model itself for some classes (Llama 4), or a layer named so (ModernBERT).
    """
    lm = plain(lm)
    for candidate in (lm.get_decoder(), lm.base_model, getattr(lm, "model", None)):
        if isinstance(candidate, PreTrainedModel) and candidate is not lm:
            return candidate
    raise QTargetError(f"{named(lm)} has no decoder apart from its output layer; {ANOTHER}")


def between(lm: Any) -> Callable[[Any], Any] | None:
    """What stands between decoder and output layer; None for almost every model."""
    lm = plain(lm)
    name = BETWEEN.get(lm.config.model_type)
    return lm.get_submodule(name) if name else None


def output_layer(lm: Any) -> nn.Module:
    """The layer that makes logits. Raises QTargetError where there is none, or not just one."""
    lm = plain(lm)
    layer: nn.Module | None = lm.get_output_embeddings()
    if layer is None or getattr(layer, "weight", None) is None:
        raise QTargetError(f"{named(lm)} has no single output layer over its vocabulary; {ANOTHER}")
    return layer


def head_of(lm: Any, vocab_size: int) -> Head:
    """The output layer with what the model's configuration says is done to its logits."""
    layer, config = output_layer(lm), plain(lm).config
    weight: Any = layer.weight
    text, rule = text_config(config), RULES.get(config.model_type, LogitRule())
    return Head(
        weight=weight,
        bias=getattr(layer, "bias", None),
        softcap=rule.cap(text),
        scale=rule.scale(text),
        true_vocab=vocab_size if weight.shape[0] > vocab_size else None,
    )
