"""Which models end where their positions do."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from qtarget.model import provide
from qtarget.model.policy import Policy

ALIBI_TABLES = {"mpt"}
"""Model types that make a table of `max_seq_len` distances at every forward, and no buffer (transformers 5.23.0)."""


def is_bounded(model: provide.Source, vocab_size: int, context: int) -> bool:
    """Whether a model fails beyond its context: its positions are rows of a table of that length.

    Rotary positions and ALiBi are computed for any length, but for those kept in such a table (GPT-J, CodeGen, MPT).
    """
    outline = provide.outline(model, vocab_size)
    return outline.lm.config.model_type in ALIBI_TABLES or any(_tables(outline, context))


def _tables(outline: Policy, context: int) -> Iterator[bool]:
    words = outline.lm.get_input_embeddings()
    for module in outline.lm.modules():
        if isinstance(module, nn.Embedding) and module is not words:
            yield context <= module.num_embeddings <= context + 2  # OPT keeps two more rows
        yield from (context in tensor.shape for tensor in module.buffers(recurse=False) if tensor.ndim > 1)
