"""`qtarget data`: what training would read is what is printed, and what training would refuse is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qtarget.cli import run as qtarget_cli
from qtarget.config.run_config import RunConfig
from qtarget.run.data_report import DataReport, data_report
from qtarget.run.plan import make_plan

FILES = ["data=files", "data.source.path=rows.jsonl", "model=tiny"]


@pytest.fixture
def rows(workdir: Path) -> list[dict[str, Any]]:
    rows = [{"prompt": f"say {index}", "completion": "ho " * (1 + index)} for index in range(30)]
    write("rows.jsonl", rows)
    write("val.jsonl", [{"prompt": f"ask {index}", "completion": "hm"} for index in range(25)])
    return rows


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def report(*overrides: str) -> DataReport:
    return data_report(RunConfig.compose([*FILES, *overrides]))


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = qtarget_cli(["data", *FILES, *arguments])
    return code, capsys.readouterr().out


def test_it_counts_the_rows_that_training_keeps(rows: list[dict[str, Any]]) -> None:
    options = ["data.source.heldout=val.jsonl", "data.max_length=60", "data.truncation=drop"]
    counts = {what: held for what, *held in report(*options).rows()}
    plan = make_plan(RunConfig.compose([*FILES, *options])).prepared.counts
    assert plan["dropped_too_long"] > 0
    assert counts == {"read": [30, 25], "longer than 60 tokens": [plan["dropped_too_long"], 0]}


def test_lengths_are_those_of_the_examples_that_are_trained_on(rows: list[dict[str, Any]]) -> None:
    lengths = dict(report("data.source.heldout=val.jsonl").lengths())
    examples = make_plan(RunConfig.compose([*FILES, "data.source.heldout=val.jsonl"])).prepared.train
    tokens = sorted(map(len, examples))
    assert (lengths["training rows"][0], lengths["training rows"][-1]) == (tokens[0], tokens[-1])
    assert lengths["training rows"][1] in tokens[14:16]
    assert lengths["of these supervised"][-1] == max(example.labels for example in examples)
    held = sorted(map(len, make_plan(RunConfig.compose([*FILES, "data.source.heldout=val.jsonl"])).prepared.heldout))
    assert lengths["held-out rows"][::4] == [held[0], held[-1]]


def test_marked_text_is_what_is_supervised_and_nothing_is_lost(
    rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = shown(capsys, "data.source.heldout=val.jsonl", "--rows", "2")
    assert code == 0
    assert "prompt/completion from rows.jsonl" in text
    assert "training messages: 30 user, 30 assistant" in text
    assert re.findall("⟦(.*?)⟧", text) == ["supervised", "ho <|end|>", "ho ho <|end|>"]
    assert "<|user|>say 0<|end|><|assistant|>⟦ho <|end|>⟧" in text
    assert text.rstrip().endswith(f"next: qtarget train {' '.join(FILES)} data.source.heldout=val.jsonl")
    example = report("data.source.heldout=val.jsonl").prepared.train[1]
    pieces = report("data.source.heldout=val.jsonl").pieces(example)
    assert [piece.kind for piece in pieces] == ["context", "supervised"]


def test_wrong_tokens_and_context_replies_are_told_apart(workdir: Path) -> None:
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "12", "weight": 0},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "It is 34"},
    ]
    write("rows.jsonl", [{"messages": talk}] * 20)
    made = report("data.heldout_rows=0", "data/noise=wrong_answer", "data.noise.rate=1.0", "data.noise.spread=1")
    pieces = made.pieces(made.prepared.train[0])
    assert "12" in pieces[0].text
    assert [piece.kind for piece in pieces] == ["context", "supervised", "wrong", "supervised"]
    assert pieces[2].text in ("3", "5")
    assert ("made wrong by noise", 20, "") in [(what, train, "") for what, train, _ in made.rows()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["data.source.heldout=val.jsonl", "data.max_length=60"],
            "rows are longer than 60 tokens: set data.truncation",
        ),
        (["data.source.heldout=same.jsonl"], "2 training rows have the prompt of a held-out row: set data.contamin"),
        (["data.source.heldout=long.jsonl", "data.max_length=200"], "1 rows are longer than 200"),
    ],
)
def test_what_training_would_refuse_is_said_behind_the_report(
    rows: list[dict[str, Any]], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("same.jsonl", rows[3:5])
    write("long.jsonl", [{"prompt": "p", "completion": "x" * 300}])
    code, text = shown(capsys, *options)
    assert code == 2
    assert f"training would stop: {message}" in " ".join(text.split()) or message in text
    assert "read " in text
    assert "next:" not in text
    assert qtarget_cli(["train", *FILES, *options, "trainer.max_steps=1"]) == 2


def test_long_rows_are_shown_by_their_ends_and_control_characters_are_not_obeyed(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("rows.jsonl", [{"prompt": "\x1b[2J[bold]", "completion": "x" * 900 + "y" * 1200 + "z"}])
    code, text = shown(capsys, "data.heldout_rows=0", "model.chat_template=null", "data.max_length=2500")
    assert code in (0, 2)
    assert "\x1b" not in text
    assert "\\x1b[2J[bold]" in text
    assert re.search(r"yyz<\|end\|>⟧", text)
    assert " characters … " in text


def test_the_page_holds_the_same(rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    write("rows.jsonl", [{**row, "completion": "<script>"} for row in rows])
    code, text = shown(capsys, "data.source.heldout=val.jsonl", "--out", "pages/data.html", "--rows", "1")
    assert code == 0
    assert "page: pages/data.html" in text
    page = Path("pages/data.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "prompt/completion from rows.jsonl" in page


def test_it_prints_the_configuration_and_leaves_nothing_behind(
    rows: list[dict[str, Any]], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = shown(capsys, "--cfg", "job")
    assert (code, "source:" in text) == (0, True)
    assert sorted(path.name for path in workdir.iterdir()) == ["rows.jsonl", "val.jsonl"]
