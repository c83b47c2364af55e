"""One door: files of every common format and schema are read by data=files, and what it takes them for is said."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest

import qtarget
from qtarget.config import versions
from qtarget.config.composing import compose_config, config_container, instantiate
from qtarget.config.identity import config_hash
from qtarget.data.example import Demonstration
from qtarget.data.module import DataConfig, Prepared, check_heldout, prepare
from qtarget.data.overlap import position, prompt_text
from qtarget.data.sources.data_files import Files
from qtarget.data.sources.file_rows import Cells, FileRows
from qtarget.data.sources.hub import Hub
from qtarget.data.sources.jsonl import Jsonl
from qtarget.data.sources.reasoning_gym import ReasoningGym
from qtarget.errors import QTargetError
from qtarget.model.builtin import tiny_tokenizer
from qtarget.run.stored_config import check_not_trained_on

Rows = list[dict[str, Any]]
PAIRS: Rows = [{"prompt": f"ask {index}", "completion": f"answer {index}"} for index in range(40)]
TOKENIZER = tiny_tokenizer()


@pytest.fixture(autouse=True)
def own_cache(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", workdir / "cache")


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def arrow(make: Callable[..., Any]) -> Callable[[Path, Rows], None]:
    def write(path: Path, rows: Rows) -> None:
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
            writer.write_table(table)

    return write


def packed(pack: Callable[[bytes], bytes]) -> Callable[[Path, Rows], None]:
    return lambda path, rows: path.write_bytes(pack(lines(rows))) and None


def of_csv(rows: Rows) -> bytes:
    return "".join(",".join(cells) + "\n" for cells in [list(rows[0]), *(row.values() for row in rows)]).encode()


def shards(folder: Path, rows: Rows) -> None:
    folder.mkdir()
    for start in range(0, len(rows), 16):
        (folder / f"part-{start:05}.jsonl.gz").write_bytes(gzip.compress(lines(rows[start : start + 16])))


def saved(folder: Path, rows: Rows) -> None:
    """As numpy arrays, which is how `save_to_disk` of datasets 5.2 gives them back."""
    datasets.Dataset.from_list(rows).with_format("numpy").save_to_disk(folder)


FORMATS: dict[str, Callable[[Path, Rows], Any]] = {
    "rows.jsonl": packed(bytes),
    "rows.json": lambda path, rows: path.write_text(json.dumps(rows)),
    "rows.csv": lambda path, rows: path.write_bytes(of_csv(rows)),
    "rows.tsv": lambda path, rows: path.write_bytes(of_csv(rows).replace(b",", b"\t")),
    "rows.jsonl.gz": packed(gzip.compress),
    "rows.csv.gz": lambda path, rows: path.write_bytes(gzip.compress(of_csv(rows))),
    "rows.ndjson.bz2": packed(bz2.compress),
    "rows.jsonl.xz": packed(lzma.compress),
    "rows.parquet": lambda path, rows: datasets.Dataset.from_list(rows).to_parquet(path),
    "stream.arrow": arrow(pa.ipc.new_stream),
    "file.arrow": arrow(pa.ipc.new_file),
    "shards": shards,
    "saved": saved,
}


def texts(rows: list[Demonstration]) -> list[tuple[str, str]]:
    return [(row.prompt[-1]["content"], row.completion) for row in rows]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows_and_the_same_split(name: str) -> None:
    FORMATS[name](Path(name), PAIRS)
    source = Files(name)
    train, heldout = source.rows("train", None), source.rows("heldout", None)
    expected = [(row["prompt"], row["completion"]) for row in PAIRS]
    held = [pair for pair in expected if position(f"user: {pair[0]}") < 0.1]
    assert texts(heldout) == held
    assert texts(train) == [pair for pair in expected if pair not in held]
    assert source.described == f"prompt/completion from {name}"
    assert texts(qtarget.read_rows(name, heldout_share=0)) == expected


def test_a_dataset_dict_has_its_splits() -> None:
    table = datasets.Dataset.from_list(PAIRS)
    datasets.DatasetDict(train_sft=table, test_sft=table.select(range(7))).save_to_disk("dict")
    source = Files("dict", train="train_sft", heldout="test_sft")
    assert (len(source.rows("train", None)), len(source.rows("heldout", None))) == (40, 7)
    with pytest.raises(QTargetError, match=r"dict has no split 'train'; those saved: train_sft, test_sft\. Name one"):
        Files("dict").rows("train", None)


def test_what_cannot_be_read_is_refused_in_words(workdir: Path) -> None:
    datasets.Dataset.from_list(PAIRS).to_parquet("rows.parquet")
    Path("rows.parquet.gz").write_bytes(gzip.compress(Path("rows.parquet").read_bytes()))
    saved(Path("cut"), PAIRS)
    next(Path("cut").glob("*.arrow")).write_bytes(b"ARROW1")
    Path("none.jsonl").write_text("\n")
    for path, message in (
        ("rows.parquet.gz", "packed inside already; unpack them, gunzip FILE"),
        ("cut", "can't load the split 'train' of cut"),
        ("none.jsonl", "none.jsonl has no rows in 'train'"),
        ("nowhere.csv", r"no data at 'nowhere.csv' \(from "),
        ("nobody/nothing", "can't load the split 'train' of nobody/nothing: .*Instead, give local copies"),
    ):
        with pytest.raises(QTargetError, match=message):
            Files(path).rows("train", None)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def broken(data: bytes) -> bytes:
    return data[:20] + bytes(byte ^ 255 for byte in data[20:60]) + data[60:]


@pytest.mark.parametrize("damage", [cut, broken, gzip.decompress])
@pytest.mark.parametrize(("name", "content"), [("rows.jsonl.gz", lines), ("rows.csv.gz", of_csv)])
def test_a_damaged_packed_file_is_refused_by_name(
    damage: Callable[[bytes], bytes], name: str, content: Callable[[Rows], bytes]
) -> None:
    Path(name).write_bytes(damage(gzip.compress(content(PAIRS))))
    source = Files(name)
    for read in (lambda: source.rows("train", None), lambda: source.rows("heldout", None)):
        with pytest.raises(QTargetError, match=f"can't read {name}: .*damaged"):
            read()


@pytest.mark.parametrize(("name", "pack"), [("rows.csv.bz2", bz2.compress), ("rows.csv.xz", lzma.compress)])
def test_packed_files_of_every_kind_are_refused_where_they_are_cut(name: str, pack: Callable[[bytes], bytes]) -> None:
    for damage in (cut, broken):
        Path(name).write_bytes(damage(pack(of_csv(PAIRS))))
        with pytest.raises(QTargetError, match=f"can't read {name}: "):
            Files(name).rows("train", None)


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["train.jsonl", "more.jsonl"], "more.jsonl"),
        (["train_1.jsonl", "part2.jsonl"], "part2.jsonl"),
        (["train/a.csv", "b.csv", "README.md"], "b.csv"),
    ],
)
def test_a_file_of_a_folder_that_would_not_be_read_is_refused_by_name(names: list[str], left: str) -> None:
    """datasets 5.2 reads the files with a split's name alone, where one has such a name."""
    for name in names:
        file = Path("both", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(of_csv(PAIRS[:10]) if name.endswith("csv") else lines(PAIRS[:10]))
    with pytest.raises(QTargetError, match=rf"both: {left} would not be read, since {names[0]} bear"):
        Files("both").rows("train", None)
    named = Files("both", files={"train": [f"both/{name}" for name in names[:2]]}, heldout_share=0)
    assert len(named.rows("train", None)) == 20


def test_splits_hidden_files_and_files_that_a_card_leaves_out_are_no_files_left_out() -> None:
    for name in ("train.jsonl", "val.jsonl", ".cache/old.jsonl", "__old__/a.jsonl", "config.json"):
        Path("both", name).parent.mkdir(parents=True, exist_ok=True)
        Path("both", name).write_bytes(lines(PAIRS[:10]))
    assert len(Files("both", heldout_share=0).rows("train", None)) == 10
    Path("both/more.jsonl").write_bytes(lines(PAIRS))
    Path("both/README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: train.jsonl\n---\n")
    assert len(Files("both", heldout_share=0).rows("train", None)) == 10


@pytest.mark.parametrize("copy", ["a.jsonl.bak", "a.jsonl.swp", "a.jsonl.1", "a.jsonl.zip"])
def test_a_copy_beside_the_data_is_not_trained_on(copy: str) -> None:
    """datasets 5.2 reads a.jsonl.bak beside a.jsonl."""
    Path("folder").mkdir()
    for name in ("a.jsonl", copy, "a.jsonl~", "notes.txt"):
        Path("folder", name).write_bytes(lines(PAIRS))
    with pytest.raises(QTargetError, match=f"folder holds {copy}, which would be read as data, too: move"):
        Files("folder").rows("train", None)
    Path("folder", copy).unlink()
    assert len(Files("folder", heldout_share=0).rows("train", None)) == 40


def test_brackets_in_a_name_are_no_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, rows in (("v1", PAIRS), ("v[1]", PAIRS[:3])):
        Path(folder).mkdir()
        datasets.Dataset.from_list(rows).to_parquet(f"{folder}/rows.parquet")
    assert len(Files("v[1]/rows.parquet", heldout_share=0).rows("train", None)) == 3
    own, other = ([*OF_FILES[:1], f"data.source.path='{folder}/rows.parquet'"] for folder in ("v[1]", "v1"))
    assert (mended(*own, part="names"), mended(*other, part="names")) == (True, False)
    with pytest.raises(QTargetError, match=r"v\[1\]: the signs .* are read as a pattern .*: rename the folder"):
        Files("v[1]").rows("train", None)
    monkeypatch.chdir("v[1]")
    assert len(Files("rows.parquet", heldout_share=0).rows("train", None)) == 3


def test_the_columns_of_a_local_file_are_not_looked_for_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("rows.jsonl").write_bytes(lines(PAIRS))
    read: list[Cells] = []
    rows = FileRows._rows
    monkeypatch.setattr(FileRows, "_rows", lambda self, file: (read.append(row) or row for row in rows(self, file)))
    assert len(Files("rows.jsonl", heldout_share=0).rows("train", None)) == 40
    assert len(read) <= len(PAIRS) + 5  # once, and the first row for its schema


@pytest.mark.parametrize("indent", [None, 2])
def test_a_table_of_pandas_is_read_on_one_line_and_on_several(indent: int | None) -> None:
    """`DataFrame.to_json` (pandas 3.1) writes {column: {index: cell}}, on one line unless it is told otherwise."""
    pd.DataFrame(PAIRS).to_json("rows.json", indent=indent)
    assert (len(Path("rows.json").read_text().splitlines()) == 1) is (indent is None)
    assert texts(Files("rows.json", heldout_share=0).rows("train", None)) == [
        (row["prompt"], row["completion"]) for row in PAIRS
    ]


# Schemas

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "", "parameters": {"type": "object"}}}
TALK: Rows = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": [{"type": "text", "text": "Rain "}, {"type": "text", "text": "in Bonn?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "dry"},
    {"role": "assistant", "content": "No.", "weight": 1},
]
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


def read_one(row: dict[str, Any], name: str = "row.jsonl", **fields: Any) -> Demonstration:
    if name.endswith(".parquet"):
        datasets.Dataset.from_list([row]).to_parquet(name)
    else:
        Path(name).write_bytes(lines([row]))
    (result,) = Files(name, heldout_share=0, **fields).rows("train", None)
    return result


@pytest.mark.parametrize("name", ["row.jsonl", "row.parquet"])
def test_openai_files_with_tools_and_parts_of_text(name: str) -> None:
    """OpenAI's fine-tuning format for function calling: arguments as JSON text, content parts, weight, tools."""
    talk = [dict(message) for message in TALK]
    if name.endswith(".parquet"):  # a column of Arrow has one type: content is text in all messages, or parts in all
        talk[1]["content"] = "Rain in Bonn?"
    row = read_one({"messages": talk, "tools": [TOOL], "parallel_tool_calls": False}, name)
    assert [message["content"] for message in row.messages] == ["Be short.", "Rain in Bonn?", "", "dry", "No."]
    assert row.messages[2]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Bonn"}}
    assert [tool["function"]["name"] for tool in row.tools] == ["weather"]
    assert list(row.unread) == ["parallel_tool_calls"]


def test_mistral_files_by_their_other_names() -> None:
    """mistral-finetune (finetune/data/tokenize.py) reads interactions for messages, and available_tools for tools."""
    row = read_one({"interactions": TALK[1:], "available_tools": [TOOL], "system_prompt": "Be short."})
    same = read_one({"messages": TALK, "tools": [TOOL]})
    assert (row.messages, row.tools, row.unread) == (same.messages, same.tools, [])
    beside = read_one({"messages": TALK, "interactions": [1]})
    assert list(beside.unread) == ["interactions"]
    with pytest.raises(QTargetError, match="the row has tools and available_tools: keep one"):
        read_one({"interactions": TALK, "available_tools": [TOOL], "tools": [TOOL]})


def test_sharegpt_alpaca_and_trl_rows_are_the_same_conversation() -> None:
    talk = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Add 1, 2"},
        {"role": "assistant", "content": "3"},
    ]
    sharegpt = {"conversations": [{"from": SPEAKERS[turn["role"]], "value": turn["content"]} for turn in talk]}
    alpaca = {"instruction": "Add 1, 2", "output": "3", "history": [["Hi", "Yes?"]], "system": "Be short."}
    assert read_one(sharegpt).messages == read_one(alpaca).messages == talk
    context = [{**turn, "weight": 0.0} if turn["content"] == "Yes?" else turn for turn in talk]
    for row in ({"prompt": talk[:-1], "completion": talk[-1:]}, {"prompt": talk[:-1], "completion": "3"}):
        assert read_one(row).messages == context
    short = {"prompt": "Add 1, 2", "completion": talk[-1:]}
    assert read_one(short, system="Be short.").messages == [talk[0], *talk[3:]]


def test_what_the_assistant_says_in_a_prompt_is_not_taught() -> None:
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    row = read_one({"prompt": prompt, "completion": [{"role": "assistant", "content": "dd"}]})
    (example,) = qtarget.encode(TOKENIZER, row.messages)
    taught = [token for token, supervised in zip(example.input_ids, example.supervised, strict=True) if supervised]
    assert TOKENIZER.decode(taught).startswith("dd")


def test_numbers_of_typed_files_fill_a_text() -> None:
    row = read_one({"prompt": "1 + 1", "completion": 2}, "row.parquet")
    assert row.completion == "2"


def test_cells_of_csv_hold_weights_tools_and_spans() -> None:
    Path("rows.csv").write_text(
        'prompt,completion,weight,tools,critical,note\nq,abc,0.5,"[{""name"": ""f""}]","[[0, 1]]",x\nr,abc,,,"[]",\n'
    )
    first, second = Files("rows.csv", heldout_share=0, columns=["critical"]).rows("train", None)
    assert (first.weight, first.tools, first.spans) == (0.5, [{"name": "f"}], {"critical": ((0, 1),)})
    assert (second.weight, second.tools, second.spans) == (1.0, [], {"critical": ()})
    assert (list(first.unread), list(second.unread)) == (["note"], [])


def test_rows_are_judged_by_their_answer_or_the_column_that_is_named() -> None:
    row = {"prompt": "q", "completion": "a", "answer": "7", "final": "8"}
    assert read_one(row, verifier="exact").entry == {"verifier": "exact", "answer": "7"}
    assert read_one(row, verifier="exact", answer="final").entry == {"verifier": "exact", "answer": "8"}
    asked = {**row, "answer": "B", "opa": "x", "opb": "y"}
    entry = read_one(asked, verifier="choice", options=["opa", "opb"]).entry
    assert entry == {"verifier": "choice", "answer": "B", "options": {"A": "x", "B": "y"}}
    with pytest.raises(QTargetError, match=r"no 'options' for data.source.verifier=choice"):
        read_one(asked, verifier="choice")


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"id": 1, "question": "q", "answer": "a"}, "data.source.prompt=question data.source.completion=answer"),
        ({"Query": "q", "Response": "a"}, "data.source.prompt=Query data.source.completion=Response"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "data.source.prompt=prompt data.source.completion=chosen"),
        ({"chat": TALK, "score": 1}, "data.source.messages=chat"),
        ({"text": "once"}, "data.source.prompt=text data.source.completion=COLUMN"),
        ({"a": 1}, "data.source.prompt=COLUMN data.source.completion=COLUMN"),
    ],
)
def test_another_schema_is_answered_by_its_columns_and_a_line_that_reads_it(row: dict[str, Any], settings: str) -> None:
    with pytest.raises(QTargetError) as refused:
        read_one(row)
    message = str(refused.value)
    assert f"the keys are: {', '.join(row)}" in message
    assert message.endswith(f"data=files data.source.path=row.jsonl {settings}")
    if "COLUMN" not in settings:
        given = dict(setting.removeprefix("data.source.").split("=") for setting in settings.split())
        assert read_one(row, **given).completion in ("a", "No.")


def test_a_row_of_another_schema_than_the_first_is_named() -> None:
    Path("rows.jsonl").write_bytes(lines([PAIRS[0], {"instruction": "a", "output": "b"}]))
    with pytest.raises(
        QTargetError, match=r"rows.jsonl, row 2 of train \(rows.jsonl, line 2\): a row of instruction/output"
    ):
        Files("rows.jsonl", heldout_share=0).rows("train", None)
    rows, counts = Files("rows.jsonl", heldout_share=0, malformed="drop").read("train", None)
    assert (len(rows), counts) == (1, {"read": 2, "malformed": 1})


# Rows to evaluate on


def data(*overrides: str) -> DataConfig:
    cfg = compose_config("train", ["model=tiny", *overrides])
    config = instantiate(cfg.data)
    assert isinstance(config, DataConfig)
    return config


def prepared(*overrides: str) -> Prepared:
    return prepare(data(*overrides), TOKENIZER, 1024)


@pytest.fixture
def own_files(workdir: Path) -> None:
    Path("rows.jsonl").write_bytes(lines(PAIRS))
    Path("val.csv").write_text("instruction,output\n" + "".join(f"judge {index},x\n" for index in range(25)))


OF_FILES, OF_JSONL = (f"data={name} data.source.path=rows.jsonl".split() for name in ("files", "jsonl"))
OF_HUB = ["data=hub", "data.source.path=rows.jsonl"]


@pytest.mark.parametrize("options", [OF_FILES, OF_JSONL, OF_HUB])
@pytest.mark.parametrize("key", ["data.source.heldout", "data.heldout_source"])
def test_a_validation_file_is_taken_whole_and_all_rows_are_trained_on(
    own_files: None, options: list[str], key: str
) -> None:
    """It may be of another format and another schema than the training file."""
    result = prepared(*options, f"{key}=val.csv")
    assert (result.counts["train"], result.counts["heldout"]) == (40, 25)
    assert result.heldout_rows[24].prompt[-1]["content"] == "judge 24"


@pytest.mark.parametrize("make", [Files, Jsonl])
@pytest.mark.parametrize("kind", ["shards", "named", "saved", "dict"])
def test_a_validation_folder_is_taken_whole_whatever_its_split_is_called(own_files: None, make: Any, kind: str) -> None:
    if kind == "named":
        Path("val").mkdir()
        Path("val/test.jsonl").write_bytes(lines(PAIRS[:7]))
    elif kind == "dict":
        datasets.DatasetDict(dev=datasets.Dataset.from_list(PAIRS[:7])).save_to_disk("val")
    else:
        FORMATS[kind](Path("val"), PAIRS[:7])
    assert texts(make("rows.jsonl", heldout="./val").rows("heldout", None)) == [
        (row["prompt"], row["completion"]) for row in PAIRS[:7]
    ]


def test_a_validation_file_goes_with_any_source(own_files: None) -> None:
    result = prepared("data=arithmetic", "data.rows=5", "data.heldout_rows=null", "data.heldout_source=val.csv")
    assert (result.counts["train"], result.counts["heldout"]) == (5, 25)
    with pytest.raises(QTargetError, match=r"heldout_source=math500 is no name of a file.*\+data/source@data.heldout_"):
        data("data=arithmetic", "data.heldout_source=math500")


def test_a_validation_file_is_read_as_the_columns_of_the_training_file(workdir: Path) -> None:
    for name in ("train", "val"):
        Path(f"{name}.csv").write_text(f"q,a\n{name} 1,x\n{name} 2,y\n")
    source = Files("train.csv", prompt="{q}?", completion="a", heldout="val.csv", where={"q": "train 2"})
    assert texts(source.rows("train", None)) == [("train 2?", "y")]
    assert texts(source.rows("heldout", None)) == [("val 1?", "x"), ("val 2?", "y")]


def test_a_file_of_a_split_s_name_is_no_file_to_evaluate_on(workdir: Path) -> None:
    Path("test").mkdir()
    Path("rows.jsonl").write_bytes(lines(PAIRS))
    with pytest.raises(QTargetError, match=r"the split 'test' has no file; .*data.source.heldout=val.jsonl"):
        Files("rows.jsonl", heldout="test").rows("heldout", None)
    with pytest.raises(QTargetError, match=r"heldout=test: a file of JSON lines has no splits"):
        Jsonl("rows.jsonl", heldout="test")


@pytest.mark.parametrize("make", [Files, Jsonl, Hub])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_rows_of_a_share_that_are_not_evaluated_are_trained_on(workdir: Path, make: Any, count: int) -> None:
    rows = [{**row, "prompt": f"ask {index % 30}"} for index, row in enumerate(PAIRS)]  # ten prompts stand twice
    Path("rows.jsonl").write_bytes(lines(rows))
    source = make("rows.jsonl", heldout_share=0.4)
    whole = source.rows("heldout", None)
    result = prepare(DataConfig(source, None, heldout_rows=count), TOKENIZER, 1024)
    assert texts(list(result.heldout_rows)) == texts(whole)[:count]
    held = {prompt_text(row.prompt) for row in whole[:count]}
    others = [row for row in rows if f"user: {row['prompt']}" not in held]
    assert [example.row for example in result.train] == [
        number for number, row in enumerate(rows, start=1) if row in others
    ]
    assert result.counts["train"] == len(others) > 40 - len(whole)


@pytest.mark.parametrize("make", [Files, Jsonl, Hub])
def test_a_share_of_few_rows_holds_out_one_prompt(workdir: Path, make: Any) -> None:
    few = [row for row in PAIRS if position(f"user: {row['prompt']}") > 0.3][:5]
    Path("rows.jsonl").write_bytes(lines(few))
    source = make("rows.jsonl", heldout_share=0.1)
    (held,) = source.rows("heldout", None)
    assert prompt_text(held.prompt) == min((f"user: {row['prompt']}" for row in few), key=position)
    assert len(source.rows("train", None)) == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda name: Files(name, heldout_share=0.1),
        lambda name: Jsonl(name, heldout_share=0.1),
        lambda name: Files("named", files={"train": [name]}, heldout_share=0.1),
    ],
    ids=["files", "jsonl", "named"],
)
def test_a_file_that_is_written_anew_is_shared_anew(workdir: Path, make: Any) -> None:
    """As in a notebook: one source, and rows of another schema in its file."""
    few = [row for row in PAIRS if position(f"user: {row['prompt']}") > 0.3]
    Path("rows.jsonl").write_bytes(lines(few[:5]))
    source = make("rows.jsonl")
    assert len(source.rows("heldout", None)) == 1
    others = [{"instruction": row["prompt"], "input": "", "output": row["completion"]} for row in few[5:10]]
    Path("rows.jsonl").write_bytes(lines(others))
    (held,) = source.rows("heldout", None)
    asked = [row["instruction"] for row in others]
    assert prompt_text(held.prompt) == min((f"user: {ask}" for ask in asked), key=position)
    assert len(source.rows("train", None)) == 4


def test_no_held_out_row_is_refused_unless_it_is_asked_for(workdir: Path) -> None:
    Path("one.jsonl").write_bytes(lines(PAIRS[:1]))
    path = ["data=files", "data.source.path=one.jsonl"]
    with pytest.raises(
        QTargetError, match=r"no row is held out of prompt/completion from one.jsonl: name a file or a sp"
    ):
        check_heldout(data(*path), prepared(*path))
    for asked in ("data.heldout_rows=0", "data.source.heldout_share=0"):
        check_heldout(data(*path, asked), prepared(*path, asked))
    Path("long.jsonl").write_bytes(lines([{"prompt": "a", "completion": "b " * 300}]))
    long = [*path, "data.source.heldout=long.jsonl", "data.truncation=drop", "data.max_length=100"]
    with pytest.raises(QTargetError, match=r"no row is held out .*1 held-out rows left out as too long"):
        check_heldout(data(*long), prepared(*long))


def test_few_held_out_rows_are_said_to_be_few(own_files: None) -> None:
    words = "; 19 held-out rows are few: differences between runs may be chance"
    for count, expected in ((19, words), (20, "")):
        source = ["data.heldout_source=val.csv", f"data.heldout_rows={count}"]
        assert prepared(*OF_FILES, *source).few_in_words == expected
    assert prepared(*OF_FILES, "data.heldout_rows=0").few_in_words == ""


def test_contamination_by_a_validation_file_is_refused(own_files: None) -> None:
    Path("val.jsonl").write_bytes(lines([PAIRS[3]]))
    with pytest.raises(QTargetError, match="1 of 40 training rows have the prompt of a held-out row"):
        prepared(*OF_FILES, "data.source.heldout=val.jsonl")


# Identity


def hash_of(*overrides: str) -> str:
    return config_hash(compose_config("train", ["model=tiny", *overrides]))


@pytest.mark.parametrize("key", ["data.source.heldout", "data.heldout_source"])
def test_a_validation_file_is_part_of_a_run_s_identity_by_its_content(own_files: None, key: str) -> None:
    before = hash_of(*OF_FILES, f"{key}=val.csv")
    Path("other.csv").write_bytes(Path("val.csv").read_bytes())
    assert hash_of(*OF_FILES, f"{key}=other.csv") == before
    Path("val.csv").write_text("instruction,output\nanother,x\n")
    assert hash_of(*OF_FILES, f"{key}=val.csv") != before


def test_a_split_is_a_name_whatever_folders_lie_beside(own_files: None) -> None:
    overrides = [*OF_HUB, "data.source.prompt=prompt", "data.source.completion=completion", "data.source.heldout=test"]
    before = hash_of(*overrides)
    Path("test").mkdir()
    Path("test/a.txt").write_text("a")
    assert hash_of(*overrides) == before


def mended(*overrides: str, part: str = "heldout") -> bool:
    return part in versions.versions(config_container(compose_config("train", ["model=tiny", *overrides])))


@pytest.mark.parametrize(
    ("overrides", "concerned"),
    [
        (OF_JSONL, False),
        ([*OF_JSONL, "data.heldout_rows=2"], True),
        ([*OF_JSONL, "data.heldout_rows=0"], True),
        ([*OF_JSONL, "data.heldout_rows=0", "data.source.heldout_share=0"], False),
        ([*OF_JSONL, "data.heldout_rows=2", "data.rows=0"], False),
        ([*OF_JSONL, "+data/source@data.heldout_source=aime24"], True),
        ([*OF_JSONL, "data.source.heldout=val.csv"], False),
        (["data=jsonl", "data.source.path=few.jsonl"], True),
        (["data=hub", "data.source.path=few.jsonl", "data.source.heldout_share=0.1"], True),
        (["data=hub", "data.source.path=a/b", "data.source.heldout_share=0.1"], False),
        (["data=hub", "data.source.path=a/b", "data.heldout_rows=5"], False),
        (["data=files", "data.source.path=few.jsonl"], False),
        (["data=arithmetic"], False),
    ],
)
def test_runs_whose_share_held_out_other_rows_are_new(own_files: None, overrides: list[str], concerned: bool) -> None:
    few = [row for row in PAIRS if position(f"user: {row['prompt']}") > 0.3][:5]
    Path("few.jsonl").write_bytes(lines(few))
    assert mended(*overrides) is concerned


@pytest.mark.parametrize(
    ("trained", "changes", "is_refused"),
    [
        ({"heldout_rows": 5}, {"heldout_rows": None}, True),
        ({"heldout_rows": 5}, {"heldout_rows": 6}, True),
        ({"heldout_rows": 5}, {"heldout_rows": 4}, False),
        ({"heldout_rows": None}, {}, False),
        ({"heldout_rows": 5}, {"heldout_rows": None, "heldout_source": "val.csv"}, False),
        ({"heldout_rows": 5, "source": {"heldout": "val.csv"}}, {"heldout_rows": None}, False),
    ],
)
def test_a_run_is_not_judged_on_rows_that_it_was_trained_on(
    workdir: Path, trained: dict[str, Any], changes: dict[str, Any], is_refused: bool
) -> None:
    """Rows of a share behind data.heldout_rows were trained on, so a later evaluation can't read further."""
    source = {"_target_": "qtarget.data.sources.data_files.Files", "path": "rows.jsonl", "heldout_share": None}
    node = {**trained, "source": {**source, **trained.get("source", {})}}
    Path("config.yaml").write_text(json.dumps({"data": node}))
    if is_refused:
        with pytest.raises(QTargetError, match="held out 5 rows and was trained on all others"):
            check_not_trained_on({**node, **changes}, workdir)
    else:
        check_not_trained_on({**node, **changes}, workdir)


def test_a_generated_source_needs_no_share() -> None:
    config = DataConfig(ReasoningGym("chain_sum"), 5, heldout_rows=3)
    assert (config.evaluated, config.wants_none_heldout) == (config.source, False)
