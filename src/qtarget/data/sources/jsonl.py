"""Your own demonstrations: a JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from qtarget import checks
from qtarget.data.example import Demonstration, Message, Span, WeightedSpan
from qtarget.data.overlap import position, prompt_text
from qtarget.data.sources.conversation import check_verifier, entry, exchange, kind, listed, text, trusted
from qtarget.data.sources.message import UNKNOWN, Keys, conversation, is_nothing, tools, weight
from qtarget.data.sources.written import parsed
from qtarget.data.verify.verdict import Verifier, verifier_name
from qtarget.errors import QTargetError

SCHEMAS = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt/completion": ("prompt", "completion"),
    "instruction/output": ("instruction", "output"),
}
"""What rows may look like → the keys that tell it. A file has one of them."""
BESIDE = ("system", "tools", "weight", "span_weights")
"""Keys that rows of any schema may have."""
BEYOND = {"instruction/output": ("input", "history"), "prompt/completion": ("history",)}
"""Keys that rows of a schema may have beside these."""
EXPECTED = (
    '{"messages": [{"role": "system|developer|user|assistant|tool", "content": …}, …]}, '
    '{"conversations": [{"from": "human|gpt|…", "value": …}, …]}, '
    '{"prompt": …, "completion": …} or {"instruction": …, "input": …, "output": …}'
)
NAMED = "data=hub data.source.path=FILE data.source.prompt=KEY data.source.completion=KEY"
"""How keys of other names are read."""


@dataclass(frozen=True)
class Jsonl:
    """A file of {"messages": [{"role", "content"}, …]}, {"prompt", "completion"} or {"instruction", "input", "output"}.

    ShareGPT's {"conversations": [{"from", "value"}, …]} is read as messages.

    All rows are of the first one's schema; for the keys of a message see qtarget.data.sources.message, and a key that
    is null isn't there. Beside them a row may have `system`, its own system message; `tools`, the functions that may be
    called; `weight`, a factor of its loss; `span_weights`, [[start, stop, weight], …], factors on characters of its
    last message; and next to `instruction` or `prompt` Alpaca's `history`, [[question, answer], …], taught as well.
    unknown: what becomes of keys that are not read. null: one of a message is refused, one of a row is named with its
    count of rows; "error": both are refused; "ignore": both are named.
    heldout_share in [0, 1): share of the rows kept for evaluation, chosen by a hash of the prompt, so that no prompt
    stands on both sides. system: system message put before rows that aren't messages and have none of their own, None
    for the template's own. columns: keys under which every row holds character spans [[start, stop], …] of its last
    message; the tokens there carry 1 in a data column of that name, the others 0. verifier: "math", "choice" or
    "exact", where rows hold an "answer" to judge by (and for choice, "options"); None: answers aren't judged.
    """

    path: str
    heldout_share: float = 0.1
    system: str | None = None
    columns: Sequence[str] = ()
    verifier: str | Verifier | None = None
    trust_scorer: bool = False
    unknown: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.heldout_share, int | float) or not 0 <= self.heldout_share < 1:
            raise QTargetError(f"heldout_share must lie in [0, 1), got {self.heldout_share!r}")
        if isinstance(self.columns, str) or not isinstance(self.columns, Sequence) or "wrong" in self.columns:
            raise QTargetError(
                f"columns must be a list of keys, such as [critical]; wrong is the noise's own. Got {self.columns!r}"
            )
        check_verifier(self.verifier)
        checks.choice("data.source.unknown", self.unknown, UNKNOWN)
        if not Path(self.path).is_file():
            raise QTargetError(f"no data file at {self.path!r} (from {Path.cwd()}): set data.source.path=FILE.jsonl")

    @property
    def described(self) -> str:
        """What the rows were taken for."""
        return self._schema

    def rows(self, split: str, count: int | None) -> list[Demonstration]:
        """The first `count` rows of a split (None: all). Raises QTargetError with the line of a malformed row."""
        if split == "reserve" and count:
            raise QTargetError("data=jsonl has no reserve of clean rows: leave data.reserve_rows at 0")
        rows = [row for row in self._parse() if self._in_split(row, split)]
        if count is not None and len(rows) < count:
            raise QTargetError(f"{self.path} holds {len(rows)} {split} rows, {count} were asked for: ask for fewer")
        return rows[:count]

    @cached_property
    def _schema(self) -> str:
        """That of the first row."""
        number, line = next(self._lines(), (1, b""))
        try:
            return _schema(_parsed(line))
        except QTargetError as error:
            raise self._misread(number, error) from error

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        with Path(self.path).open("rb") as lines:
            yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())

    def _parse(self) -> Iterator[Demonstration]:
        for number, line in self._lines():
            try:
                yield self._demonstration(_parsed(line), number)
            except QTargetError as error:
                raise self._misread(number, error) from error

    def _misread(self, number: int, error: QTargetError) -> QTargetError:
        return QTargetError(f"{self.path}, row {number}: {error}")

    def _demonstration(self, row: Mapping[str, Any], number: int) -> Demonstration:
        if (schema := _schema(row)) != self._schema:
            raise QTargetError(
                f"a row of {schema} in a file whose first row is {self._schema}: give all rows of a file one schema"
            )
        keys = Keys(self.unknown)
        keys.row(row, self._known)
        messages = self._messages(row, keys)
        length = len(messages[-1]["content"])
        return Demonstration(
            messages=messages,
            row=number,
            spans={name: _spans(row, name, length) for name in self.columns},
            entry=self._entry(row),
            tools=tools(row.get("tools")),
            weight=1.0 if row.get("weight") is None else weight(row["weight"], "weight"),
            weights=_span_weights(row.get("span_weights"), length),
            unread=keys.unread,
        )

    @property
    def _known(self) -> tuple[str, ...]:
        """Keys that are read of a row."""
        by_options = self.verifier == "choice" or callable(self.verifier)
        judged = () if self.verifier is None else ("answer", "options") if by_options else ("answer",)
        return (*SCHEMAS[self._schema], *BEYOND.get(self._schema, ()), *BESIDE, *self.columns, *judged)

    def _messages(self, row: Mapping[str, Any], keys: Keys) -> list[Message]:
        system = None if is_nothing(row.get("system")) else text(row["system"], "system")
        if self._schema in ("messages", "conversations"):
            return _opened(conversation(row[self._schema], self._schema, keys), system)
        if self._schema == "prompt/completion":
            prompt, completion = "prompt", "completion"
        else:
            prompt, completion = "instruction", "output"
        asked = text(row[prompt], prompt)
        if self._schema == "instruction/output" and row.get("input") not in (None, ""):
            asked = f"{asked}\n\n{text(row['input'], 'input')}"
        closing = exchange(asked, text(row[completion], completion))
        return _opened([*_history(row.get("history")), *closing], self.system if system is None else system)

    def _entry(self, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if self.verifier is None:
            return None
        needed = ("answer", "options") if self.verifier == "choice" else ("answer",)
        for key in needed:
            if key not in row:
                raise QTargetError(
                    f"no {key!r} for data.source.verifier={verifier_name(self.verifier)}; its keys: {listed(row)}"
                )
        return trusted(entry(self.verifier, row["answer"], row.get("options")), self.trust_scorer)

    def _in_split(self, row: Demonstration, split: str) -> bool:
        return (position(prompt_text(row.prompt)) < self.heldout_share) == (split == "heldout")


def _parsed(line: bytes) -> Mapping[str, Any]:
    row = parsed(line)
    if not isinstance(row, dict):
        raise QTargetError(f"expected an object, {EXPECTED}; got {kind(row)}")
    return row


def _schema(row: Mapping[str, Any]) -> str:
    held = [name for name, keys in SCHEMAS.items() if all(key in row for key in keys)]
    found = [name for name in held if all(row[key] is not None for key in SCHEMAS[name])] or held
    if not found:
        also = "of preference rows, name the chosen one: " if "chosen" in row else "keys of other names: "
        raise QTargetError(f"expected {EXPECTED}; the keys are: {listed(row)}. {also[0].upper()}{also[1:]}{NAMED}")
    found = [name for name in found if name != "conversations"] or found  # beside another it is a key that is not read
    if len(found) > 1:
        raise QTargetError(f"the row is {' and '.join(found)} at once: keep the keys of one")
    return found[0]


def _opened(messages: list[Message], system: str | None) -> list[Message]:
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
    for place, (asked, answer) in enumerate(rounds):
        messages += exchange(text(asked, f"history[{place}][0]"), text(answer, f"history[{place}][1]"))
    return messages


def _span_weights(value: object, length: int) -> tuple[WeightedSpan, ...]:
    """In the order of their places. Raises QTargetError for spans that share a character."""
    given = [] if is_nothing(value) else value
    if not isinstance(given, list) or not all(
        isinstance(one, list) and len(one) == 3 and _is_span(one[:2], length) for one in given
    ):
        raise QTargetError(
            "'span_weights' must hold [[start, stop, weight], …] over characters of the last message, which has "
            f"{length} characters; got {str(given)[:80]}"
        )
    spans = sorted((start, stop, weight(factor, "a span's weight")) for start, stop, factor in given)
    for (_, stop, _), (start, _, _) in pairwise(spans):
        if start < stop:
            raise QTargetError(f"'span_weights' overlap at character {start}: give each character one weight")
    return tuple(spans)


def _spans(row: Mapping[str, Any], name: str, length: int) -> tuple[Span, ...]:
    spans = row.get(name)
    if not isinstance(spans, list) or not all(_is_span(span, length) for span in spans):
        raise QTargetError(
            f"{name!r} must hold character spans [[start, stop], …] of the last message, which has {length} "
            f"characters; got {kind(spans) if not isinstance(spans, list) else f'{len(spans)} of which not all are'}"
        )
    return tuple((start, stop) for start, stop in spans)


def _is_span(span: Any, length: int) -> bool:
    is_pair = isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)
    return is_pair and 0 <= span[0] < span[1] <= length
