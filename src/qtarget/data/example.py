"""A demonstration, from row to tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from qtarget.errors import QTargetError

FINAL = "####"
"""Worked solutions close with this mark and the final answer."""

Span = tuple[int, int]
SPANS = "span_weights"
"""Key of an assistant message: factors on spans of its characters."""
WeightedSpan = tuple[int, int, float]
"""Characters from, to, and what multiplies the loss of the tokens that touch them."""
Message = Mapping[str, Any]
"""role and content, both text, and what a chat template reads beside them: see Demonstration."""


@dataclass(frozen=True)
class Demonstration:
    """One row: a conversation, and what is known about the truth of its last answer.

    messages: role ("system", "developer", "user", "assistant", "tool") and content (text, "" where there is none);
    beside them what a row gives of tool_calls, tool_call_id, reasoning_content, thinking and name, and the weight of an
    assistant message, a float of at least 0 (absent: 1; 0: context that is not taught), and span_weights, a list of
    further factors on spans of its characters; those of the last message become `weights`. tools: the functions a model
    may call, as JSON schemas, for the template. weight: of the whole row, a factor on every message's. weights: further
    factors on spans of the last message; 0: the tokens there are context. wrong: character spans of the last message
    that noise made wrong. spans: data column → character spans of the last message that carry it, such as critical
    tokens. entry: what a verifier needs to judge a new answer, {"verifier": its name, or one of the user's itself, …},
    or None. cut_short: noise ended the last message too soon, so that what closes the turn is wrong. unread: keys of
    the row and its messages that nobody reads. hint: what a privileged reference may be told beside the prompt; the
    policy never reads it.
    """

    messages: Sequence[Message]
    row: int
    wrong: tuple[Span, ...] = ()
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    entry: Mapping[str, Any] | None = field(default=None, repr=False)
    cut_short: bool = False
    tools: Sequence[Mapping[str, Any]] = ()
    weight: float = 1.0
    weights: Sequence[WeightedSpan] = ()
    unread: Sequence[str] = ()
    hint: str = ""

    def __post_init__(self) -> None:
        """Spans of the last message are kept where noise moves them with its words."""
        if not self.messages or not (given := self.messages[-1].get(SPANS)):
            return
        if self.weights:
            raise QTargetError(f"the row has {SPANS} and so has its last message: keep one of them")
        last = {key: value for key, value in self.messages[-1].items() if key != SPANS}
        object.__setattr__(self, "messages", [*self.messages[:-1], last])
        object.__setattr__(self, "weights", tuple((start, stop, factor) for start, stop, factor in given))

    @property
    def prompt(self) -> Sequence[Message]:
        return self.messages[:-1]

    @property
    def completion(self) -> str:
        return str(self.messages[-1]["content"])


def roles(rows: Iterable[Demonstration]) -> dict[str, int]:
    """How many messages of each role rows have, and how many rows have tools, or several replies."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(str(message["role"]) for message in row.messages)
        counts["rows with tools"] += bool(row.tools)
        counts["rows of several replies"] += sum(message["role"] == "assistant" for message in row.messages) > 1
    return {name: count for name, count in counts.items() if count}


def columns_of_rows(rows: Iterable[Demonstration]) -> list[str]:
    """The data columns that examples of these rows may have."""
    return list(dict.fromkeys(["wrong", *(name for row in rows for name in row.spans)]))


@dataclass(frozen=True)
class Example:
    """One demonstration as tokens: ids [T], per token whether it is supervised, and columns ("wrong" always).

    first_label: which of the data set's supervised tokens its first one is, from 0. weights [T]: what multiplies the
    loss of each token, above 0 where it is supervised; None: 1 for all. first_reply: where prompts are taught too, the
    place of the first reply's first token; else 0.
    """

    input_ids: Sequence[int]
    supervised: Sequence[bool]
    columns: Mapping[str, Sequence[bool]]
    row: int
    first_label: int = 0
    weights: Sequence[float] | None = None
    first_reply: int = 0

    @property
    def labels(self) -> int:
        """How many of its tokens are predicted and supervised; the first token of a row is nobody's label."""
        return sum(self.supervised[1:])

    @property
    def wrong(self) -> Sequence[bool]:
        """Which tokens noise made wrong."""
        return self.columns["wrong"]

    def __len__(self) -> int:
        return len(self.input_ids)


@runtime_checkable
class WithLengths(Protocol):
    """Examples that know their lengths without being looked at."""

    @property
    def lengths(self) -> list[int]: ...
    @property
    def label_counts(self) -> list[int]: ...


def lengths(examples: Sequence[Example]) -> list[int]:
    """Tokens of each."""
    return examples.lengths if isinstance(examples, WithLengths) else [len(example) for example in examples]


def label_counts(examples: Sequence[Example]) -> list[int]:
    """Labels of each."""
    return examples.label_counts if isinstance(examples, WithLengths) else [example.labels for example in examples]
