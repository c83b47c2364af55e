"""Files are what they hold: CSV and JSON are read as the text they are, whatever that text looks like."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import qtarget
from qtarget.config import versions
from qtarget.config.composing import compose_config, config_container
from qtarget.config.identity import config_hash
from qtarget.data.sources.adapt import LetterOf
from qtarget.data.sources.file_rows import Typed
from qtarget.data.sources.hub import Hub
from qtarget.data.sources.loading import check_not_guessed
from qtarget.errors import QTargetError

PAIR = {"prompt": "q", "completion": "a"}
# What pandas 3 and datasets 5.2 take for numbers, nothing, truth, dates or other texts.
TEXTS = [
    *("00501", "1.10", "1e5", "1_000", "1,250", "12345678901234567890123", "+3", " 7 ", "-0", "0x1A", "½"),
    *("NA", "N/A", "null", "None", "nan", "NaN", "#N/A", "inf", "<NA>", "True", "false", "TRUE"),
    *("2024-01-31", "2024-01-31T12:00:00Z", "12:30", "line one\nline two", 'she said "yes"', "a;b\tc", "-", "'007"),
]


@pytest.fixture(autouse=True)
def own_cache(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", workdir / "cache")


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def completions(path: str | Path, **fields: Any) -> list[str]:
    return [row.completion for row in qtarget.read_rows(path, **{**PAIR, **fields})]


def written(name: str, text: str | bytes) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refused(message: str, path: str | Path, **fields: Any) -> None:
    with pytest.raises(QTargetError, match=message):
        completions(path, **fields)


# CSV


@pytest.mark.parametrize("cell", TEXTS)
def test_a_cell_of_csv_is_its_text(cell: str) -> None:
    """A column of nothing else, which a reader that guesses would give a type."""
    path = written("rows.csv", "q,a\n" + "".join(f"x{row},{quoted(cell)}\n" for row in range(3)))
    assert completions(path) == [cell] * 3


def test_cells_of_csv_in_one_column_are_their_texts_too() -> None:
    path = written("rows.csv", "q,a\r\n" + "".join(f"x,{quoted(cell)}\r\n" for cell in TEXTS))
    assert completions(path) == TEXTS


@pytest.mark.parametrize(
    ("name", "delimiter", "field"), [("r.tsv", "\t", None), ("r.csv", ";", ";"), ("r.csv", "|", "|")]
)
def test_other_delimiters(name: str, delimiter: str, field: str | None) -> None:
    path = written(name, delimiter.join("qa") + "\n" + delimiter.join(["x", "1.10"]) + "\n")
    assert completions(path, delimiter=field) == ["1.10"]
    if field:
        refused(r"no column 'q' .*its columns: q.a\. The header holds \w+: set data.source.delimiter='.'", path)
    with pytest.raises(QTargetError, match="delimiter must be one character, or null, got ',,'"):
        Hub(str(path), **PAIR, delimiter=",,")


def test_a_byte_order_mark_blank_lines_and_long_cells() -> None:
    long = "x" * 200_000  # csv of Python stops at 131072 characters unless told otherwise
    assert completions(written("rows.csv", f"\ufeffq,a\nx,{long}\n\ny,2\n")) == [long, "2"]


def test_an_empty_cell_is_an_empty_text() -> None:
    path = written("rows.csv", "q,input,a\nadd,1 2,3\nhello,,hi\n")
    rows = qtarget.read_rows(path, prompt="{q}: {input}", completion="a")
    assert [row.prompt[0]["content"] for row in rows] == ["add: 1 2", "hello: "]
    refused(
        r"row 2 of train \(rows.csv, line 3\): completion \('input'\) is empty; .*malformed=drop",
        path,
        completion="input",
    )
    assert completions(path, completion="input", malformed="drop") == ["1 2"]


def test_short_rows_lack_their_last_cells_and_long_ones_are_refused() -> None:
    """Some spreadsheets leave out the delimiters of empty cells at the end of a row."""
    assert completions(written("rows.csv", "q,a,note\nx,1\ny,2,z,,\n")) == ["1", "2"]
    refused(r"line 2\): column 'a' must hold text or numbers, got null", written("short.csv", "q,a\nx\n"))
    refused(r"long.csv, line 3: 3 cells, and the header names 2 columns", written("long.csv", "q,a\nx,1\ny,1,250\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('q,a\nx,"she said \\"yes\\""\n', "bad.csv, line 2: .*write each quote in it twice"),
        ('q,a\nx,"open\ny,2\n', "bad.csv, line 3: unexpected end of data"),
        ("", "bad.csv is empty: its first line must name the columns|no column 'q'"),
        ("q,a,a\nx,1,2\n", "got two different values, as its key stands twice"),
        ("q,a\nx,1\n".encode("utf-16"), "bad.csv is UTF-16: save it as UTF-8"),
        (b"q,a\nx,caf\xe9\n", r"line 2\): completion \('a'\) holds a byte that isn't UTF-8 at character 3"),
    ],
)
def test_csv_that_is_not_plain_is_refused_with_its_line(text: str | bytes, message: str) -> None:
    refused(message, written("bad.csv", text))


# JSON


@pytest.mark.parametrize("cell", TEXTS)
def test_a_text_of_json_is_that_text_beside_any_other_value(cell: str) -> None:
    """datasets 5.2 makes numbers of texts that look like one as soon as a number stands among them."""
    rows = [{"q": "x", "a": value} for value in (cell, 7, cell, "text", True, {"b": cell})]
    path = written("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert completions(path, malformed="drop") == [cell, "7", cell, "text"]


def test_texts_in_conversations_and_options_stay_as_well() -> None:
    turns = [{"role": "user", "content": "007"}, {"role": "assistant", "content": "1.50"}]
    odd = [{"role": "user", "content": "2024-01-31"}, {"role": "assistant", "content": "null", "note": 3}]
    path = written(
        "rows.jsonl", "".join(json.dumps({"turns": each, "n": n}) + "\n" for n, each in enumerate([turns, odd]))
    )
    rows = qtarget.read_rows(path, messages="turns", unknown="ignore")
    assert [[turn["content"] for turn in row.messages] for row in rows] == [["007", "1.50"], ["2024-01-31", "null"]]
    row = {"q": "x", "a": "B", "options": {"A": "01", "B": "1.0", "C": None}}
    path = written("options.jsonl", json.dumps(row))
    (shown,) = qtarget.read_rows(path, **PAIR, verifier="choice", answer="a", options="options")
    assert shown.entry == {"verifier": "choice", "answer": "B", "options": {"A": "01", "B": "1.0"}}


@pytest.mark.parametrize("number", ["1.50", "1e5", "-0", "0.1", "100000000000000000000000", "1E-7", "36", "1e999"])
def test_a_number_of_json_is_filled_in_as_it_is_written(number: str) -> None:
    path = written("rows.jsonl", f'{{"q": "x", "a": {number}}}\n')
    (row,) = qtarget.read_rows(path, prompt="q", completion="It is {a}.", verifier="exact", answer="a")
    assert (row.completion, row.entry) == (f"It is {number}.", {"verifier": "exact", "answer": number})


@pytest.mark.parametrize(
    "text",
    [
        '{"q": "x", "a": "01"}\n{"q": "y", "a": "2"}\n',
        '\n{"q": "x", "a": "01"}\n\n{"q": "y", "a": "2"}',
        '\ufeff[{"q": "x", "a": "01"},\n {"q": "y", "a": "2"}]',
        '{\n "q": "x", "a": "01"}\n{"q": "y",\n "a": "2"}\n',
        '{"q": ["x", "y"],\n "a": ["01", "2"]}',
        '{"q": {"0": "x", "5": "y"},\n "a": {"0": "01", "5": "2"}}',
    ],
    ids=["lines", "blank lines", "array", "objects over lines", "columns", "pandas"],
)
def test_json_is_lines_or_an_array_or_columns(text: str) -> None:
    assert completions(written("rows.json", text)) == ["01", "2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"q": "x", "a": "1"}\n{"q": "y", "a": }\n', "bad.json, line 2: not JSON"),
        ('[{"q": "x"},\n "y" 3]', "bad.json, line 1: not JSON"),
        ('{"q": "x", "a": "1"}\n["y", "2"]\n', "bad.json, line 2: expected an object of columns, got a list"),
        ('{"q": "x", "a": NaN}\n', r"\(bad.json, line 1\): column 'a' must hold text or numbers, got NaN or an inf"),
        ('{"q": "x", "a": "1", "a": "2"}\n', "got two different values, as its key stands twice in the object"),
        ('{"q": "x", "a": null}\n', "column 'a' must hold text or numbers, got null"),
        ('{"q": "x", "a": "1"}\n{"q": "y"}\n', r"row 2 of train \(bad.json, line 2\): column 'a' .* got null"),
        ('{"q": "x", "b": "1"}\n{"q": "y", "c": 2}\n', r"no column 'a' \(data.source.completion\) .*: q, b, c"),
        ('{"q": "x", "a": true}\n', "column 'a' must hold text or numbers, got true or false"),
        ('{"q": "x", "a": "caf\\udce9"}\n', "holds a byte that isn't UTF-8"),
    ],
)
def test_json_that_cannot_be_read_is_refused_with_its_line(text: str, message: str) -> None:
    refused(message, written("bad.json", text))


@pytest.mark.parametrize(
    "others",
    [
        ["1", '"text"', '{"k": 1}', "[1, [2]]", "null", "NaN"],
        ['{"k": {"deep": 1}}', '{"k": ["x"]}', '{"other": null}', "[]", "1e999", '{"k": 1, "k": 2}'],
        ['"2024-01-31"', "20240131", "true", '"\\ud800"', '"x"', "-0"],
    ],
)
def test_a_column_that_is_not_read_neither_stops_nor_changes_a_load(others: list[str]) -> None:
    rows = [f'{{"q": "x", "a": "0{number}", "unread": {other}}}' for number, other in enumerate(others)]
    bytes_ = "\n".join(rows).encode() + b'\n{"q": "x", "a": "last", "unread": "caf\xe9"}\n'
    assert completions(written("rows.jsonl", bytes_)) == [f"0{number}" for number in range(6)] + ["last"]
    cells = "".join(f"x,0{number},{quoted(other)}\n" for number, other in enumerate(others)).encode()
    assert completions(written("rows.csv", b"q,a,unread\n" + cells + b"x,last,caf\xe9\n"))[-2:] == ["05", "last"]


def test_a_column_that_begins_with_ten_megabytes_of_null_is_text_behind_them() -> None:
    """datasets 5.2 fixes the types of a file by its first 10 MB."""
    row = '{"q": "x", "a": "1", "late": null, "pad": "' + "p" * 10_000 + '"}\n'
    path = written("rows.jsonl", row * 1100 + '{"q": "x", "a": "2", "late": "007"}\n')
    assert completions(path, completion="late", malformed="drop") == ["007"]


# Folders, packed files, both doors


def test_folders_of_text_files_are_read_as_text() -> None:
    for split, cell in (("train", "00501"), ("test", "1.10")):
        written(f"set/{split}.csv", f"q,a\n{split},{cell}\nsecond,NA\n")
    assert completions("set") == ["00501", "NA"]
    assert completions("set", train="test") == ["1.10", "NA"]
    assert completions("set", train="test[1:]+train[:50%]") == ["NA", "00501"]
    source = Hub("set", **PAIR, heldout="test")
    assert [row.completion for row in source.rows("heldout", None)] == ["1.10", "NA"]
    refused(r"can't load the split 'dev' of set: Unknown split \"dev\"", "set", train="dev")
    written("set/README.md", "---\nconfigs:\n- config_name: default\n  data_files: t*.csv\n  skiprows: 1\n---\n")
    refused("the card of set has its files read with skiprows, which isn't heeded here", "set")


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_packed_files_of_a_folder(suffix: str, pack: Callable[[bytes], bytes]) -> None:
    written(f"set/train.jsonl.{suffix}", pack(b'{"q": "x", "a": "007"}\n'))
    written(f"cut/train.csv.{suffix}", pack(b"q,a\n" + b"x,007\n" * 999)[:-9])
    assert completions("set") == ["007"]
    refused("can't read .*cut/train.csv", "cut")


def test_a_pick_from_text_is_the_one_from_parquet() -> None:
    rows = [{"q": f"question {index}", "a": str(index)} for index in range(40)]
    written("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    written("rows.csv", "q,a\n" + "".join(f"{row['q']},{row['a']}\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), "rows.parquet")
    picked = [completions(f"rows.{suffix}", pick=7) for suffix in ("jsonl", "csv", "parquet")]
    assert picked[0] == picked[1] == picked[2]
    assert len(set(picked[0])) == 7


def test_where_and_adapters_find_numbers_in_the_text_of_csv() -> None:
    path = written("rows.csv", "q,a,level,cop,ok\nx,1,3,2,True\ny,2,03,-1,FALSE\nz,3,4,0,\n")
    assert completions(path, where={"level": 3}) == ["1", "2"]
    assert completions(path, where={"level": "03"}) == ["2"]
    assert completions(path, where={"ok": [True, None]}) == ["1", "3"]
    assert completions(path, completion="letter", adapt=LetterOf()) == ["C", "A"]


def test_parquet_keeps_its_own_types() -> None:
    table = pa.table(
        {
            "q": ["x"],
            "a": pa.array(["1.10"]).cast(pa.decimal128(5, 2)),
            "day": pa.array([0], pa.date32()),
            "nothing": [float("nan")],
        }
    )
    pq.write_table(table, "rows.parquet")
    assert completions("rows.parquet") == ["1.10"]
    refused("column 'day' must hold text or numbers, got date", "rows.parquet", completion="day")
    refused("column 'nothing' must hold text or numbers, got NaN or an infinity", "rows.parquet", completion="nothing")


def test_numbers_of_narrow_columns_are_shown_with_their_own_digits() -> None:
    """datasets 5.2 makes 0.10000000149011612 of a 0.1 of 32 bits."""
    for name, kind in (("a", pa.float32()), ("b", pa.float16())):
        pq.write_table(pa.table({"q": ["x", "y"], name: pa.array([0.1, 2.5], kind)}), f"{name}.parquet")
    assert completions("a.parquet") == ["0.1", "2.5"]
    assert completions("b.parquet", completion="b") == ["0.1", "2.5"]
    assert mended(*HUB, "data.source.path=a.parquet")
    assert not mended(*HUB, "data.source.path=a.parquet", "data.source.completion=q")


def test_a_folder_of_several_formats_is_refused_where_datasets_drops_one() -> None:
    """datasets 5.2 takes the most frequent format of a folder, and says nothing of the others."""
    written("both/a.jsonl", '{"q": "x", "a": "007"}\n')
    written("both/b.csv", "q,a\ny,1.10\n")
    refused("both holds files of several formats, and b.csv would not be read: name the files", "both")
    written("one/a.csv", "q,a\ny,1.10\n")
    written("one/dataset_infos.json", "{}")
    assert completions("one") == ["1.10"]


def test_weights_conversations_and_options_stand_in_csv_as_text() -> None:
    path = written("w.csv", "q,a,w\nx,1,0.5\ny,2,0\nz,3,\n")
    assert [row.weight for row in qtarget.read_rows(path, **PAIR, weight="w")] == [0.5, 0.0, 1.0]
    refused("w must be a number of at least 0, got 'high'", written("h.csv", "q,a,w\nx,1,high\n"), weight="w")
    turns = json.dumps([{"role": "user", "content": "007"}, {"role": "assistant", "content": "1.10", "weight": 0.5}])
    (row,) = qtarget.read_rows(written("m.csv", f"turns\n{quoted(turns)}\n"), messages="turns")
    assert (row.messages[0]["content"], row.completion, row.messages[1]["weight"]) == ("007", "1.10", 0.5)
    options = quoted('["007", "1.10"]')
    path = written("o.csv", f"q,a,o\nx,B,{options}\n")
    (row,) = qtarget.read_rows(path, **PAIR, verifier="choice", answer="a", options="o")
    assert row.entry
    assert row.entry["options"] == {"A": "007", "B": "1.10"}


def test_what_datasets_guesses_of_files_on_the_hub_is_refused() -> None:
    """Its reader of CSV and JSON, on a local file in place of one on the hub."""
    written("zip.csv", "q,a\nx,00501\n")
    written("mixed.json", '{"q": "x", "a": "007"}\n{"q": "y", "a": {"b": 1}}\n')
    source = Hub("some/set", **PAIR)
    for kind, name, read_as in (("csv", "zip.csv", "int64"), ("json", "mixed.json", "Json")):
        table = Typed(datasets.load_dataset(kind, data_files={"train": name}, split="train"))
        with pytest.raises(QTargetError, match=rf"column 'a' was read as {read_as}, .*data.source.files, where text"):
            check_not_guessed(source, table, ["q", "a"])
        check_not_guessed(source, table, ["q"])


@pytest.mark.parametrize("place", ["rows.parquet", "set/train.parquet", "rows.csv", "set/train.jsonl"])
def test_a_file_replaced_under_its_size_and_time_is_read_anew(place: str) -> None:
    """datasets 5.2 tells local files apart by path and time of modification, and would give what it read before."""

    def write(cell: str) -> None:
        path = written(place, "")
        rows = [{"q": "x", "a": cell}]
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, compression="none")
        else:
            path.write_text(f"q,a\nx,{cell}\n" if path.suffix == ".csv" else json.dumps(rows[0]) + "\n")

    asked = "set" if place.startswith("set") else place
    write("old")
    before = os.stat(place)
    assert completions(asked) == ["old"]
    write("new")
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (os.stat(place).st_size, os.stat(place).st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert completions(asked) == ["new"]


# data=jsonl and read_rows


def test_rows_of_a_schema_are_recognised() -> None:
    path = written("rows.jsonl", '{"instruction": "say", "input": "hi", "output": "007"}\n')
    (row,) = qtarget.read_rows(path, system="Be short.")
    assert (row.row, row.completion) == (1, "007")
    assert [turn["role"] for turn in row.messages] == ["system", "user", "assistant"]
    with pytest.raises(QTargetError, match=r"no field promt for rows.jsonl; its fields: heldout_share, system, "):
        qtarget.read_rows(path, promt="x")
    with pytest.raises(QTargetError, match=r"no data at 'none\.jsonl'"):
        qtarget.read_rows("none.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": 5, "completion": "x"}', "line 1: prompt must be text, got a number"),
        ('{"prompt": "x", "completion": 1.5}', "line 1: completion must be text, got a number"),
        ('{"prompt": "x", "completion": null}', "line 1: completion is null"),
        ('{"prompt": "x", "completion": NaN}', "line 1: completion must be text, got a number"),
        ('{"prompt": "x", "completion": "a", "completion": "b"}', "got two different values, as its key stands twice"),
        (
            '{"prompt": "x", "completion": "caf\udce9"}',
            "line 1: completion holds a byte that isn't UTF-8 at character 3",
        ),
    ],
)
def test_what_is_no_text_is_refused_by_data_jsonl_too(line: str, message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        qtarget.read_rows(written("rows.jsonl", line.encode(errors="surrogateescape")))


def test_keys_of_data_jsonl_that_are_not_read_may_hold_anything() -> None:
    line = b'{"prompt": "x", "completion": "01", "id": NaN, "n": 1e999, "k": 1, "k": 1, "u": "\xff"}\n'
    assert [row.completion for row in qtarget.read_rows(written("rows.jsonl", line))] == ["01"]


# Identity

HUB = ["model=tiny", "data=hub", "data.source.prompt=q", "data.source.completion=a"]


def mended(*overrides: str) -> bool:
    return "files" in versions.versions(config_container(compose_config("train", ["model=tiny", *overrides])))


@pytest.mark.parametrize(
    ("name", "text", "concerned"),
    [
        ("r.csv", "q,a\nx,00501\ny,02139\n", True),
        ("r.csv", "q,a\nx,NA\ny,some\n", True),
        ("r.csv", "q,a\nx,one\ny,2\n", False),
        ("r.csv", "id,q,a\n1,x,one\n2,y,two\n", False),
        ("set/train.csv", "q,a\nx,1.10\n", True),
        ("r.jsonl", '{"q": "x", "a": "1.50"}\n{"q": "y", "a": 2}\n', True),
        ("r.jsonl", '{"q": "x", "a": "1.50"}\n{"q": "y", "a": "2"}\n', False),
        ("r.jsonl", '{"q": "x", "a": "2024-01-31"}\n', True),
        ("r.jsonl", '{"q": "x", "a": 1.50}\n', True),
        ("r.jsonl", '{"q": "x", "a": 1.5, "id": "2024-01-31"}\n', False),
    ],
)
def test_runs_on_files_that_were_retyped_are_new_ones(name: str, text: str, concerned: bool) -> None:
    written(name, text)
    path = name.partition("/")[0]
    assert mended(*HUB, f"data.source.path={path}") is concerned
    assert mended(*HUB, "data.source.path=a/b", f"data.source.files={{train: {name}}}") is concerned


def test_other_runs_keep_their_identity() -> None:
    """The first hash was made by commit 08cbad9."""
    written("rows.csv", "q,a\nx,one\ny,two\n")
    pq.write_table(pa.table({"q": ["x"], "a": ["007"]}), "rows.parquet")
    written("rows.jsonl", '{"prompt": "x", "completion": "1.50", "answer": 2.0, "n": 3}\n')
    assert config_hash(compose_config("train", [*HUB, "data.source.path=rows.csv"])) == CSV_HASH
    assert not mended(*HUB, "data.source.path=rows.parquet")
    judged = ("data=jsonl", "data.source.path=rows.jsonl", "data.source.verifier=exact")
    assert not mended(*judged)
    written("rows.jsonl", '{"prompt": "x", "completion": "1.50", "answer": 2.50}\n')
    assert mended(*judged)
    assert not mended(*judged[:2])


CSV_HASH = "96e4eb069201"
