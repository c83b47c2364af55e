"""Schemas that are recognised by the keys of a row, and the demonstration that a row of each is.

messages: OpenAI's and Mistral's fine-tuning files, TRL's. conversations: ShareGPT's and LLaMA-Factory's. interactions:
mistral-finetune's other name for messages (finetune/data/tokenize.py, 2024). prompt/completion: as text, or as TRL's
lists of messages. instruction/output: Alpaca's.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qtarget.data.example import SPANS, Demonstration, Message, Span
from qtarget.data.sources.conversation import (
    columns_of,
    entry,
    exchange,
    filled,
    kind,
    lettered,
    listed,
    shown,
    text,
    trusted,
)
from qtarget.data.sources.mapping import option_columns, option_texts
from qtarget.data.sources.message import (
    Keys,
    conversation,
    functions,
    is_nothing,
    row_spans,
    tools,
    unpacked,
)
from qtarget.data.sources.weights import is_span, row_weight
from qtarget.data.verify.verdict import Verifier, verifier_name
from qtarget.errors import QTargetError

SCHEMAS = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "interactions": ("interactions",),
    "prompt/completion": ("prompt", "completion"),
    "instruction/output": ("instruction", "output"),
}
"""What rows may look like → the keys that tell it. A file has one of them."""
LISTS = ("messages", "conversations", "interactions")
"""Schemas whose rows are one list of messages."""
ALIASES = ("conversations", "interactions")
"""Those that are a key that is not read where the row is of another schema too."""
BESIDE = ("system", "tools", "weight", SPANS)
"""Keys that rows of any schema may have."""
BEYOND = {
    "messages": ("functions",),
    "instruction/output": ("input", "history"),
    "prompt/completion": ("history",),
    "interactions": ("system_prompt", "available_tools"),
}
"""Keys that rows of a schema may have beside these."""
EXPECTED = (
    '{"messages": [{"role": "system|developer|user|assistant|tool", "content": …}, …]}, '
    '{"conversations": [{"from": "human|gpt|…", "value": …}, …]}, '
    '{"prompt": …, "completion": …} or {"instruction": …, "input": …, "output": …}'
)
CONVERSATIONS = ("messages", "conversation", "conversations", "chosen", "dialog", "dialogue", "chat", "turns")
PROMPTS = ("prompt", "question", "query", "problem", "instruction", "input", "user", "human", "source", "text")
COMPLETIONS = (
    *("completion", "chosen", "answer", "response", "output", "solution", "reply", "assistant", "target"),
    *("best_answer", "label", "summary"),
)
"""Names of columns that are asked for, and answered by, in files of other schemas; the likelier ones first."""


def schema_of(row: Mapping[str, Any], path: str = "FILE") -> str:
    """The schema of a row, one of SCHEMAS. Raises QTargetError with its keys and a line to copy where it has none.

    path: where the row stands, for that line.
    """
    held = [name for name, keys in SCHEMAS.items() if all(key in row for key in keys)]
    filled_in = [name for name in held if all(row[key] is not None for key in SCHEMAS[name])] or held
    if not filled_in:
        also = "of preference rows, name the chosen one: " if "chosen" in row else "keys of other names: "
        raise QTargetError(
            f"expected {EXPECTED}; the keys are: {listed(row)}. {also[0].upper()}{also[1:]}{mapping_line(row, path)}"
        )
    names = [name for name in filled_in if name not in ALIASES] or filled_in
    if len(names) > 1:
        raise QTargetError(
            f"the row is {' and '.join(names)} at once: keep the keys of one, or name the columns: "
            f"{mapping_line(row, path)}"
        )
    return names[0]


def mapping_line(row: Mapping[str, Any], path: str) -> str:
    """Keys to copy that read rows like this one by the names of their columns."""
    talk = [name for name in _likely(CONVERSATIONS, row) if _is_conversation(row[name])]
    if talk:
        return f"data=files {_setting('path', path)} {_setting('messages', talk[0])}"
    completion = next((name for name in _likely(COMPLETIONS, row) if _is_written(row[name])), None)
    prompt = next((name for name in _likely(PROMPTS, row) if name != completion and _is_written(row[name])), None)
    settings = (_setting("prompt", prompt or "COLUMN"), _setting("completion", completion or "COLUMN"))
    return f"data=files {_setting('path', path)} {' '.join(settings)}"


def _likely(names: Sequence[str], row: Mapping[str, Any]) -> list[str]:
    """The keys of a row that are called so, in the order of the names."""
    return [key for name in names for key in row if str(key).lower() == name]


def _is_conversation(value: object) -> bool:
    messages = value if isinstance(value, list) else []
    return bool(messages) and all(isinstance(message, Mapping) for message in messages)


def _is_written(value: object) -> bool:
    return value is None or isinstance(shown(value), str)


def _setting(field: str, column: str) -> str:
    return shlex.quote(f"data.source.{field}={column}")


@dataclass(frozen=True)
class SchemaRows:
    """How rows of a schema are read: each a demonstration.

    schema: one of SCHEMAS, that of the first row. system: of rows that aren't messages and have none of their own.
    columns: keys of character spans. verifier, answer, options, trust_scorer: rows are judged by their key `answer`, or
    by what the spec `answer` names, and `options` likewise. hint: column or template, None: the key `hint` where it is
    text. numbers: whether a number may stand for a text. path: of the file, for messages.
    """

    schema: str
    system: str | None = None
    columns: Sequence[str] = ()
    verifier: str | Verifier | None = None
    trust_scorer: bool = False
    unknown: str | None = None
    answer: str | None = None
    options: Any = None
    hint: str | None = None
    numbers: bool = False
    path: str = "FILE"

    def demonstration(self, row: Mapping[str, Any], number: int) -> Demonstration:
        """Raises QTargetError for a row of another schema, or one that lacks what is read."""
        if (schema := schema_of(row, self.path)) != self.schema:
            raise QTargetError(
                f"a row of {schema} in a file whose first row is {self.schema}: give all rows of a file one schema"
            )
        keys = Keys(self.unknown)
        keys.row(row, (*self._known, *self._hint_keys(row)))
        messages = self._messages(row, keys)
        length = len(messages[-1]["content"])
        return Demonstration(
            messages=messages,
            row=number,
            spans={name: _spans(row, name, length) for name in self.columns},
            entry=self._entry(row),
            tools=self._tools(row),
            weight=row_weight(row.get("weight"), "weight"),
            weights=row_spans(row.get(SPANS), length),
            unread=keys.unread,
            hint=self._hint(row),
        )

    @property
    def _known(self) -> tuple[str, ...]:
        """Keys that are read of a row."""
        by_options = self.verifier == "choice" or callable(self.verifier)
        judged = () if self.verifier is None else ("answer", "options") if by_options else ("answer",)
        named = columns_of(self.answer) if self.answer else ()
        beyond = BEYOND.get(self.schema, ())
        return (*SCHEMAS[self.schema], *beyond, *BESIDE, *self.columns, *judged, *named, *option_columns(self.options))

    def _hint_keys(self, row: Mapping[str, Any]) -> Sequence[str]:
        if self.hint is not None:
            return columns_of(self.hint)
        return ("hint",) if isinstance(row.get("hint"), str) else ()

    def _hint(self, row: Mapping[str, Any]) -> str:
        if self.hint is None:
            return str(row["hint"]) if self._hint_keys(row) else ""
        for key in self._hint_keys(row):
            self._needed(row, key, f"data.source.hint={self.hint}")
        return filled(self.hint, row, "hint")

    def _of_mistral(self, row: Mapping[str, Any], key: str, alias: str) -> Any:
        """What stands under a key, or under mistral-finetune's name for it next to `interactions`."""
        other = row.get(alias) if self.schema == "interactions" else None
        if not is_nothing(other) and not is_nothing(row.get(key)):
            raise QTargetError(f"the row has {key} and {alias}: keep one of them")
        return row.get(key) if is_nothing(other) else other

    def _tools(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        given = self._of_mistral(row, "tools", "available_tools")
        older = row.get("functions") if self.schema == "messages" else None
        if is_nothing(older):
            return tools(given)
        if not is_nothing(given):
            raise QTargetError("the row has functions and tools: keep one of them")
        return functions(older)

    def _messages(self, row: Mapping[str, Any], keys: Keys) -> list[Message]:
        given = self._of_mistral(row, "system", "system_prompt")
        system = None if is_nothing(given) else text(given, "system")
        if self.schema in LISTS:
            return _with_system(conversation(row[self.schema], self.schema, keys), system)
        prompt, completion = SCHEMAS[self.schema]
        if any(isinstance(row[key], list | Mapping) for key in (prompt, completion)):
            messages = _of_lists(row[prompt], row[completion], f"{prompt} + {completion}", keys)
            has_own = messages[0]["role"] in ("system", "developer")
            return _with_system(messages, self.system if system is None and not has_own else system)
        system = self.system if system is None else system
        asked = self._text(row, prompt)
        if self.schema == "instruction/output" and row.get("input") not in (None, ""):
            asked = f"{asked}\n\n{self._text(row, 'input')}"
        history = _history(_list(row.get("history"), "history"))
        return _with_system([*history, *exchange(asked, self._text(row, completion))], system)

    def _text(self, row: Mapping[str, Any], key: str) -> str:
        return text(shown(row[key]) if self.numbers else row[key], key)

    def _entry(self, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if self.verifier is None:
            return None
        if self.answer:
            answer: Any = filled(self.answer, row, "answer")
        else:
            answer = self._needed(row, "answer", self._judging)
        return trusted(entry(self.verifier, answer, self._options(row)), self.trust_scorer)

    def _options(self, row: Mapping[str, Any]) -> Mapping[str, str] | None:
        if self.options is not None:
            return option_texts(self.options, row)
        if self.verifier == "choice":
            self._needed(row, "options", self._judging)
        by_options = self.verifier == "choice" or callable(self.verifier)
        options = row.get("options")
        options = unpacked(options, "options") if isinstance(options, str) and options[:1] in ("[", "{") else options
        return lettered(options) if by_options and options is not None else None

    @property
    def _judging(self) -> str:
        return f"data.source.verifier={verifier_name(self.verifier)}"

    def _needed(self, row: Mapping[str, Any], key: str, setting: str) -> Any:
        if key not in row:
            left_out = setting.partition("=")[0]
            raise QTargetError(
                f"no {key!r} for {setting}; its keys: {listed(row)}. Give every row {key!r}, or leave {left_out} out"
            )
        return row[key]


def _of_lists(prompt: object, completion: object, name: str, keys: Keys) -> list[Message]:
    """TRL's conversational prompt and completion: what the assistant says in the prompt is context."""
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _several(prompt)
    answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else _several(completion)
    messages = conversation([*asked, *answer], name, keys)
    context = [{**one, "weight": 0.0} if one["role"] == "assistant" else one for one in messages[: len(asked)]]
    return [*context, *messages[len(asked) :]]


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _list(value: object, name: str) -> object:
    """A list, also as the JSON text of one."""
    return unpacked(value, name) if isinstance(value, str) and value.lstrip().startswith("[") else value


def _with_system(messages: list[Message], system: str | None) -> list[Message]:
    """With the row's system message before them."""
    if system is None:
        return messages
    if messages[0]["role"] == "system":
        raise QTargetError("the row has a key 'system' and a system message: keep one of them")
    return [{"role": "system", "content": system}, *messages]


def _history(value: object) -> list[Message]:
    """Alpaca's earlier rounds."""
    rounds = [] if is_nothing(value) else value
    if not isinstance(rounds, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in rounds):
        raise QTargetError(f"history must be [[question, answer], …], got {kind(rounds)} of something else")
    messages: list[Message] = []
    for index, (asked, answer) in enumerate(rounds):
        messages += exchange(text(asked, f"history[{index}][0]"), text(answer, f"history[{index}][1]"))
    return messages


def _spans(row: Mapping[str, Any], name: str, length: int) -> tuple[Span, ...]:
    spans = _list(row.get(name), name)
    if not isinstance(spans, list) or not all(is_span(span, length) for span in spans):
        raise QTargetError(
            f"{name!r} must hold character spans [[start, stop], …] of the last message, which has {length} "
            f"characters; got {kind(spans) if not isinstance(spans, list) else f'{len(spans)} of which not all are'}"
        )
    return tuple((start, stop) for start, stop in spans)


def check_columns(columns: Iterable[str] | str) -> None:
    """Raise QTargetError for data.source.columns that are no list of keys."""
    if isinstance(columns, str) or not isinstance(columns, Sequence) or "wrong" in columns:
        raise QTargetError(
            f"columns must be a list of keys, such as [critical]; wrong is the noise's own. Got {columns!r}"
        )
