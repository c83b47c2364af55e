"""model.chat_template: the name of a shipped template, a file of Jinja, or Jinja itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtarget.errors import QTargetError

FOLDER = Path(__file__).with_name("chat_templates")
SHIPPED = ("chatml", "plain")
JINJA = ("{{", "{%", "{#")
"""One of them is in every template that writes a message, and in no path that anybody types."""
CHATML_END = "'<|im_end|>'"
SETS_END = "{%- set end_of_turn = "
"""Of the shipped chatml."""


def jinja(value: str) -> str:
    """The template that a value of model.chat_template stands for. Raises QTargetError for a file without one."""
    if any(mark in value for mark in JINJA):
        return value
    path = FOLDER / f"{value}.jinja" if value in SHIPPED else Path(value).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else f"it can't be read: {error}"
        raise QTargetError(
            f"model.chat_template={value} is no shipped template ({', '.join(SHIPPED)}), and as a file {why}: take a "
            "shipped one, or a file of Jinja as tokenizers have in chat_template.jinja"
        ) from error
    if not any(mark in text for mark in JINJA):
        raise QTargetError(
            f"the file model.chat_template={value} holds no Jinja, so every conversation would read alike: it has no "
            "{{ … }} that writes a message"
        )
    return text.removesuffix("\n")  # as Jinja itself reads it


def content(value: Any) -> Any:
    """The same, for what needs no template yet: a value that stands for none is given back."""
    try:
        return jinja(value) if isinstance(value, str) else value
    except QTargetError:
        return value  # the run itself says what is wrong


def recorded(value: str | None) -> str | None:
    """What a run's configuration keeps: of a file its content, which may change or go."""
    return value if value is None or value in SHIPPED else jinja(value)


def give(tokenizer: Any, value: str) -> None:
    """Put a template in the place of the tokenizer's own.

    The shipped chatml closes turns with the eos where <|im_end|> is no token: spelt in several tokens it would be text
    of the reply, which no generation ends at.
    """
    text = jinja(value)
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if CHATML_END.strip("'") not in added:
        text = text.replace(SETS_END + CHATML_END, f"{SETS_END}eos_token")
    tokenizer.chat_template = text
