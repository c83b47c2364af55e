"""Names → tokenizers and models: the embedded one, the tiny one, a folder, a finished run, a GGUF file, or a hub id."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from qtarget.errors import QTargetError
from qtarget.model import builtin, gguf_file
from qtarget.model import chat_template as chat_template_of
from qtarget.model.agreement import check_logits
from qtarget.model.architecture import check_config, text_config
from qtarget.model.builtin import tiny_config, tiny_model, tiny_tokenizer
from qtarget.model.fingerprint import fingerprint, model_folder, names_a_folder
from qtarget.model.policy import Policy

SMOLLM2, TINY = "smollm2_135m", "tiny"
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ModelSource:
    """A model by where it is loaded from: a folder or hub id, or TINY."""

    location: str

    @property
    def is_tiny(self) -> bool:
        return self.location == TINY


class UnknownModelError(QTargetError):
    """A model that is neither a folder nor to be had from the hub. reason: that and why, without what to do."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason, advice)  # as it is made again in another process
        self.reason, self.advice = reason, advice

    def __str__(self) -> str:
        return f"{self.reason}. {self.advice}"


def resolve(name: str) -> ModelSource:
    """Find a model. Raises QTargetError where it can't be found, with the ways to get it.

    Loads nothing, but for the first use of a GGUF file, which is converted.
    """
    if name == TINY:
        return ModelSource(TINY)
    if name == SMOLLM2:
        folder = builtin.embedded_model()
        return ModelSource(str(folder) if folder else builtin.HUB_ID)
    if gguf_file.is_gguf(name):
        return ModelSource(str(gguf_file.converted(name)))
    return ModelSource(str(model_folder(name)) if names_a_folder(name) else name)


def load_tokenizer(source: ModelSource, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer, always with a padding token; chat_template: a value of model.chat_template."""
    tokenizer: PreTrainedTokenizerBase = (
        tiny_tokenizer() if source.is_tiny else _from_hub_or_folder(AutoTokenizer, source)
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if chat_template:
        chat_template_of.give(tokenizer, chat_template)
    return tokenizer


def check_same_tokenizer(role: str, theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase) -> None:
    """Raise QTargetError where a reference has another tokenizer than the policy."""
    if theirs.get_vocab() != ours.get_vocab():
        raise QTargetError(
            f"the {role}'s tokenizer ({len(theirs)} tokens) is not the policy's ({len(ours)} tokens): a target mixes "
            "their distributions token by token, so they must share one. Choose a reference of the same model family"
        )


def load_config(source: ModelSource) -> Any:
    """transformers' configuration of the model. Raises QTargetError for what is no causal language model."""
    if source.is_tiny:
        return tiny_config(len(tiny_tokenizer()))
    config = _from_hub_or_folder(AutoConfig, source)
    check_config(config, source.location)
    return config


def load_policy(
    source: ModelSource,
    vocab_size: int,
    *,
    dtype: str = "float32",
    attention: str = "sdpa",
    unpadded_attention: str = "auto",
    gradient_checkpointing: bool = False,
    compiled: bool = False,
) -> Policy:
    """The causal LM itself. dtype: of the parameters; a policy under bf16-mixed keeps float32.

    attention: transformers' name of it; unpadded_attention: `model.attention`, for batches read without padding.
    gradient_checkpointing: activations are computed again in the backward instead of kept. compiled: through
    torch.compile. Raises QTargetError for a model whose own logits the loss would not use, and for weights that are
    not in its files.
    """
    if source.is_tiny:
        lm: Any = tiny_model(load_config(source))
        lm.set_attn_implementation(attention)
        lm.to(DTYPES[dtype])
    else:
        options = {"dtype": DTYPES[dtype], "attn_implementation": attention}
        load_config(source)
        lm, loaded = _from_hub_or_folder(AutoModelForCausalLM, source, output_loading_info=True, **options)
        _check_complete(source, lm, loaded["missing_keys"])
    policy = Policy(lm, vocab_size, compiled=compiled, attention=unpadded_attention)
    _check_logits_once(policy, (weights_fingerprint(source), vocab_size, dtype, attention))
    if gradient_checkpointing:
        lm.activation_checkpointing_enable({"use_reentrant": False})
    return policy


_CHECKED: set[Hashable] = set()
"""What models were made of that passed `check_logits` in this process."""


def _check_logits_once(policy: Policy, made_of: Hashable) -> None:
    """Half of the time that loading takes; jobs and roles on one model need it once."""
    if made_of not in _CHECKED:
        check_logits(policy)
        _CHECKED.add(made_of)


def _check_complete(source: ModelSource, lm: Any, missing: Collection[str]) -> None:
    """transformers draws at random what a checkpoint lacks, and only warns."""
    if missing:
        raise QTargetError(
            f"the model {source.location!r} lacks {len(missing)} of the weights of {type(lm).__name__}, which would be "
            f"drawn at random: {', '.join(sorted(missing)[:3])}{', …' * (len(missing) > 3)}. Give a checkpoint "
            "that was saved as this class"
        )


def outline(source: ModelSource, vocab_size: int) -> Policy:
    """The model without weights: for counting them."""
    with torch.device("meta"):
        return Policy(AutoModelForCausalLM.from_config(load_config(source)), vocab_size)


def weights_fingerprint(source: ModelSource) -> str:
    """What the weights are, wherever they lie: of local ones their content, of hub ones the commit."""
    if source.is_tiny or Path(source.location).exists():
        return fingerprint(source.location)
    return f"{source.location}@{getattr(load_config(source), '_commit_hash', None)}"


def embedding_rows(config: Any) -> int | None:
    """Tokens that a model has embeddings for, as its configuration says; None: it doesn't."""
    rows = getattr(text_config(config), "vocab_size", None)
    return rows if isinstance(rows, int) else None


def context_length(config: Any) -> int:
    """How many tokens a model was made for: the first of the keys CONTEXT, in its text config and then in its own.

    2**20 where its configuration has none (ALiBi, recurrent models).
    """
    text = config.get_text_config(decoder=True)
    given = (getattr(node, name, None) for node in (text, config) for name in CONTEXT)
    return int(next(filter(None, given), 2**20))


def _from_hub_or_folder(loader: Any, source: ModelSource, **options: Any) -> Any:
    try:
        return loader.from_pretrained(source.location, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise QTargetError(
                f"the model {source.location!r} comes with code of its own, and qtarget runs none that is not "
                "installed: take a model whose architecture transformers itself has"
            ) from error
        hint = f" ({builtin.INSTALL} brings it without a hub)" if source.location == builtin.HUB_ID else ""
        raise UnknownModelError(
            f"can't load the model {source.location!r}{hint}: it is neither a local folder nor to be had from the hub "
            f"({str(error).splitlines()[0].rstrip('.')})",
            "Give a folder or a GGUF file with model.name=PATH, or a hub id with the network on",
        ) from error


ALIBI_TABLES = {"mpt"}
"""Model types that make a table of `max_seq_len` distances at every forward, and no buffer (transformers 5.23.0)."""


def is_bounded(model: ModelSource, vocab_size: int, context: int) -> bool:
    """Whether a model fails beyond its context: its positions are rows of a table of that length.

    Rotary positions and ALiBi are computed for any length, but for those kept in such a table (GPT-J, CodeGen, MPT).
    """
    skeleton = outline(model, vocab_size)
    return skeleton.lm.config.model_type in ALIBI_TABLES or any(_tables(skeleton, context))


def _tables(outline: Policy, context: int) -> Iterator[bool]:
    words = outline.lm.get_input_embeddings()
    for module in outline.lm.modules():
        if isinstance(module, nn.Embedding) and module is not words:
            yield context <= module.num_embeddings <= context + 2  # OPT keeps two more rows
        yield from (context in tensor.shape for tensor in module.buffers(recurse=False) if tensor.ndim > 1)
