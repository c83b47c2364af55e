"""Tokens as readable text: one by one, and as they stand among others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"  # stands for a token that ends inside a letter


def token_text(tokenizer: Any, token: int) -> str:
    """A token outside a text; where it is but a part of a letter, the tokenizer's own name for it."""
    text = str(tokenizer.decode([token]))
    return str(tokenizer.convert_ids_to_tokens(token)) if UNFINISHED in text else text


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, as it stands among the others; a letter of several tokens appears at its last one."""
    texts, start, done = [], 0, 0
    for stop in range(1, len(ids) + 1):
        before, text = (
            tokenizer.decode(list(ids[start:end]), clean_up_tokenization_spaces=False) for end in (done, stop)
        )
        if text.endswith(UNFINISHED):
            texts.append(UNFINISHED)
        else:
            texts.append(text[len(before) :].lstrip(UNFINISHED))
            start, done = done, stop
    return texts
