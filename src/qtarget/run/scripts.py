"""In which scripts rows and their template are written: what is plain to see of a language without a model of it."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from qtarget.data.example import Demonstration, Message
from qtarget.data.template import Template

NO_LETTERS = "no letters"
KANA = ("Hiragana", "Katakana")
_WORD = "qzx"
"""A word that no template writes."""


@lru_cache(maxsize=1 << 16)
def script_of(char: str) -> str:
    """The script of a letter, such as Latin, Cyrillic, Han; empty for what is no letter.

    The first word of its name in the Unicode standard, as Python's unicodedata has it, is that of its script.
    """
    if not unicodedata.category(char).startswith("L"):
        return ""
    first = unicodedata.name(char, "").partition(" ")[0].partition("-")[0]
    return "Han" if first == "CJK" else first.capitalize()


def scripts(text: str) -> Counter[str]:
    """Letters of a text by script. Han beside kana counts as Japanese, which is written in both."""
    letters: Counter[str] = Counter()
    for char, count in Counter(unicodedata.normalize("NFKC", text)).items():
        if script := script_of(char):
            letters[script] += count
    if any(letters[kana] for kana in KANA):
        letters["Japanese"] = sum(letters.pop(name, 0) for name in ("Han", *KANA))
    return letters


def main_script(text: str) -> str:
    """That of most of its letters; of equals the first by name."""
    letters = scripts(text)
    return min(letters, key=lambda name: (-letters[name], name)) if letters else NO_LETTERS


def by_role(rows: Sequence[Demonstration]) -> dict[str, Mapping[str, int]]:
    """Role → script → how many messages have most of their letters in it, the most frequent first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for message in (message for row in rows for message in row.messages):
        counts[str(message["role"])][main_script(str(message["content"]))] += 1
    return {role: dict(held.most_common()) for role, held in counts.items()}


def answered_otherwise(rows: Sequence[Demonstration]) -> list[int]:
    """Numbers of the rows whose last reply is in another script than the last message of the user; text without letters
    is in any.
    """
    return [row.row for row in rows if len(_scripts_of_ends(row)) > 1]


def _scripts_of_ends(row: Demonstration) -> set[str]:
    asked = [message for message in row.prompt if message["role"] == "user"]
    ends: list[Message] = [*asked[-1:], row.messages[-1]]
    return {main_script(str(message["content"])) for message in ends} - {NO_LETTERS}


def template_words(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a chat template writes around a question and its answer beside control tokens: names of roles, and a system
    message of its own; empty where it refuses such a conversation.
    """
    template = Template(tokenizer)
    talk: list[Message] = [
        *template.opening,
        {"role": "user", "content": _WORD},
        {"role": "assistant", "content": _WORD},
    ]
    text, parts, start = template.attempt(talk, reply=False), [], 0
    for control in template.controls(text):
        parts.append(text[start : control.start])
        start = control.stop
    return " ".join(" ".join([*parts, text[start:]]).replace(_WORD, " ").split())
