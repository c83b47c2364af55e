"""Your own demonstrations: a JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qtarget import checks
from qtarget.data.example import Demonstration, Message, Span
from qtarget.data.overlap import position, prompt_text
from qtarget.data.sources.conversation import VERIFIERS, conversation, entry, exchange, kind, listed, text, trusted
from qtarget.data.sources.written import parsed
from qtarget.errors import QTargetError

SCHEMAS = {
    "messages": ("messages",),
    "prompt/completion": ("prompt", "completion"),
    "instruction/output": ("instruction", "output"),
}
"""What rows may look like → the keys that tell it. A file has one of them."""
EXPECTED = (
    '{"messages": [{"role": "system|user|assistant", "content": …}, …]}, {"prompt": …, "completion": …} or '
    '{"instruction": …, "input": …, "output": …}'
)


@dataclass(frozen=True)
class Jsonl:
    """A file of {"messages": [{"role", "content"}, …]}, {"prompt", "completion"} or {"instruction", "input", "output"}.

    All rows are of the first one's schema. heldout_share in [0, 1): share of the rows kept for evaluation, chosen by a
    hash of the prompt, so that no prompt stands on both sides. system: system message put before rows that aren't
    messages, None for the template's own. columns: keys under which every row holds character spans [[start, stop], …]
    of its last message; the tokens there carry 1 in a data column of that name, the others 0. verifier: "math",
    "choice" or "exact", where rows hold an "answer" to judge by (and for choice, "options"); None: answers aren't
    judged.
    """

    path: str
    heldout_share: float = 0.1
    system: str | None = None
    columns: Sequence[str] = ()
    verifier: str | None = None
    trust_scorer: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.heldout_share, int | float) or not 0 <= self.heldout_share < 1:
            raise QTargetError(f"heldout_share must lie in [0, 1), got {self.heldout_share!r}")
        if isinstance(self.columns, str) or not isinstance(self.columns, Sequence) or "wrong" in self.columns:
            raise QTargetError(
                f"columns must be a list of keys, such as [critical]; wrong is the noise's own. Got {self.columns!r}"
            )
        checks.choice("data.source.verifier", self.verifier, (None, *VERIFIERS))
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
        messages = self._messages(row)
        length = len(messages[-1]["content"])
        spans = {name: _spans(row, name, length) for name in self.columns}
        return Demonstration(messages=messages, row=number, spans=spans, entry=self._entry(row))

    def _messages(self, row: Mapping[str, Any]) -> list[Message]:
        if self._schema == "messages":
            return conversation(row["messages"])
        if self._schema == "prompt/completion":
            prompt, completion = "prompt", "completion"
        else:
            prompt, completion = "instruction", "output"
        asked = text(row[prompt], prompt)
        if self._schema == "instruction/output" and row.get("input") not in (None, ""):
            asked = f"{asked}\n\n{text(row['input'], 'input')}"
        return exchange(asked, text(row[completion], completion), self.system)

    def _entry(self, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if self.verifier is None:
            return None
        needed = ("answer", "options") if self.verifier == "choice" else ("answer",)
        for key in needed:
            if key not in row:
                raise QTargetError(f"no {key!r} for data.source.verifier={self.verifier}; its keys: {listed(row)}")
        return trusted(entry(self.verifier, row["answer"], row.get("options")), self.trust_scorer)

    def _in_split(self, row: Demonstration, split: str) -> bool:
        return (position(prompt_text(row.prompt)) < self.heldout_share) == (split == "heldout")


def _parsed(line: bytes) -> Mapping[str, Any]:
    row = parsed(line)
    if not isinstance(row, dict):
        raise QTargetError(f"expected an object, {EXPECTED}; got {kind(row)}")
    return row


def _schema(row: Mapping[str, Any]) -> str:
    found = [name for name, keys in SCHEMAS.items() if all(key in row for key in keys)]
    if not found:
        raise QTargetError(f"expected {EXPECTED}; the keys are: {listed(row)}")
    if len(found) > 1:
        raise QTargetError(f"the row is {' and '.join(found)} at once: keep the keys of one")
    return found[0]


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
