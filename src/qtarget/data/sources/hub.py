"""Any data set of the Hugging Face hub, or files of the same schema, with its columns named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from qtarget import checks
from qtarget.data.example import Demonstration, Message
from qtarget.data.overlap import position, prompt_text
from qtarget.data.sources.adapt import Adapt, Row
from qtarget.data.sources.conversation import (
    check_verifier,
    columns_of,
    entry,
    exchange,
    filled,
    lettered,
    listed,
    trusted,
)
from qtarget.data.sources.file_rows import Cells, Table, is_same, other_delimiter
from qtarget.data.sources.loading import check_not_guessed, loaded
from qtarget.data.sources.message import UNKNOWN, Keys, conversation, tools, unpacked, weight, without_nulls
from qtarget.data.verify.verdict import Verifier, verifier_name
from qtarget.errors import QTargetError

MALFORMED = ("error", "drop")


@dataclass(frozen=True)
class Hub:
    r"""A data set of the hub (https://huggingface.co/datasets), or a local folder or file of one.

    path: its id, or a local folder or file; name: its configuration; revision: branch, tag or commit. files: local
    files of the same schema to read instead, {split: file or files}: Parquet, JSON, JSON lines or CSV. What is text in
    a CSV or JSON file stays that text (see qtarget.data.sources.file_rows); Parquet has types of its own. delimiter: of
    CSV, None: a comma, in a .tsv a tab.
    train, heldout: names of its splits; None: it has no such rows. heldout_share in [0, 1): without a split of their
    own, the share of the training split that is held out, by a hash of the prompt.
    messages: the column of conversations; or prompt and completion: a column each, or a template over columns, such as
    "{question}\n{options}". system: system message before prompt and completion, None for the template's own.
    verifier: "math", "choice" or "exact", by which answers are judged, with `answer` (column or template) and, for
    choice, `options`: a column of {letter: text} or of texts, a list of columns, or {letter: text} itself. Templates
    may then name {options}, one a line.
    where: column → value, or list of values, that rows must have. pick: so many rows of the training split, in the
    order of a hash of `seed` and `key` (column or template; None: the prompt), so that it doesn't matter where in the
    file they stand; the first 100 of pick=1000 are those of pick=100. malformed: what becomes of rows without the text
    that is asked of them, "error" or "drop". adapt: see qtarget.data.sources.adapt.
    tools, weight: columns of the functions that may be called, and of what multiplies a row's loss; null: next to
    `messages` the columns of these names, where there are such; false: none. unknown: what becomes of keys of a message
    that are not read, as in data=jsonl. Columns are chosen by name: those that nobody names are no loss.
    Code that a data set brings is never run.
    """

    path: str
    name: str | None = None
    revision: str | None = None
    files: Mapping[str, Any] | None = None
    train: str | None = "train"
    heldout: str | None = None
    heldout_share: float = 0.0
    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None
    system: str | None = None
    verifier: str | Verifier | None = None
    answer: str | None = None
    options: Any = None
    where: Mapping[str, Any] | None = None
    pick: int | None = None
    key: str | None = None
    seed: int = 0
    malformed: str = "error"
    adapt: Adapt | None = None
    delimiter: str | None = None
    trust_scorer: bool = False
    tools: str | bool | None = None
    weight: str | bool | None = None
    unknown: str | None = None

    def __post_init__(self) -> None:
        check_verifier(self.verifier)
        checks.choice("data.source.malformed", self.malformed, MALFORMED)
        checks.choice("data.source.unknown", self.unknown, UNKNOWN)
        if self.pick is not None:
            checks.whole("data.source.pick", self.pick, 1)
        if self.delimiter is not None and (not isinstance(self.delimiter, str) or len(self.delimiter) != 1):
            raise QTargetError(f"data.source.delimiter must be one character, or null, got {self.delimiter!r}")
        self._check_splits()
        self._check_mapping()

    @property
    def described(self) -> str:
        """Which data set it is."""
        return " ".join(filter(None, (self.path, self.name, self.revision)))

    def rows(self, split: str, count: int | None) -> list[Demonstration]:
        """The first `count` rows of a split (None: all). Raises QTargetError: what is missing, and what is there."""
        return self.read(split, count)[0]

    def read(self, split: str, count: int | None) -> tuple[list[Demonstration], dict[str, int]]:
        """Rows of a split; and how many were read for them, and left out by reason."""
        name = self._split(split, count)
        if name is None:
            return [], {}
        left_out: Counter[str] = Counter()
        found = list(islice(self._demonstrations(name, split, left_out), count))
        if count is not None and len(found) < count:
            why = "".join(f", {rows} left out: {reason}" for reason, rows in left_out.items())
            raise QTargetError(
                f"{self.described} has {len(found)} {split} rows in {name!r}{why}; {count} were asked for: "
                "ask for fewer"
            )
        return found, {"read": len(found) + left_out.total(), **left_out}

    def _split(self, split: str, count: int | None) -> str | None:
        """The data set's name of one of our splits; None where it has none and none of its rows are asked for."""
        own = self.heldout or (self.train if self.heldout_share else None)
        found = {"train": self.train, "heldout": own, "reserve": None}[split]
        if found is None and (count or (split == "train" and count is None)):
            ways = {
                "train": "this data is for evaluation; name a split with data.source.train to train on it",
                "heldout": "name a split with data.source.heldout, or set data.source.heldout_share",
                "reserve": "leave data.reserve_rows at 0",
            }
            raise QTargetError(f"{self.described} has no {split} rows: {ways[split]}")
        return None if count == 0 else found

    def _demonstrations(self, name: str, split: str, left_out: Counter[str]) -> Iterator[Demonstration]:
        table = self._table(name)
        rows: Iterable[tuple[int, Row]] = enumerate(table)
        if self.pick and name == self.train:
            places = self._picked(table, name, left_out)
            rows = zip(places, table.at(places), strict=True)
        for place, row in rows:
            found = self._sorted(row, name, place)
            if isinstance(found, Demonstration) and self._is_elsewhere(found, split):
                found = "other_split"
            if isinstance(found, str):
                left_out[found] += 1
            else:
                yield found

    def _picked(self, table: Iterable[Row], name: str, left_out: Counter[str]) -> list[int]:
        """Places of the `pick` rows that come first by the hash of their key."""
        keyed = []
        for place, row in enumerate(table):
            found = self._sorted(row, name, place)
            if isinstance(found, str):
                left_out[found] += 1
            else:
                keyed.append((self._position(row, found), place))
        left_out["unpicked"] += max(0, len(keyed) - (self.pick or 0))
        return [place for _, place in sorted(keyed)[: self.pick]]

    def _position(self, row: Row, found: Demonstration) -> float:
        key = filled(self.key, row, "key") if self.key else prompt_text(found.prompt)
        return position(f"{self.seed}:{key}")

    def _is_elsewhere(self, row: Demonstration, split: str) -> bool:
        """Where the training split is shared: whether the row belongs to the other side."""
        held_out = position(prompt_text(row.prompt)) < self.heldout_share
        return self.heldout_share > 0 and held_out != (split == "heldout")

    def _sorted(self, row: Row, name: str, place: int) -> Demonstration | str:
        """A row's demonstration, or why it is left out."""
        for column, values in (self.where or {}).items():
            if not any(is_same(row, column, value) for value in _several(values)):
                return "where"
        try:
            given = self._adapted(row)
            return "adapt" if given is None else self._demonstration({**_untyped(row), **given}, place)
        except QTargetError as error:
            if self.malformed == "drop":
                return "malformed"
            line = f" ({row.place})" if isinstance(row, Cells) else ""
            raise QTargetError(
                f"{self.described}, {name}[{place}]{line}: {error}; data.source.malformed=drop leaves such rows out"
            ) from error

    def _adapted(self, row: Row) -> Row | None:
        if self.adapt is None:
            return {}
        try:
            return self.adapt(row)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise QTargetError(
                f"{type(self.adapt).__name__} can't read its {listed(self.adapt.reads)}: "
                f"{type(error).__name__}: {str(error)[:200]}"
            ) from error

    def _demonstration(self, row: Row, place: int) -> Demonstration:
        options = self._options(row)
        if options:
            row = {**row, "options": "\n".join(f"{letter}. {option}" for letter, option in options.items())}
        judged = None
        if self.verifier and self.answer:
            judged = trusted(entry(self.verifier, filled(self.answer, row, "answer"), options), self.trust_scorer)
        factor, keys = row.get(self._column("weight") or ""), Keys(self.unknown)
        return Demonstration(
            self._conversation(row, keys),
            row=place,
            entry=judged,
            tools=tools(row.get(self._column("tools") or "")),
            weight=1.0 if factor is None else _weight(factor, self._column("weight") or ""),
            unread=keys.unread,
        )

    def _column(self, field: str) -> str | None:
        """The column of tools or of weights, where rows have such."""
        named = getattr(self, field)
        return named if isinstance(named, str) else field if self.messages and named is None else None

    def _conversation(self, row: Row, keys: Keys) -> list[Message]:
        if self.messages:
            return conversation(row[self.messages], self.messages, keys)
        assert self.prompt
        assert self.completion
        return exchange(
            filled(self.prompt, row, "prompt"), filled(self.completion, row, "completion"), system=self.system
        )

    def _options(self, row: Row) -> dict[str, str] | None:
        if self.options is None:
            return None
        if isinstance(self.options, str):
            found = row[self.options]
        else:
            found = self.options if isinstance(self.options, Mapping) else [row[column] for column in self.options]
        found = unpacked(found, "options") if isinstance(found, str) and found.lstrip()[:1] in ("[", "{") else found
        if isinstance(found, Mapping):  # a column of objects has every key in every row, null where it isn't there
            found = {letter: option for letter, option in found.items() if option is not None}
        return lettered(found)

    def _table(self, split: str) -> Table:
        """The split, with the columns that are read."""
        table = loaded(self, split)
        wanted = self._columns()
        for column in table.missing(list(wanted)):
            names = table.column_names
            raise QTargetError(
                f"{self.described} has no column {column!r} (data.source.{wanted[column]}) in {split!r}; its columns: "
                f"{listed(names)}{other_delimiter(names)}"
            )
        text_of = ("prompt", "completion", "answer", "key")
        check_not_guessed(self, table, [column for column, field in wanted.items() if field in text_of])
        beside = [name for field in ("tools", "weight") if (name := self._column(field)) and name not in wanted]
        absent = table.missing(beside) if beside else []
        return table.select_columns([*wanted, *(name for name in beside if name not in absent)])

    def _columns(self) -> dict[str, str]:
        """Column of the data set → the field that names it."""
        named = {field: getattr(self, field) for field in ("tools", "weight")}
        beside = {column: field for field, column in named.items() if isinstance(column, str)}
        specs = {"messages": self.messages, "prompt": self.prompt, "completion": self.completion, "answer": self.answer}
        found = beside | {column: field for field, spec in specs.items() if spec for column in columns_of(spec)}
        if self.options is not None:
            found.pop("options", None)  # what templates call so is put together
            listed_in = [] if isinstance(self.options, Mapping) else _several(self.options)
            found |= dict.fromkeys(listed_in, "options")
        if self.adapt:
            found = {column: field for column, field in found.items() if column not in self.adapt.gives}
            found |= dict.fromkeys(self.adapt.reads, "adapt")
        keyed = columns_of(self.key) if self.key else []
        return found | dict.fromkeys(self.where or {}, "where") | dict.fromkeys(keyed, "key")

    def _check_splits(self) -> None:
        share = self.heldout_share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise QTargetError(f"data.source.heldout_share must lie in [0, 1), got {share!r}")
        if share and (self.heldout or not self.train):
            raise QTargetError(
                "data.source.heldout_share holds out rows of the training split: leave it at 0 where data.source."
                "heldout names a split, or where there is no data.source.train"
            )
        if self.train == self.heldout:
            raise QTargetError(
                f"data.source.train and .heldout are both {self.train!r}: name two splits, or set one to null and, to "
                "share the other's rows, data.source.heldout_share"
            )

    def _check_mapping(self) -> None:
        pair = self.prompt and self.completion
        if bool(self.messages) == bool(self.prompt or self.completion) or not (self.messages or pair):
            raise QTargetError(
                "say which columns are read: data.source.messages=COLUMN, or data.source.prompt=… and "
                "data.source.completion=…, a column or a template such as '{question}\\n{options}'"
            )
        if self.verifier and not self.answer:
            raise QTargetError(
                f"data.source.verifier={verifier_name(self.verifier)} judges by an answer: set data.source.answer"
            )
        if self.verifier == "choice" and self.options is None:
            raise QTargetError("data.source.verifier=choice needs data.source.options, where the options stand")
        self._columns()  # templates are read


def _weight(cell: object, column: str) -> float:
    """That of a row; in a file of text alone it is written out, and an empty cell is none."""
    if not isinstance(cell, str):
        return weight(cell, column)
    try:
        return weight(float(cell), column) if cell.strip() else 1.0
    except ValueError:
        return weight(cell, column)


def _untyped(row: Row) -> Row:
    """Without what the types of a table put into every object of a column."""
    return row if isinstance(row, Cells) else {column: without_nulls(value) for column, value in row.items()}


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]
