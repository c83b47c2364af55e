"""The training rows with a hint in front, for the references of a run that read them so."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from qtarget.config.run_config import RunConfig
from qtarget.data.chat import ChatFormat
from qtarget.data.example import Example
from qtarget.data.hints import check_lengths, with_hints
from qtarget.data.module import Prepared
from qtarget.model import provide


def with_hints_of(
    cfg: RunConfig,
    references: Mapping[str, provide.ModelSource],
    prepared: Prepared,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, list[Example]]:
    """Role → the training examples, each with the hint of its row. Raises QTargetError where they don't fit its model.

    references: role → its model, of those that the run loads.
    """
    hinted = {}
    for role, source in references.items():
        if template := cfg.references[role].hint_template:
            chat = ChatFormat(tokenizer)
            rows = with_hints(template, prepared.train_rows, prepared.train_of, prepared.train, chat)
            context = provide.context_length(provide.load_config(source))
            check_lengths(f"references.{role}.hint", rows, prepared.train, context, cfg.data.get("max_length"))
            hinted[role] = rows
    return hinted
