"""Prompts that are the same question: for splitting rows by what they ask, and for finding one on both sides."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence

from qtarget.data.example import Demonstration, Message
from qtarget.errors import QTargetError

ASIDE = ("system", "developer")
CONTAMINATIONS = ("error", "drop", "allow")


def prompt_text(messages: Sequence[Message]) -> str:
    """What is asked, system and developer messages aside: the same for spellings that differ in case, spaces or Unicode
    form. Calls of tools count as text.
    """
    said = (f"{message['role']}: {_said(message)}" for message in messages if message["role"] not in ASIDE)
    return " ".join(unicodedata.normalize("NFC", "\n".join(said)).casefold().split())


def _said(message: Message) -> str:
    calls = message.get("tool_calls")
    return f"{message['content']}{json.dumps(calls, sort_keys=True) if calls else ''}"


def position(text: str) -> float:
    """A text's position in [0, 1), uniform over texts and always the same."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def apart(rows: Sequence[Demonstration], heldout: Iterable[Demonstration], how: str) -> list[Demonstration]:
    """Training rows that answer no held-out prompt, neither at their end nor on the way.

    how, for one that does: "error" raises QTargetError with its number, "drop" leaves it out, "allow" keeps it.
    """
    if how == "allow":
        return list(rows)
    asked = {prompt_text(row.prompt) for row in heldout}
    known = [row for row in rows if not asked.isdisjoint(answered(row))]
    if known and how == "error":
        raise QTargetError(
            f"{len(known)} of {len(rows)} training rows have the prompt of a held-out row (the first is row "
            f"{known[0].row}: {known[0].prompt[-1]['content'][:60]!r}): set data.contamination=drop to leave them out "
            "of training, or =allow"
        )
    return [row for row in rows if asked.isdisjoint(answered(row))]


def unseen(rows: Sequence[Demonstration], first: int) -> tuple[int, ...]:
    """The indices, among rows, of those behind the first so many that ask nothing which one of these asks too."""
    seen = {prompt_text(row.prompt) for row in rows[:first]}
    return tuple(index for index, row in enumerate(rows) if index >= first and prompt_text(row.prompt) not in seen)


def answered(row: Demonstration) -> list[str]:
    """The prompt of every assistant turn: a conversation that goes on after it has answered it all the same."""
    turns = [turn for turn, message in enumerate(row.messages) if message["role"] == "assistant"]
    return [prompt_text(row.messages[:turn]) for turn in turns]
