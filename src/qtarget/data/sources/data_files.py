"""The one door to data: files of any common format and schema, folders of them, and data sets of the hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from qtarget.data.example import Demonstration
from qtarget.data.overlap import position, prompt_text
from qtarget.data.sources.adapt import Adapt
from qtarget.data.sources.conversation import check_verifier, columns_of, filled, listed
from qtarget.data.sources.file_rows import FileRows, Table, other_delimiter
from qtarget.data.sources.loading import check_is_there, check_not_guessed, is_file_name, loaded, only_split
from qtarget.data.sources.mapping import BESIDE, ColumnMapping, option_columns
from qtarget.data.sources.message import UNKNOWN
from qtarget.data.sources.row_reader import RowReader, adapted, untyped
from qtarget.data.sources.schema import SCHEMAS, SchemaRows, check_columns, schema_of
from qtarget.data.sources.share import HeldOut, HoldsOut, held_out
from qtarget.data.sources.streamed import StreamedRows, check_streamed
from qtarget.data.verify.verdict import Verifier, verifier_name
from qtarget.errors import QTargetError
from qtarget.settings import FLAG, ByName, Checked, Choice, Either, Listed, Nullable, Part, Share, Text, Whole, setting

MALFORMED = ("error", "drop")
TEXTS = ("prompt", "completion", "instruction", "output")
"""Keys of schemas that hold text."""
LOOKED_AT = 1000
"""Rows of a stream of JSON in which columns are looked for."""
SHARE = 0.1
"""Of the rows, held out where no other rows are named."""
HELDOUT_KEYS = "data.source.heldout, or data.heldout_source,"
"""Settings that name a file of held-out rows."""


@dataclass(frozen=True)
class Files(HoldsOut, Checked):
    r"""Rows of files, of a folder, or of a data set of the hub (https://huggingface.co/datasets).

    path: a file (.jsonl, .json, .csv, .tsv, also packed as .gz, .bz2, .xz; .parquet, .arrow), a folder of such or of
    `save_to_disk`, or an id of the hub; name: its configuration; revision: branch, tag or commit. files: local files to
    read instead, {split: file or files}. What is text in a CSV or JSON file stays that text (see
    qtarget.data.sources.file_rows); Parquet and Arrow have types of their own. delimiter: of CSV, None: a comma, in a
    .tsv a tab.
    The schema is recognised by the keys of the first row (qtarget.data.sources.schema), unless columns are named.
    messages: the column of conversations; or prompt and completion: a column each, or a template over columns, such as
    "{question}\n{options}". system: system message before prompt and completion, None for the template's own.
    train: name of the split to train on; None: nothing is. heldout: the rows to evaluate on, all of them: a file of
    your own (val.jsonl; a folder is written ./val), or the name of a split. heldout_share in [0, 1): without `heldout`,
    the share of the training rows that is held out, by a hash of the prompt, of one prompt at least; None: 0.1.
    verifier: "math", "choice" or "exact", by which answers are judged, with `answer` (column or template; None: the
    column "answer") and, for choice, `options`: a column of {letter: text} or of texts, a list of columns, or
    {letter: text} itself. Templates may then name {options}, one a line.
    where: column → value, or list of values, that rows must have. pick: so many rows of the training split, in the
    order of a hash of `seed` and `key` (column or template; None: the prompt), so that it doesn't matter where in the
    file they stand; the first 100 of pick=1000 are those of pick=100. malformed: what becomes of rows without the text
    that is asked of them, "error" or "drop". adapt: see qtarget.data.sources.adapt.
    tools, weight: columns of the functions that may be called, and of what multiplies a row's loss; null: next to
    `messages` the columns of these names, where there are such, and `span_weights`; false: none. unknown: what becomes
    of keys that are not read, as in qtarget.data.sources.message. Columns that are chosen by name leave no loss in
    those that nobody names.
    columns: of a recognised schema, keys under which every row holds character spans [[start, stop], …] of its last
    message; the tokens there carry 1 in a data column of that name, the others 0.
    hint: what a privileged reference is told beside the prompt, a column or a template; None: of a recognised schema
    the key "hint".
    streaming: the training rows are read while training goes on (qtarget.data.stream), and kept nowhere; held out are
    the first ones that are asked for. shuffle_buffer: so many rows at a time are shuffled; 0: none.
    Code that a data set brings is never run.
    """

    NODE_KEY: ClassVar[str] = "data.source"
    path: str = setting(MISSING, Text("a file, a folder or a hub id"), "the data set")
    name: str | None = setting(None, Nullable(Text()), "of the hub: its configuration")
    revision: str | None = setting(None, Nullable(Text()), "branch, tag or commit; null: the newest")
    files: Mapping[str, Any] | None = setting(
        None,
        Nullable(ByName(Part("each a file or a list of files"), "{SPLIT: FILE}")),
        "files to read in place of the path",
    )
    train: str | None = setting("train", Nullable(Text()), "name of its training split; null: none")
    heldout: str | None = setting(
        None, Nullable(Text("a file or a split")), "rows to evaluate on, all of them; null: a share"
    )
    heldout_share: float | None = setting(
        None, Nullable(Share()), "without them: share of the training rows, by a hash of the prompt; null: 0.1"
    )
    messages: str | None = setting(None, Nullable(Text("a column")), "conversations; in place of prompt and completion")
    prompt: str | None = setting(
        None,
        Nullable(Text("a column or a template")),
        "what is asked, such as {question}; null: the schema is recognised",
    )
    completion: str | None = setting(None, Nullable(Text("a column or a template")), "what is answered")
    system: str | None = setting(
        None, Nullable(Text()), "system message before prompt and completion; null: the template's own"
    )
    verifier: str | Verifier | None = setting(
        None, Part("math, choice, exact or a class, or null"), "what judges answers; null: nothing"
    )
    answer: str | None = setting(
        None, Nullable(Text("a column or a template")), "what it judges by; null: the column answer"
    )
    options: Any = setting(
        None,
        Part("a column, a list of columns or {LETTER: TEXT}, or null"),
        "of verifier=choice: what there is to choose from",
    )
    where: Mapping[str, Any] | None = setting(
        None, Nullable(ByName(Part("or a list of values each"), "{COLUMN: VALUE}")), "what rows must hold"
    )
    pick: int | None = setting(None, Nullable(Whole(1)), "so many training rows, by a hash of key; null: all")
    key: str | None = setting(None, Nullable(Text("a column or a template")), "what pick hashes; null: the prompt")
    seed: int = setting(0, Whole(0), "of the hash")
    malformed: str = setting("error", Choice(MALFORMED), "what becomes of rows without text where text is asked for")
    adapt: Adapt | None = setting(
        None,
        Part("a class of qtarget.data.sources.adapt, or null"),
        "what is made of a row before its columns are read",
    )
    delimiter: str | None = setting(None, Nullable(Text("one character")), "of CSV; null: a comma, in a .tsv a tab")
    trust_scorer: bool = setting(False, FLAG, "true: answers that are none, too, are put to the scorer")
    tools: str | bool | None = setting(
        None,
        Either((Choice((None, False)), Text("a column"))),
        "functions that may be called; null: the column tools, if there is one",
    )
    weight: str | bool | None = setting(
        None,
        Either((Choice((None, False)), Text("a column"))),
        "factor of a row's loss; null: the column weight, if there is one",
    )
    unknown: str | None = setting(
        None, Choice(UNKNOWN), "keys that nobody reads; null: an error in a message, named in a row"
    )
    hint: str | None = setting(
        None, Nullable(Text("a column or a template")), "what a privileged reference is told; null: the key hint"
    )
    columns: Sequence[str] = setting(
        (), Listed(Text()), "of a recognised schema: keys with character spans of the last message"
    )
    streaming: bool = setting(False, FLAG, "true: training rows are read as training goes on, and kept nowhere")
    shuffle_buffer: int = setting(0, Whole(0), "of a stream: rows that are shuffled at a time; 0: its own order")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_verifier(self.verifier)
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise QTargetError(f"data.source.delimiter must be one character, or null, got {self.delimiter!r}")
        check_columns(self.columns)
        self._check_splits()
        self._check_reading()

    @property
    def described(self) -> str:
        """Which data set it is; once rows were read by their schema, what they were taken for."""
        schemas = dict.fromkeys(self._schemas.values())
        return f"{' and '.join(schemas)} from {Path(self.called).name}" if schemas else self.called

    @property
    def called(self) -> str:
        """The name of the data set."""
        return " ".join(filter(None, (self.path, self.name, self.revision)))

    @property
    def share(self) -> float:
        """Of the training rows, held out."""
        default = 0.0 if self.heldout or not self.train or self.streaming else SHARE
        return default if self.heldout_share is None else self.heldout_share

    def rows(self, split: str, count: int | None) -> list[Demonstration]:
        """The first `count` rows of a split (None: all). Raises QTargetError: what is missing, and what is there."""
        return self.read(split, count)[0]

    def read(self, split: str, count: int | None) -> tuple[list[Demonstration], dict[str, int]]:
        """Rows of a split; and how many were read for them, and left out by reason."""
        return self.read_shared(split, count, None)

    def read_shared(
        self, split: str, count: int | None, heldout_rows: int | None
    ) -> tuple[list[Demonstration], dict[str, int]]:
        """The same, where only the first `heldout_rows` rows of a share are held out; None: all of the share."""
        name = self._split(split, count)
        if name is None:
            return [], {}
        if split == "heldout" and is_file_name(name):
            check_is_there(name, HELDOUT_KEYS)
            return self.whole(name).read("train", count)
        if split == "train" and self.streaming:
            raise QTargetError(
                f"data.source.streaming=true reads {self.called} while a run trains on it, and on it alone: where its "
                "rows are read before, or are a part of a mixture, set it to false, and data.source.path to one file"
            )
        left_out: Counter[str] = Counter()
        side = self.side(heldout_rows) if name == self.train else HeldOut()
        rows = list(islice(self._demonstrations(name, split, side, left_out), count))
        if count is not None and len(rows) < count:
            why = "".join(f", {number} left out: {reason}" for reason, number in left_out.items())
            raise QTargetError(
                f"{self.called} has {len(rows)} {split} rows in {name!r}{why}; {count} were asked for: ask for fewer"
            )
        return rows, {"read": len(rows) + left_out.total(), **left_out}

    def whole(self, path: str) -> Files:
        """All rows of another file, read as those of this one are."""
        return replace(
            self,
            path=path,
            files=None,
            name=None,
            train=only_split(path),
            heldout=None,
            heldout_share=0.0,
            where=None,
            pick=None,
            streaming=False,
            shuffle_buffer=0,
        )

    def streamed(self) -> StreamedRows:
        """The rows of the training split, read as they are asked for."""
        name = self._split("train", None)
        assert name
        table = self._table(name)
        return StreamedRows(table, self._reader(table, name))

    def _read_files(self) -> list[Path]:
        given = [named if isinstance(named, list | tuple) else [named] for named in (self.files or {}).values()]
        return [*super()._read_files(), *(Path(name).expanduser() for named in given for name in named)]

    def _held_out(self, heldout_rows: int | None) -> HeldOut:
        """Of the training split's rows; of a stream the first ones."""
        if self.streaming:
            return HeldOut(1.0)
        if not self.share:
            return HeldOut()
        assert self.train
        return held_out(self._read_rows(self.train, Counter()), self.share, heldout_rows)

    def _split(self, split: str, count: int | None) -> str | None:
        """The data set's name of one of our splits; None where it has none and none of its rows are asked for."""
        own = self.heldout or (self.train if self.share or self.streaming else None)
        name = {"train": self.train, "heldout": own, "reserve": None}[split]
        if name is None and (count or (split == "train" and count is None)):
            ways = {
                "train": "this data is for evaluation; name a split with data.source.train to train on it",
                "heldout": "name a file or a split with data.source.heldout, or set data.source.heldout_share",
                "reserve": "leave data.reserve_rows at 0",
            }
            raise QTargetError(f"{self.called} has no {split} rows: {ways[split]}")
        return None if count == 0 else name

    def _demonstrations(self, name: str, split: str, side: HeldOut, left_out: Counter[str]) -> Iterator[Demonstration]:
        for row in self._read_rows(name, left_out):
            if name == self.train and side.holds(row) != (split == "heldout"):
                left_out["other_split"] += 1
            else:
                yield row

    def _read_rows(self, name: str, left_out: Counter[str]) -> Iterator[Demonstration]:
        """All rows of a split of the data set, but for those that are counted as left out."""
        table = self._table(name)
        read = self._reader(table, name)
        rows: Iterable[tuple[int, Mapping[str, Any]]] = enumerate(table)
        if self.pick and name == self.train:
            indices = self._picked(table, read, left_out)
            rows = zip(indices, table.at(indices), strict=True)
        for index, row in rows:
            result = read(row, index)
            if isinstance(result, str):
                left_out[result] += 1
            else:
                yield result

    def _picked(self, table: Table, read: RowReader, left_out: Counter[str]) -> list[int]:
        """Indices of the `pick` rows that come first by the hash of their key."""
        keyed = []
        for index, row in enumerate(table):
            result = read(row, index)
            if isinstance(result, str):
                left_out[result] += 1
            else:
                keyed.append((self._position(row, result), index))
        left_out["unpicked"] += max(0, len(keyed) - (self.pick or 0))
        return [index for _, index in sorted(keyed)[: self.pick]]

    def _position(self, row: Mapping[str, Any], demonstration: Demonstration) -> float:
        key = filled(self.key, row, "key") if self.key else prompt_text(demonstration.prompt)
        return position(f"{self.seed}:{key}")

    @cached_property
    def _mapping(self) -> ColumnMapping:
        return ColumnMapping(**{field.name: getattr(self, field.name) for field in fields(ColumnMapping)})

    @cached_property
    def _schemas(self) -> dict[str, str]:
        """Split → the schema that its rows were taken for; filled as splits are read."""
        return {}

    def _reader(self, table: Table, name: str) -> RowReader:
        """What makes a demonstration of a row: by the columns that are named, or by the schema of the first row."""
        if self._mapping.is_given:
            return RowReader(self, name, self._mapping.demonstration)
        schema = self._schema(table, name)
        self._schemas[name] = schema
        shared = ("system", "columns", "verifier", "trust_scorer", "unknown", "answer", "options", "hint", "path")
        settings = {field: getattr(self, field) for field in shared}
        return RowReader(self, name, SchemaRows(schema, **settings, numbers=True).demonstration)

    def _schema(self, table: Table, name: str) -> str:
        for row in table:
            try:
                given = adapted(self.adapt, row)
                if given is not None:
                    return schema_of({**untyped(row), **given}, self.path)
            except QTargetError as error:
                raise QTargetError(
                    f"{self.called}, the first row of {name!r}: {error}{other_delimiter(list(row))}"
                ) from error
        raise QTargetError(
            f"{self.called} has no rows in {name!r}: name data that has some with data.source.path, or another split "
            "with data.source.train or .heldout"
        )

    def _table(self, split: str) -> Table:
        """The split, with the columns that are read."""
        table = loaded(self, split)
        wanted = self._columns()
        is_open = self.streaming and isinstance(table, FileRows) and table.form == "json"
        looked_at = table.first(LOOKED_AT) if is_open else table  # type: ignore[union-attr]
        for column in looked_at.missing(list(wanted)):
            names = looked_at.column_names
            raise QTargetError(
                f"{self.called} has no column {column!r} (data.source.{wanted[column]}) in {split!r}; its columns: "
                f"{listed(names)}{other_delimiter(names)}"
            )
        if not self._mapping.is_given:
            check_not_guessed(self, table, [key for keys in SCHEMAS.values() for key in keys if key in TEXTS])
            return table
        text_of = ("prompt", "completion", "answer", "key", "hint")
        check_not_guessed(self, table, [column for column, field in wanted.items() if field in text_of])
        beside = [name for field in BESIDE if (name := self._mapping.beside(field)) and name not in wanted]
        absent = table.missing(beside) if beside and not is_open else []  # which rows of a stream have them isn't known
        return table.select_columns([*wanted, *(name for name in beside if name not in absent)])

    def _columns(self) -> dict[str, str]:
        """Column of the data set → the field that names it."""
        columns = self._mapping.columns()
        if self.options is not None:
            columns.pop("options", None)  # what templates call so is put together
            columns |= dict.fromkeys(option_columns(self.options), "options")
        if self.adapt:
            columns = {column: field for column, field in columns.items() if column not in self.adapt.gives}
            columns |= dict.fromkeys(self.adapt.reads, "adapt")
        keyed = columns_of(self.key) if self.key else []
        return columns | dict.fromkeys(self.where or {}, "where") | dict.fromkeys(keyed, "key")

    def _check_splits(self) -> None:
        check_streamed(self)
        if self.heldout_share and (self.heldout or not self.train):
            raise QTargetError(
                "data.source.heldout_share holds out rows of the training split: leave it at 0 where data.source."
                "heldout names other rows, or where there is no data.source.train"
            )
        if self.train == self.heldout:
            raise QTargetError(
                f"data.source.train and .heldout are both {self.train!r}: name two splits, or set one to null and, to "
                "share the other's rows, data.source.heldout_share"
            )

    def _check_reading(self) -> None:
        if self._mapping.is_given:
            self._mapping.check()
            if self.columns:
                raise QTargetError(
                    "data.source.columns are read of rows whose schema is recognised: leave data.source.messages, "
                    ".prompt and .completion out, or name no columns"
                )
            if self.verifier and not self.answer:
                raise QTargetError(
                    f"data.source.verifier={verifier_name(self.verifier)} judges by an answer: set data.source.answer"
                )
            if self.verifier == "choice" and self.options is None:
                raise QTargetError("data.source.verifier=choice needs data.source.options, where the options stand")
        self._columns()  # templates are read
