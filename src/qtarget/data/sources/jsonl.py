"""Your own demonstrations: a JSON object a line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtarget.data.example import Demonstration, Message, Span
from qtarget.errors import QTargetError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Jsonl:
    """A file of {"messages": [{"role", "content"}, …]} or {"prompt", "completion"} rows.

    heldout_share in [0, 1): share of the rows kept for evaluation, chosen by a hash of the prompt, so that no prompt
    stands on both sides. system: system message put before prompt/completion rows, None for the template's own.
    columns: keys under which every row holds character spans [[start, stop], …] of its last message; the tokens there
    carry 1 in a data column of that name, the others 0.
    """

    path: str
    heldout_share: float = 0.1
    system: str | None = None
    columns: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.heldout_share, int | float) or not 0 <= self.heldout_share < 1:
            raise QTargetError(f"heldout_share must lie in [0, 1), got {self.heldout_share!r}")
        if isinstance(self.columns, str) or not isinstance(self.columns, Sequence) or "wrong" in self.columns:
            raise QTargetError(
                f"columns must be a list of keys, such as [critical]; wrong is the noise's own. Got {self.columns!r}"
            )
        if not Path(self.path).is_file():
            raise QTargetError(f"no data file at {self.path!r} (from {Path.cwd()}): set data.source.path=FILE.jsonl")

    def rows(self, split: str, count: int | None) -> list[Demonstration]:
        """The first `count` rows of a split (None: all). Raises QTargetError with the line of a malformed row."""
        if split == "reserve" and count:
            raise QTargetError("data=jsonl has no reserve of clean rows: leave data.reserve_rows at 0")
        rows = [row for row in self._parse() if self._in_split(row, split)]
        if count is not None and len(rows) < count:
            raise QTargetError(f"{self.path} holds {len(rows)} {split} rows, {count} were asked for: ask for fewer")
        return rows[:count]

    def _parse(self) -> Iterator[Demonstration]:
        with Path(self.path).open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = self._row(line, number)
                    messages = self._messages(row, number)
                    length = len(messages[-1]["content"])
                    spans = {name: self._spans(row, name, number, length) for name in self.columns}
                    yield Demonstration(messages=messages, row=number, spans=spans)

    def _row(self, line: bytes, number: int) -> Any:
        try:
            return json.loads(line)
        except ValueError as error:
            raise QTargetError(f"{self.path}, row {number}: not JSON ({error})") from error

    def _spans(self, row: Any, name: str, number: int, length: int) -> tuple[Span, ...]:
        spans = row.get(name)
        if not isinstance(spans, list) or not all(_is_span(span, length) for span in spans):
            raise QTargetError(
                f"{self.path}, row {number}: {name!r} must hold character spans [[start, stop], …] of the last "
                f"message, which has {length} characters; got {spans!r}"
            )
        return tuple((start, stop) for start, stop in spans)

    def _messages(self, row: Any, number: int) -> list[Message]:
        messages = self._as_messages(row)
        if not messages or not all(_is_message(message) for message in messages):
            raise QTargetError(
                f'{self.path}, row {number}: expected {{"messages": [{{"role": {"|".join(ROLES)}, "content": …}}, …]}} '
                f'or {{"prompt": …, "completion": …}}, got {json.dumps(row)[:120]!r}'
            )
        if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
            raise QTargetError(f"{self.path}, row {number}: no supervised token; it must end with an assistant's text")
        return [{"role": message["role"], "content": message["content"]} for message in messages]

    def _as_messages(self, row: Any) -> list[Mapping[str, Any]]:
        if isinstance(row, dict) and isinstance(row.get("messages"), list):
            return list(row["messages"])
        if not isinstance(row, dict) or not {"prompt", "completion"} <= set(row):
            return []
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [
            *system,
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]

    def _in_split(self, row: Demonstration, split: str) -> bool:
        text = json.dumps(list(row.prompt), sort_keys=True)
        position = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        return (position < self.heldout_share) == (split == "heldout")


def _is_span(span: Any, length: int) -> bool:
    is_pair = isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)
    return is_pair and 0 <= span[0] < span[1] <= length


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), str)
