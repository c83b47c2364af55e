"""Examples and demonstrations as Arrow files, mapped into memory: one is made anew whenever it is looked at.

The files are Arrow's IPC streams, which `datasets.Dataset.from_file` opens too. They are written and read by pyarrow
itself: importing `datasets` 5.2 takes 0.8 s of every start, and its rows are columns of a table, not examples.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields as fields_of
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from qtarget.data.example import Demonstration, Example
from qtarget.data.sources.written import WrittenNumber

COLUMN = "column."
"""What the name of a data column begins with, so that none is taken for one of a table's own."""
NUMBERS = {
    "row": np.int64,
    "of": np.int64,
    "first_label": np.int64,
    "first_reply": np.int32,
    "tokens": np.int32,
    "labels": np.int32,
}
"""One of each for an example; of: which of the rows that are kept it is of, from 0."""
LISTS = {"input_ids": np.int32, "supervised": np.bool_, "weights": np.float64}
"""One entry a token; no list of weights where an example has none."""
BATCH_TOKENS = 1 << 18
"""Tokens that are written at a time."""
BATCH_ROWS = 1000
"""Demonstrations that are written at a time."""


# Examples


class ExampleWriter:
    """Writes examples in order. columns: the data columns that any of them may have."""

    def __init__(self, sink: pa.NativeFile, columns: Iterable[str]) -> None:
        self._columns = tuple(columns)
        lists = LISTS | dict.fromkeys((COLUMN + name for name in self._columns), np.bool_)
        numbers = [(name, pa.from_numpy_dtype(kind)) for name, kind in NUMBERS.items()]
        self._schema = pa.schema(
            [*numbers, *((name, pa.list_(pa.from_numpy_dtype(kind))) for name, kind in lists.items())]
        )
        self._writer = pa.ipc.new_stream(sink, self._schema)
        self._held: list[Example] = []
        self._of: list[int] = []
        self._tokens = 0

    def add(self, example: Example, of: int) -> None:
        self._held.append(example)
        self._of.append(of)
        self._tokens += len(example)
        if self._tokens >= BATCH_TOKENS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        held = self._held
        numbers: list[list[int]] = [
            [example.row for example in held],
            self._of,
            [example.first_label for example in held],
            [example.first_reply for example in held],
            [len(example) for example in held],
            [example.labels for example in held],
        ]
        lists: list[list[Sequence[Any] | None]] = [
            [example.input_ids for example in held],
            [example.supervised for example in held],
            [example.weights for example in held],
            *([example.columns.get(name) for example in held] for name in self._columns),
        ]
        kinds = [*LISTS.values(), *(np.bool_ for _ in self._columns)]
        arrays = [_array(np.array(values, kind)) for values, kind in zip(numbers, NUMBERS.values(), strict=True)]
        arrays += [_list_array(values, kind) for values, kind in zip(lists, kinds, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._held, self._of, self._tokens = [], [], 0


def _list_array(values: Sequence[Sequence[Any] | None], kind: Any) -> pa.ListArray:
    """Lists of numbers of one kind, or of nothing."""
    ends = list(accumulate((len(value or ()) for value in values), initial=0))
    flat = np.fromiter(chain.from_iterable(value or () for value in values), kind, ends[-1])
    missing = np.array([value is None for value in values], np.bool_)
    return pa.ListArray.from_arrays(_array(np.array(ends, np.int32)), _array(flat), mask=_array(missing))


def _array(values: Any) -> pa.Array:
    """Of numpy's numbers or booleans. Not by `pa.array` of pyarrow 26, which imports pandas: 13 MB and a second."""
    packed = np.packbits(values, bitorder="little") if values.dtype == np.bool_ else values
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(packed)])


class StoredExamples(Sequence[Example]):
    """The examples of files, one file after the other. Nothing of them is in memory but the pages that are read.

    reader: what lives as long as somebody may look at them.
    """

    reader: object = None

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._table = _mapped(*paths)
        self._names = [name for name in self._table.column_names if name.startswith(COLUMN)]

    def __reduce__(self) -> Any:
        return StoredExamples, self._paths

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        at = range(len(self))[index]
        columns = {name.removeprefix(COLUMN): self._list(name, at) for name in self._names}
        return Example(
            input_ids=self._list("input_ids", at) or [],
            supervised=self._list("supervised", at) or [],
            columns={name: column for name, column in columns.items() if column is not None},
            row=self._table["row"][at].as_py(),
            first_label=self._table["first_label"][at].as_py(),
            weights=self._list("weights", at),
            first_reply=self._table["first_reply"][at].as_py(),
        )

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each."""
        return self._numbers("tokens")

    @cached_property
    def label_counts(self) -> list[int]:
        """Labels of each."""
        return self._numbers("labels")

    @cached_property
    def of(self) -> list[int]:
        """Which row each is of."""
        return self._numbers("of")

    def write(self, path: Path, rows: Sequence[int]) -> tuple[int, int]:
        """Write those of these rows (in order; see `of`) to a file, as the examples of a data set of their own.

        Returns how many of the rows hold a token that noise made wrong, and how many such tokens there are.
        """
        place = np.full(max([*self.of, *rows], default=-1) + 1, -1)
        place[list(rows)] = np.arange(len(rows))
        wrong = np.zeros(len(rows), np.int64)
        first_label = 0
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, self._table.schema) as writer:
            for batch in self._table.to_batches():
                of = place[_numbers(batch["of"])]
                kept = batch if (of >= 0).all() else batch.filter(_array(of >= 0))
                of, labels = of[of >= 0], _numbers(kept["labels"]).astype(np.int64)
                ends = first_label + labels.cumsum()
                columns = dict(zip(kept.schema.names, kept.columns, strict=True))
                columns |= {"of": _array(of), "first_label": _array(ends - labels)}
                writer.write_batch(pa.record_batch(list(columns.values()), schema=self._table.schema))
                first_label += int(labels.sum())
                np.add.at(wrong, of, _true_in(kept[COLUMN + "wrong"]))
        return int((wrong > 0).sum()), int(wrong.sum())

    def _numbers(self, name: str) -> list[int]:
        return [number for chunk in self._table[name].chunks for number in _listed(chunk)]

    def _list(self, name: str, at: int) -> list[Any] | None:
        values = self._table[name][at].values
        return None if values is None else _listed(values)


def _listed(values: pa.Array) -> list[Any]:
    listed: list[Any] = _numbers(values).tolist()
    return listed


def _numbers(values: pa.Array) -> Any:
    """Numbers or booleans, none missing, as numpy's. Not by `to_numpy`, for the reason of `_array`."""
    start, stop = values.offset, values.offset + len(values)
    kind = np.dtype(values.type.to_pandas_dtype())
    if not len(values):
        return np.zeros(0, kind)
    content = values.buffers()[1]
    if kind != np.bool_:
        return np.frombuffer(content, kind)[start:stop]
    first = start // 8
    bits = np.frombuffer(content, np.uint8, -(-stop // 8) - first, first)
    return np.unpackbits(bits, bitorder="little")[start - 8 * first :][: len(values)].view(np.bool_)


def _true_in(lists: pa.ListArray) -> Any:
    """How many entries of each list are true."""
    before = np.concatenate([[0], _numbers(lists.values).cumsum()])
    ends = before[_numbers(lists.offsets)]
    return np.diff(ends)


@contextmanager
def writing_examples(path: Path, columns: Iterable[str]) -> Iterator[ExampleWriter]:
    with pa.OSFile(str(path), "wb") as sink:
        writer = ExampleWriter(sink, columns)
        yield writer
        writer.close()


def _mapped(*paths: Path) -> pa.Table:
    return pa.concat_tables([pa.ipc.open_stream(pa.memory_map(str(path))).read_all() for path in paths])


# Demonstrations


class NotStorableError(Exception):
    """A row holds a value of a kind that no file gives back as it was; says which."""


def write_rows(path: Path, rows: Sequence[Demonstration]) -> None:
    """Raises NotStorableError."""
    schema = pa.schema([("row", pa.large_string())])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(rows), BATCH_ROWS):
            texts = [_as_text(row) for row in rows[start : start + BATCH_ROWS]]
            writer.write_batch(pa.record_batch([_texts(texts)], schema=schema))


def _texts(texts: Sequence[str]) -> pa.Array:
    encoded = [text.encode() for text in texts]
    ends = np.array(list(accumulate(map(len, encoded), initial=0)), np.int64)
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))


class StoredRows(Sequence[Demonstration]):
    """The demonstrations of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._texts = _mapped(path)["row"]

    def __reduce__(self) -> Any:
        return StoredRows, (self._path,)

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> Demonstration: ...
    @overload
    def __getitem__(self, index: slice) -> list[Demonstration]: ...
    def __getitem__(self, index: int | slice) -> Demonstration | list[Demonstration]:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        return _of_text(self._texts[range(len(self))[index]].as_py())


def _as_text(row: Demonstration) -> str:
    return json.dumps({field.name: _plain(getattr(row, field.name)) for field in fields_of(row)})


def _of_text(text: str) -> Demonstration:
    return Demonstration(**{name: _given_back(value) for name, value in json.loads(text).items()})


def _plain(value: Any) -> Any:
    """As JSON, from which `_given_back` makes the same again, types included. A list is a list, all else is named."""
    kind = type(value)
    if value is None or kind in (str, int, float, bool):
        return value
    if kind is list:
        return [_plain(item) for item in value]
    if kind is tuple:
        return {"tuple": [_plain(item) for item in value]}
    if kind is dict:
        return {"dict": [[_plain(key), _plain(item)] for key, item in value.items()]}
    if kind is WrittenNumber:
        return {"number": value.written}
    if isinstance(value, np.generic) and type(value.item()) in (str, int, float, bool):  # names in reasoning-gym's
        return {"numpy": [value.dtype.str, value.item()]}
    raise NotStorableError(f"a value of the kind {kind.__name__}")


def _given_back(value: Any) -> Any:
    if isinstance(value, list):
        return [_given_back(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "tuple":
        return tuple(_given_back(item) for item in held)
    if kind == "dict":
        return {_given_back(key): _given_back(item) for key, item in held}
    return WrittenNumber(held) if kind == "number" else np.dtype(held[0]).type(held[1])
