"""Data that isn't there, or isn't what its source reads: what is wrong, what is allowed, what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qtarget.cli import run as qtarget_cli
from qtarget.data.sources.data_files import Files
from qtarget.data.sources.jsonl import Jsonl
from qtarget.errors import QTargetError

ROWS = "".join(f'{{"prompt": "{number}+1=", "completion": "{number + 1}"}}\n' for number in range(9))
CONTENTS: dict[str, bytes] = {
    "good.jsonl": ROWS.encode(),
    "empty.jsonl": b"",
    "blank.jsonl": b"\n \n",
    "cut.jsonl": ROWS.encode()[:-9],
    "table.csv": b"prompt,completion\na,b\n",
    "header.csv": b"prompt,completion\n",
    "wide.jsonl": ROWS.encode("utf-16"),
}


@pytest.fixture
def data(workdir: Path) -> Path:
    folder = workdir / "d"
    (folder / "none").mkdir(parents=True)
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    return folder


JSONL: dict[str, str] = {
    "d/god.jsonl": "no data at 'd/god.jsonl' (from {here}): set data.source.path to a file of JSON lines, FILE.jsonl. "
    "Did you mean d/good.jsonl?",
    "e/good.jsonl": "no data at 'e/good.jsonl' (from {here}), and no folder e: set data.source.path to a file",
    "d": "data.source.path=d is a folder, and data=jsonl reads one file (it holds blank.jsonl, cut.jsonl, empty.jsonl, "
    "…): name a file of JSON lines, or have the folder read: data=files data.source.path=d",
    "d/none": "data.source.path=d/none is a folder, and data=jsonl reads one file (it holds no file)",
    "d/empty.jsonl": "d/empty.jsonl has no rows: data.source.path takes JSON objects, one a line",
    "d/blank.jsonl": "d/blank.jsonl has no rows: data.source.path takes JSON objects, one a line",
    "d/wide.jsonl": "d/wide.jsonl is UTF-16: save it as UTF-8",
    "d/table.csv": "d/table.csv, line 1: not JSON (Expecting value: line 1 column 1 (char 0)). data=jsonl reads JSON "
    "lines; CSV, JSON, Parquet and others: data=files data.source.path=d/table.csv",
}


@pytest.mark.parametrize("path", JSONL)
def test_what_is_no_file_of_json_lines_is_refused_with_what_to_do(path: str, data: Path) -> None:
    with pytest.raises(QTargetError, match=re.escape(JSONL[path].format(here=data.parent))):
        Jsonl(path).rows("train", None)


def test_a_line_that_is_cut_is_refused_with_what_a_line_is(data: Path) -> None:
    message = r"d/cut.jsonl, line 9: not JSON .*\. Every line must be one JSON object, such as"
    with pytest.raises(QTargetError, match=message):
        Jsonl("d/cut.jsonl").rows("train", None)


FORMATS = ".parquet, .arrow, .jsonl, .json, .ndjson, .csv, .tsv"
FILES: dict[str, str] = {
    "d/tabel.csv": "no data at 'd/tabel.csv' (from {here}): set data.source.path to a file of "
    f"{FORMATS}, or a folder of them. Did you mean d/table.csv?",
    "d/none": f"the folder d/none holds no files: set data.source.path to a file of {FORMATS}, or to a folder of them",
    "d/header.csv": "d/header.csv has no rows in 'train': name data that has some with data.source.path, or another "
    "split with data.source.train or .heldout",
}


@pytest.mark.parametrize("path", FILES)
def test_so_is_what_is_no_data_of_any_format(path: str, data: Path) -> None:
    with pytest.raises(QTargetError, match=re.escape(FILES[path].format(here=data.parent))):
        Files(path).rows("train", None)


@pytest.mark.parametrize("source", [Jsonl, Files])
def test_held_out_rows_that_are_not_there_are_refused_by_their_own_key(
    source: type[Jsonl] | type[Files], data: Path
) -> None:
    message = "no data at 'd/val.jsonl' .*: set data.source.heldout, or data.heldout_source, to a file of "
    with pytest.raises(QTargetError, match=message):
        source("d/good.jsonl", heldout="d/val.jsonl").rows("heldout", None)


def test_rows_without_an_answer_are_refused_with_what_to_do(data: Path) -> None:
    message = (
        "no 'answer' for data.source.verifier=math; its keys: prompt, completion. Give every row 'answer', or leave"
    )
    with pytest.raises(QTargetError, match=message):
        Jsonl("d/good.jsonl", verifier="math").rows("train", None)


@pytest.mark.parametrize("words", [["data"], ["train", "trainer=dry"]])
def test_the_commands_say_so_and_leave_nothing(words: list[str], data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli([*words, "model=tiny", "data=jsonl", "data.source.path=d"]) == 2
    assert capfd.readouterr().err.startswith("qtarget: data.source.path=d is a folder")
    assert not list(Path().glob("outputs/*/*"))
