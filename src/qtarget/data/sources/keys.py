"""Keys that rows and messages hold: those that are read, and what becomes of the others."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from qtarget.errors import QTargetError

UNKNOWN = (None, "error", "ignore")
INSTEAD = {
    "function_call": "write it as tool_calls",
    "reasoning": "rename it reasoning_content",
    "reasoning_details": "write their text as reasoning_content",
    "thought": "rename it reasoning_content",
    "train_detail": "write span_weights, [[start, stop, weight], …], beside the messages",
    "loss_weight": "rename it weight",
    "loss_mask": "write weight, 0 or 1",
}
"""Keys of other formats → how the same is said here."""


@dataclass
class Keys:
    """The keys of one row, as they are met.

    unknown: what becomes of those that nobody reads. None: one of a message raises QTargetError, one of a row is named
    with its count of rows; "error": both raise; "ignore": both are named. unread: their names, such as "id" and
    "messages[].mood".
    """

    unknown: str | None = None
    unread: list[str] = field(default_factory=list)

    def row(self, row: Mapping[str, Any], known: Collection[str]) -> None:
        for key in _others(row, known):
            self._unread(key, f"the key {key!r}", known, raises=self.unknown == "error")

    def message(self, held: Mapping[str, Any], known: Collection[str], name: str) -> None:
        """name: where the message, or a part of it, stands: messages[3] or messages[3].content[0]."""
        for key in _others(held, known):
            self._unread(f"{_any(name)}.{key}", f"{name}.{key}", known, raises=self.unknown != "ignore")

    def note(self, name: str) -> None:
        """A key that means nothing where it stands."""
        self._unread(_any(name), name, (), raises=self.unknown == "error")

    def _unread(self, name: str, what: str, known: Collection[str], *, raises: bool) -> None:
        if raises:
            instead = INSTEAD.get(name.rpartition(".")[2], "remove it")
            read = f" (read are {', '.join(known)})" if known else ""
            raise QTargetError(
                f"{what} is not read{read}: {instead}, or set data.source.unknown=ignore to train without it"
            )
        if name not in self.unread:
            self.unread.append(name)


def is_nothing(value: object) -> bool:
    """Null, or empty text, list or object: nothing that could be lost."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def weight(value: object, name: str) -> float:
    """A factor of the loss. Raises QTargetError unless it is a number of at least 0."""
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise QTargetError(f"{name} must be a number of at least 0, got {str(value)[:40]!r}")
    return float(value)


def without_nulls(value: Any) -> Any:
    """A value of a typed table, where every object has all keys of its column: keys that are null aren't there."""
    if isinstance(value, Mapping):
        return {key: without_nulls(held) for key, held in value.items() if held is not None}
    if isinstance(value, list):
        return [without_nulls(held) for held in value]
    return value


def _others(held: Mapping[str, Any], known: Collection[str]) -> list[str]:
    return [str(key)[:80] for key, value in held.items() if key not in known and not is_nothing(value)]


def _any(name: str) -> str:
    """messages[3].content[0] → messages[].content[]"""
    return "".join(char for char in name if not char.isdigit()) if "[" in name else name
