"""Which tokens of a tokenizer are structure of a conversation, by how they look."""

from __future__ import annotations

import re

from qtarget.data.thought import MARKS

_CONTENT = re.compile(
    r"[<\[]\|?/?(begin_of_|end_of_)?(think|thought|reasoning|tool_call|tool_response)s?\|?[>\]]", re.I
)
_BRACKETED = re.compile(r"[<\[【]\S*[>\]】]")


def is_content(token: str) -> bool:
    """Whether models write it within a reply: where a tokenizer calls it special, it is content all the same."""
    return bool(_CONTENT.fullmatch(token)) or any(token in pair for pair in MARKS)


def is_control(token: str) -> bool:
    """Whether a token that a tokenizer doesn't call special looks like structure (<｜User｜> of DeepSeek-R1)."""
    return bool(_BRACKETED.fullmatch(token)) and not is_content(token)
