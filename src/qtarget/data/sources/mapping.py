"""Rows whose columns are named, and the demonstration that each is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qtarget.data.example import SPANS, Demonstration, Message
from qtarget.data.sources.conversation import columns_of, entry, exchange, filled, lettered, trusted
from qtarget.data.sources.message import Keys, conversation, row_spans, tools, unpacked
from qtarget.data.sources.weights import row_weight
from qtarget.data.verify.verdict import Verifier
from qtarget.errors import QTargetError

BESIDE = ("tools", "weight", SPANS)
"""Columns that are read beside one of conversations, where rows have such."""


@dataclass(frozen=True)
class ColumnMapping:
    """Which columns hold what: a column's name, or a template over columns. See `qtarget.data.sources.data_files`."""

    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None
    system: str | None = None
    verifier: str | Verifier | None = None
    answer: str | None = None
    options: Any = None
    trust_scorer: bool = False
    tools: str | bool | None = None
    weight: str | bool | None = None
    unknown: str | None = None
    hint: str | None = None

    @property
    def is_given(self) -> bool:
        """Whether any column of a conversation is named."""
        return any((self.messages, self.prompt, self.completion))

    def check(self) -> None:
        """Raise QTargetError for columns that don't make a row, and for templates that can't be read."""
        pair = self.prompt and self.completion
        if bool(self.messages) == bool(self.prompt or self.completion) or not (self.messages or pair):
            raise QTargetError(
                "say which columns are read: data.source.messages=COLUMN, or data.source.prompt=… and "
                "data.source.completion=…, a column or a template such as '{question}\\n{options}'"
            )
        self.columns()

    def columns(self) -> dict[str, str]:
        """Column of the data set → the field that names it."""
        named = {field: getattr(self, field) for field in ("tools", "weight")}
        beside = {column: field for field, column in named.items() if isinstance(column, str)}
        specs = {"messages": self.messages, "prompt": self.prompt, "completion": self.completion, "answer": self.answer}
        specs["hint"] = self.hint
        return beside | {column: field for field, spec in specs.items() if spec for column in columns_of(spec)}

    def beside(self, field: str) -> str | None:
        """The column of tools, of weights or of weights of spans, where rows have such."""
        named = getattr(self, field, None)
        return named if isinstance(named, str) else field if self.messages and named is None else None

    def demonstration(self, row: Mapping[str, Any], number: int) -> Demonstration:
        """Raises QTargetError where a column doesn't hold what is asked of it."""
        options = None if self.options is None else option_texts(self.options, row)
        if options:
            row = {**row, "options": "\n".join(f"{letter}. {option}" for letter, option in options.items())}
        judged = None
        if self.verifier and self.answer:
            judged = trusted(entry(self.verifier, filled(self.answer, row, "answer"), options), self.trust_scorer)
        weight, keys = self.beside("weight") or "", Keys(self.unknown)
        messages = self._conversation(row, keys)
        return Demonstration(
            messages,
            row=number,
            entry=judged,
            tools=tools(row.get(self.beside("tools") or "")),
            weight=row_weight(row.get(weight), weight),
            weights=row_spans(row.get(self.beside(SPANS) or ""), len(messages[-1]["content"])),
            unread=keys.unread,
            hint=filled(self.hint, row, "hint") if self.hint else "",
        )

    def _conversation(self, row: Mapping[str, Any], keys: Keys) -> list[Message]:
        if self.messages:
            return conversation(row[self.messages], self.messages, keys)
        assert self.prompt
        assert self.completion
        return exchange(
            filled(self.prompt, row, "prompt"), filled(self.completion, row, "completion"), system=self.system
        )


def option_texts(options: Any, row: Mapping[str, Any]) -> dict[str, str]:
    """Options by letter. options: a column of {letter: text} or of texts, a list of columns, or {letter: text}."""
    if isinstance(options, str):
        held = row[options]
    else:
        held = options if isinstance(options, Mapping) else [row[column] for column in options]
    held = unpacked(held, "options") if isinstance(held, str) and held.lstrip()[:1] in ("[", "{") else held
    if isinstance(held, Mapping):  # a column of objects has every key in every row, null where it isn't there
        held = {letter: option for letter, option in held.items() if option is not None}
    return lettered(held)


def option_columns(options: Any) -> Sequence[str]:
    """The columns in which options stand."""
    if options is None or isinstance(options, Mapping):
        return ()
    return [options] if isinstance(options, str) else options
