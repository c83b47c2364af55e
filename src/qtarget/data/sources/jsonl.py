"""`data=jsonl`: a file of JSON lines by its schema, rows called by their line. `data=files` reads it and more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar

from qtarget.data.example import Demonstration
from qtarget.data.sources.conversation import check_verifier, kind
from qtarget.data.sources.data_files import Files
from qtarget.data.sources.loading import is_file_name
from qtarget.data.sources.message import UNKNOWN
from qtarget.data.sources.missing import check_lines, no_json
from qtarget.data.sources.schema import EXPECTED, SchemaRows, check_columns, schema_of
from qtarget.data.sources.share import HeldOut, HoldsOut, held_out
from qtarget.data.sources.written import NOT_JSON, parsed
from qtarget.data.verify.verdict import Verifier
from qtarget.errors import QTargetError
from qtarget.settings import FLAG, Checked, Choice, Listed, Nullable, Part, Share, Text, setting


@dataclass(frozen=True)
class Jsonl(HoldsOut, Checked):
    """A file of {"messages": [{"role", "content"}, …]}, {"prompt", "completion"} or {"instruction", "input", "output"}.

    All rows are of the first one's schema, see qtarget.data.sources.schema; for the keys of a message see
    qtarget.data.sources.message, and a key that is null isn't there. Beside them a row may have `system`, its own
    system message; `tools`, the functions that may be called; `weight`, a factor of its loss; `span_weights`,
    [[start, stop, weight], …], factors on characters of its last message; and next to `instruction` or `prompt`
    Alpaca's `history`, [[question, answer], …], taught as well.
    unknown: what becomes of keys that are not read. null: one of a message is refused, one of a row is named with its
    count of rows; "error": both are refused; "ignore": both are named.
    heldout: a file whose rows are all evaluated on, of any format. heldout_share in [0, 1): without one, share of the
    rows kept for evaluation, chosen by a hash of the prompt, so that no prompt stands on both sides. system: system
    message put before rows that aren't messages and have none of their own, None for the template's own. columns: keys
    under which every row holds character spans [[start, stop], …] of its last message; the tokens there carry 1 in a
    data column of that name, the others 0. verifier: "math", "choice" or "exact", where rows hold an "answer" to judge
    by (and for choice, "options"); None: answers aren't judged. hint: key, or template over keys, of what a privileged
    reference is told beside the prompt; None: the key "hint".
    """

    NODE_KEY: ClassVar[str] = "data.source"
    path: str = setting(MISSING, Text("a file"), "JSON objects, one a line")
    heldout_share: float = setting(0.1, Share(), "share of the rows that is held out, by a hash of the prompt")
    system: str | None = setting(
        None, Nullable(Text()), "system message of rows that have none; null: the template's own"
    )
    columns: Sequence[str] = setting((), Listed(Text()), "keys of a row that hold character spans of its last message")
    verifier: str | Verifier | None = setting(
        None,
        Part("math, choice, exact or a class, or null"),
        "what judges answers by the answer of a row; null: nothing",
    )
    trust_scorer: bool = setting(False, FLAG, "true: answers that are none, too, are put to the scorer")
    unknown: str | None = setting(
        None, Choice(UNKNOWN), "keys that nobody reads; null: an error in a message, named in a row"
    )
    heldout: str | None = setting(
        None, Nullable(Text("a file")), "rows to evaluate on, all of them, in place of a share"
    )
    hint: str | None = setting(
        None, Nullable(Text("a key or a template")), "what a privileged reference is told; null: the key hint"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_columns(self.columns)
        check_verifier(self.verifier)
        check_lines(self.path)
        if self.heldout is not None and not is_file_name(self.heldout):
            raise QTargetError(
                f"data.source.heldout={self.heldout}: a file of JSON lines has no splits; name a file: val.jsonl"
            )

    @property
    def described(self) -> str:
        """What the rows were taken for."""
        return self._schema

    @property
    def share(self) -> float:
        """Of the rows, held out."""
        return 0.0 if self.heldout else self.heldout_share

    def rows(self, split: str, count: int | None) -> list[Demonstration]:
        """The first `count` rows of a split (None: all). Raises QTargetError with the line of a malformed row."""
        return self.read_shared(split, count, None)[0]

    def read_shared(
        self, split: str, count: int | None, heldout_rows: int | None
    ) -> tuple[list[Demonstration], dict[str, int]]:
        """The same, counted, where only the first `heldout_rows` rows of the share are held out; None: all of it."""
        if split == "reserve" and count:
            raise QTargetError("data=jsonl has no reserve of clean rows: leave data.reserve_rows at 0")
        if split == "heldout" and self.heldout:
            return self._other_file.read("heldout", count)
        side = self.side(heldout_rows)
        sides = [(row, side.holds(row) == (split == "heldout")) for row in self._parse()]
        rows = [row for row, is_wanted in sides if is_wanted]
        if count is not None and len(rows) < count:
            raise QTargetError(f"{self.path} holds {len(rows)} {split} rows, {count} were asked for: ask for fewer")
        return rows[:count], {"read": len(sides), "other_split": len(sides) - len(rows)}

    def _held_out(self, heldout_rows: int | None) -> HeldOut:
        return held_out(self._parse(), self.share, heldout_rows)

    @property
    def _shared(self) -> dict[str, Any]:
        """What rows of any file are read by."""
        fields = ("system", "columns", "verifier", "trust_scorer", "unknown", "hint")
        return {field: getattr(self, field) for field in fields}

    @property
    def _other_file(self) -> Files:
        return Files(self.path, train=None, heldout=self.heldout, **self._shared)

    @property
    def _schema(self) -> str:
        """That of the first row."""
        number, line = next(self._lines(), (0, b""))
        if not number:
            raise QTargetError(f"{self.path} has no rows: data.source.path takes JSON objects, one a line")
        try:
            return schema_of(_parsed(line), self.path)
        except QTargetError as error:
            raise self._misread(number, error) from error

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        with Path(self.path).open("rb") as lines:
            yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())

    def _parse(self) -> Iterator[Demonstration]:
        read = SchemaRows(self._schema, path=self.path, **self._shared)
        for number, line in self._lines():
            try:
                yield read.demonstration(_parsed(line), number)
            except QTargetError as error:
                raise self._misread(number, error) from error

    def _misread(self, number: int, error: QTargetError) -> QTargetError:
        way = no_json(self.path) if str(error).startswith(NOT_JSON) else ""
        return QTargetError(f"{self.path}, line {number}: {error}{way}")


def _parsed(line: bytes) -> Mapping[str, Any]:
    row = parsed(line)
    if not isinstance(row, dict):
        raise QTargetError(f"expected an object, {EXPECTED}; got {kind(row)}")
    return row
