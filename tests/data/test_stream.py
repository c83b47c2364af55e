"""Rows that are read while training goes on: those that are prepared, in an order and from a place that are exact."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_data_files import FORMATS, PAIRS, lines
from test_prepared import CUTTING, TOKENIZER, rows, turns

from qtarget.config import versions
from qtarget.config.composing import compose_config, config_container
from qtarget.config.identity import config_hash
from qtarget.config.run_config import RunConfig
from qtarget.data.example import Example
from qtarget.data.lightning_data import StreamedData
from qtarget.data.module import DataConfig, prepare
from qtarget.data.sources.data_files import Files
from qtarget.data.sources.file_rows import FileRows, Place
from qtarget.data.stream import Stream, StreamPlace, prepare_stream
from qtarget.errors import QTargetError
from qtarget.model.builtin import tiny_tokenizer

Rows = list[dict[str, Any]]
HELDOUT: Rows = [{"prompt": "held", "completion": "out", "critical": [], "q": "held", "a": "out", "kind": 0}]


@pytest.fixture(autouse=True)
def own_cache(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", workdir / "cache")


def config(path: str, **fields: Any) -> DataConfig:
    """streaming is set by `stream`."""
    own = {name: fields.pop(name) for name in list(fields) if name in DataConfig.__dataclass_fields__}
    given: dict[str, Any] = {"rows": None, "heldout_rows": None, "contamination": "drop", "truncation": "drop"}
    return DataConfig(Files(path, **{"heldout_share": None, **fields}), **{**given, **own})


def stream(given: DataConfig, seed: int = 0, tokenizer: Any = TOKENIZER) -> Stream:
    source: Any = replace(given.source, streaming=True)  # type: ignore[type-var]
    made = prepare_stream(replace(given, source=source), tokenizer, 1024, seed).stream
    assert made is not None
    return made


def one_pass(given: Stream) -> list[Example]:
    return [example for example, _ in takewhile(lambda pair: pair[1].epoch == 0, given.examples())]


def prepared(given: DataConfig, tokenizer: Any = TOKENIZER) -> list[Example]:
    """As they are prepared, but for the place of their labels in a whole data set, which a stream doesn't know."""
    return [replace(example, first_label=0) for example in prepare(given, tokenizer, 1024).train]


def first_labels_aside(examples: list[Example]) -> list[Example]:
    return [replace(example, first_label=0) for example in examples]


def parquet(folder: Path, given: Rows, shards: int = 3, group: int = 4) -> None:
    """Files of several groups of rows, whose borders are no shard's."""
    folder.mkdir()
    size = -(-len(given) // shards)
    for number in range(shards):
        table = pa.Table.from_pylist(given[number * size : (number + 1) * size])
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=group)


# The same rows


@pytest.mark.parametrize("name", [*FORMATS, "groups"])
def test_a_stream_of_every_format_has_the_examples_that_are_prepared(name: str) -> None:
    """In the order of the source, and nothing is written for it."""
    (FORMATS | {"groups": parquet})[name](Path(name), PAIRS)
    Path("val.jsonl").write_bytes(lines(HELDOUT))
    given = config(name, heldout="val.jsonl")
    streamed = one_pass(stream(given))
    assert not [path for path in Path("cache").rglob("*") if path.suffix == ".arrow"]
    assert first_labels_aside(streamed) == prepared(given)
    assert len(streamed) == len(PAIRS)


CONVERSATION = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b", "weight": 0},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]
NONE_TAUGHT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}
SCHEMAS: Mapping[str, tuple[Rows, dict[str, Any]]] = {
    "weights, spans and columns": (rows(20), {"columns": ["critical"]}),
    "turns": (turns(12), {}),
    "the last turn": (turns(12), {"supervise": "last"}),
    "weights of messages": (
        [*({"messages": CONVERSATION, "weight": 1 + n, "other": n} for n in range(5)), NONE_TAUGHT],
        {},
    ),
    "ShareGPT": (
        [
            {"conversations": [{"from": "human", "value": f"{n}"}, {"from": "gpt", "value": "b" * n}]}
            for n in range(1, 9)
        ],
        {},
    ),
    "Alpaca": ([{"instruction": "add", "input": f"{n}", "output": f"{n + 1}"} for n in range(9)], {"system": "s"}),
    "columns": (
        [{"q": f"{n}", "a": f"{n}", "kind": n % 3} for n in range(12)],
        {"prompt": "What is {q}?", "completion": "a", "where": {"kind": [0, 2]}},
    ),
    "malformed": ([*PAIRS[:9], {"prompt": "p", "completion": {"a": 1}}, *PAIRS[9:12]], {"malformed": "drop"}),
    "cut": (rows(30), {"truncation": "cut", "max_length": 28}),
    "dropped": (rows(30), {"max_length": 28}),
    "held out too": (
        [*PAIRS[:3], {"prompt": "held", "completion": "y"}, *PAIRS[3:5], {"prompt": "HELD ", "completion": "x"}],
        {},
    ),
    "weights from a row on": ([*PAIRS, *({**row, "weight": 2} for row in rows(3))], {}),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_rows_of_every_schema_are_rendered_supervised_and_weighted_alike(name: str) -> None:
    given, fields = SCHEMAS[name]
    Path("rows.jsonl").write_bytes(lines(given))
    Path("val.jsonl").write_bytes(lines(HELDOUT))
    asked = config("rows.jsonl", heldout_source="val.jsonl", **fields)
    streamed = stream(asked)
    examples = one_pass(streamed)
    assert first_labels_aside(examples) == prepared(asked)
    (counts,) = [place.counts for _, place in islice(streamed.examples(), len(examples), len(examples) + 1)]
    in_memory = prepare(asked, TOKENIZER, 1024).counts
    for key in ("dropped_too_long", "dropped_contaminated", "dropped_untaught", "source_where", "source_malformed"):
        assert counts.get(key, 0) == in_memory.get(key, 0), key


def test_rows_of_several_examples_are_those_of_the_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CUTTING
    Path("rows.jsonl").write_bytes(lines(turns(5)))
    given = config("rows.jsonl", heldout_rows=0)
    examples = one_pass(stream(given, tokenizer=tokenizer))
    assert first_labels_aside(examples) == prepared(given, tokenizer)
    assert len(examples) == 10


def test_the_first_rows_are_set_aside() -> None:
    """As many as are asked for, and never trained on, in any pass."""
    Path("rows.jsonl").write_bytes(lines(PAIRS))
    source = Files("rows.jsonl", streaming=True)
    made = prepare_stream(DataConfig(source, None, heldout_rows=7, contamination="allow"), TOKENIZER, 1024, 0)
    assert [row.row for row in made.heldout_rows] == [1, 2, 3, 4, 5, 6, 7]
    assert made.stream is not None
    read = [example.row for example, _ in islice(made.stream.examples(), 70)]
    assert read == [*range(8, 41), *range(8, 41), 8, 9, 10, 11]
    shuffled = [example.row for example, _ in islice(replace(made.stream, buffer=20).examples(), 3 * 33)]
    assert sorted(shuffled) == sorted([*range(8, 41)] * 3)  # of datasets 5.2.0, skip(7) is made anew with every shuffle
    assert len(prepare(DataConfig(source, 0, heldout_rows=7), TOKENIZER, 1024).heldout_rows) == 7  # qtarget evaluate
    with pytest.raises(QTargetError, match=r"rows.jsonl has 40 heldout rows in 'train'; 41 were asked for"):
        prepare_stream(DataConfig(source, None, heldout_rows=41), TOKENIZER, 1024, 0)


# Places


@pytest.mark.parametrize("buffer", [0, 7])
@pytest.mark.parametrize("name", ["rows.csv", "shards", "groups", "saved", "stream.arrow"])
def test_a_stream_goes_on_from_every_place(name: str, buffer: int) -> None:
    """Through a second pass; a place is a few numbers of JSON."""
    (FORMATS | {"groups": parquet})[name](Path(name), PAIRS)
    given = config(name, heldout_rows=3, contamination="allow")
    whole = list(islice(replace(stream(given), buffer=buffer).examples(), 90))
    fresh = replace(stream(given), buffer=buffer)
    for at in range(0, 80, 3):
        place = whole[at][1]
        for start in range(at + 1, at + 9, 4):  # and goes on from where it has gone on
            kept = json.dumps(asdict(place))
            assert len(kept) < 1000
            again = fresh.examples(StreamPlace(**json.loads(kept)))
            read = [next(again) for _ in range(4)]
            assert [example for example, _ in read] == [example for example, _ in whole[start : start + 4]]
            place = read[-1][1]
            assert replace(place, group=None) == replace(whole[start + 3][1], group=None)


def test_a_place_may_lie_between_the_examples_of_a_row() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CUTTING
    Path("rows.jsonl").write_bytes(lines([*turns(5), NONE_TAUGHT]))
    made = replace(stream(config("rows.jsonl", heldout_rows=0), tokenizer=tokenizer), buffer=3)
    whole = list(islice(made.examples(), 25))
    assert {place.examples for _, place in whole} == {0, 1}
    for at in range(20):
        assert list(islice(made.examples(whole[at][1]), 4)) == whole[at + 1 : at + 5]


@pytest.mark.parametrize("count", [40, 21, 3])
def test_rows_are_shuffled_in_groups_by_seed_and_epoch_alone(count: int) -> None:
    Path("rows.jsonl").write_bytes(lines(PAIRS[:count]))
    given = config("rows.jsonl", heldout_rows=0)

    def order(seed: int, buffer: int = 10) -> list[int]:
        return [one.row for one, _ in islice(replace(stream(given, seed), buffer=buffer).examples(), 2 * count)]

    first, second = order(0)[:count], order(0)[count:]
    for start in range(0, count, 10):
        expected = list(range(start + 1, min(start + 10, count) + 1))
        assert sorted(first[start : start + 10]) == sorted(second[start : start + 10]) == expected
    assert order(0) == order(0)
    assert order(0, 0) == [*range(1, count + 1)] * 2
    if count > 3:
        assert len({tuple(first), tuple(second), tuple(order(1)[:count]), tuple(range(1, count + 1))}) == 4


@pytest.mark.parametrize(("batch_size", "accumulate"), [(12, 1), (4, 3), (3, 4), (1, 12)])
def test_a_step_has_the_same_rows_however_it_is_cut(batch_size: int, accumulate: int) -> None:
    """All its rows at the end of a pass too, and a window that counts them all."""
    Path("rows.jsonl").write_bytes(lines(PAIRS))
    made = replace(stream(config("rows.jsonl", heldout_rows=0)), buffer=9)
    data = StreamedData(made, 0, batch_size=batch_size, accumulate=accumulate, steps=7)
    batches = list(data.train_dataloader())
    examples = [example for example, _ in islice(made.examples(), 84)]
    assert len(batches) == len(data) == len(data.train_dataloader()) == 7 * accumulate
    for step in range(7):
        own, mine = batches[step * accumulate : (step + 1) * accumulate], examples[12 * step : 12 * step + 12]
        padded = [row for batch in own for row in batch.input_ids]
        ids = [row[: len(one)].tolist() for row, one in zip(padded, mine, strict=True)]
        assert ids == [list(one.input_ids) for one in mine]
        assert {batch.window.tokens for batch in own if batch.window} == {sum(one.labels for one in mine)}


# No more than has to be


@dataclass(frozen=True)
class Counted(FileRows):
    """Counts rows as they are read."""

    read: list[int] = field(default_factory=list)

    def behind(self, place: Place | None) -> Iterator[Any]:
        for row in super().behind(place):
            self.read.append(1)
            yield row


@pytest.mark.parametrize(("buffer", "ahead"), [(0, 0), (10, 9)])
def test_no_row_is_read_before_it_is_needed(buffer: int, ahead: int) -> None:
    """Steps of 4 rows: when one is handed out, those of the groups that it takes were read, and none behind them."""
    Path("rows.jsonl").write_bytes(lines(PAIRS * 5))
    made = replace(stream(config("rows.jsonl", heldout_rows=0)), buffer=buffer)
    table = made.rows.table
    assert isinstance(table, FileRows)
    counted = Counted(table.parts, table.form)
    made = replace(made, rows=replace(made.rows, table=counted))
    data = StreamedData(made, 0, batch_size=2, accumulate=2, steps=30)
    for number, _ in enumerate(data.train_dataloader()):
        taken = 4 * (number // 2 + 1)
        assert taken <= len(counted.read) <= taken + ahead
    counted.read.clear()
    place = data.place(30)
    next(made.examples(place))
    assert len(counted.read) <= 1 + ahead  # a run that goes on reads no shard again from its beginning


# What stops it


def test_a_row_that_cannot_be_read_is_named_when_it_is_come_to() -> None:
    Path("shards").mkdir()
    Path("shards/a.jsonl").write_bytes(lines(PAIRS))
    Path("shards/b.jsonl").write_bytes(lines(PAIRS) + b'{"prompt": "p", "completion": 1.5e}\n')
    Path("shards/c.jsonl").write_bytes(lines([{"prompt": "p", "completion": ["x"]}]))
    examples = stream(config("shards", heldout_rows=0)).examples()
    assert len(list(islice(examples, 80))) == 80
    with pytest.raises(QTargetError, match=r"shards/b.jsonl, line 41: not JSON"):
        next(examples)
    Path("shards/b.jsonl").write_bytes(lines(PAIRS))
    examples = stream(config("shards", heldout_rows=0)).examples()
    assert len(list(islice(examples, 80))) == 80
    with pytest.raises(QTargetError, match=r"shards, row 81 of train \(c.jsonl, line 1\): .*malformed=drop"):
        next(examples)


def test_a_row_that_a_cut_leaves_nothing_of_is_passed_over_and_counted() -> None:
    long = {"prompt": "p" * 2000, "completion": "x"}
    Path("rows.jsonl").write_bytes(lines([*PAIRS * 2, long]))
    examples = stream(config("rows.jsonl", heldout_rows=0, truncation="cut")).examples()
    *_, (example, place) = islice(examples, 81)
    assert (example.row, place.epoch, place.counts["dropped_too_long"]) == (1, 1, 1)


def test_a_file_that_breaks_is_a_message(workdir: Path) -> None:
    parquet(Path("groups"), PAIRS)
    examples = stream(config("groups", heldout_rows=0)).examples()
    assert len(list(islice(examples, 5))) == 5
    broken = Path("groups/part-1.parquet")
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(QTargetError, match=r"groups: can't read behind row 14 of train \(.*the same command goes on"):
        list(islice(examples, 20))


def test_a_stream_without_anything_to_teach_ends() -> None:
    Path("rows.jsonl").write_bytes(lines([NONE_TAUGHT] * 5))
    with pytest.raises(QTargetError, match=r"no training row is left of rows.jsonl, 5 dropped_untaught: give data"):
        stream(config("rows.jsonl", heldout_rows=0))


STREAMED = ["model=tiny", "data=files", "data.source.path=rows.jsonl", "data.source.streaming=true"]
ASKED = ["data.heldout_rows=8", "data.truncation=drop", "data.contamination=drop"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.truncation=drop", "data.contamination=drop"], "set data.heldout_rows=N, or name a file with"),
        (["data.heldout_rows=8"], "set data.truncation=drop or =cut; .*set data.contamination=drop, which leaves"),
        ([*ASKED, "data.rows=100"], "data.rows and data.reserve_rows take a share of them: leave them"),
        ([*ASKED, "data.packing=64"], "data.packing sorts all of them by length: leave it at null"),
        ([*ASKED, "data/noise=typo"], "noise is put into a share of all of them: write data/noise=none"),
        ([*ASKED, "data.keep=true"], "nothing is kept of them: leave data.keep at auto"),
        ([*ASKED, "trainer.epochs=1", "trainer.max_steps=null"], "set trainer.max_steps=N trainer.epochs=null"),
        ([*ASKED, "reference@references.prior=cached"], "set reference@references.prior=frozen"),
        (
            [*ASKED, "reference@references.teacher=privileged"],
            "references.teacher.hint is put in front of all of them: take another kind",
        ),
    ],
)
def test_what_takes_all_rows_is_refused_before_any_is_read(overrides: list[str], message: str) -> None:
    with pytest.raises(QTargetError, match=f"data.source.streaming=true reads its rows once training.*{message}"):
        RunConfig.compose([*STREAMED, *overrides])


def test_what_does_not_go_with_a_stream_is_refused_by_the_source() -> None:
    for fields, message in (
        ({"pick": 10}, "pick and .heldout_share choose among all rows"),
        ({"heldout_share": 0.1}, "pick and .heldout_share choose among all rows"),
        ({"streaming": False, "shuffle_buffer": 5}, "shuffle_buffer=5 shuffles a stream; .*streaming=true"),
    ):
        with pytest.raises(QTargetError, match=message):
            Files("rows.jsonl", **{"streaming": True, **fields})  # type: ignore[arg-type]
    Path("rows.jsonl").write_bytes(lines(PAIRS))
    with pytest.raises(
        QTargetError, match=r"reads rows.jsonl while a run trains on it, and on it alone: where its rows"
    ):
        Files("rows.jsonl", streaming=True).rows("train", None)
    Path("shards").mkdir()
    Path("shards/a.csv").write_text("prompt,completion\na,b\n")
    with pytest.raises(QTargetError, match=r"a stream has no split 'train\[:1\]', which is a part of shards: name one"):
        stream(config("shards", train="train[:1]", heldout_rows=0))
    with pytest.raises(QTargetError, match=r"rows.jsonl has no column 'q' .*its columns: prompt, completion"):
        stream(config("rows.jsonl", prompt="q", completion="completion", heldout_rows=0))


def test_the_name_of_a_run_on_a_stream_does_not_take_reading_it_whole() -> None:
    """Which changes between builds concern a configuration is looked up in its rows: no earlier build had a stream."""
    functions = {"messages": CONVERSATION, "functions": [{"name": "f", "parameters": {}}]}
    Path("rows.jsonl").write_bytes(lines([functions]))
    whole, streamed = (compose_config("train", [*STREAMED[:3], *more]) for more in ([], [STREAMED[3], *ASKED]))
    assert "functions" in versions.versions(config_container(whole))
    assert versions.versions(config_container(streamed)) == {}
    shuffled = compose_config("train", [*STREAMED, *ASKED, "data.source.shuffle_buffer=5"])
    assert len({config_hash(one) for one in (whole, streamed, shuffled)}) == 3
