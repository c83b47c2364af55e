"""The marks of a conversation: what opens and closes a thought, and which tokens are structure by how they look."""

from __future__ import annotations

import re

MARKS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, GLM-4.5, SmolLM3, Nemotron
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
)
"""What opens a thought and what closes it, in the templates and the replies of the models named."""


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
