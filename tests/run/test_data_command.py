"""`qtarget data`: what training would read is what is printed, and what training would refuse is refused."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from qtarget.cli import run as qtarget_cli
from qtarget.config.run_config import RunConfig
from qtarget.errors import QTargetError
from qtarget.run.data_report import DataReport, data_report
from qtarget.run.plan import make_plan
from qtarget.run.scripts import script_of

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
    assert (lengths["training examples"][0], lengths["training examples"][-1]) == (tokens[0], tokens[-1])
    assert lengths["training examples"][1] in tokens[14:16]
    assert lengths["of these supervised"][-1] == max(example.labels for example in examples)
    held = sorted(map(len, make_plan(RunConfig.compose([*FILES, "data.source.heldout=val.jsonl"])).prepared.heldout))
    assert lengths["held-out examples"][::4] == [held[0], held[-1]]


def test_marked_text_is_what_is_supervised_and_nothing_is_lost(
    rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = shown(capsys, "data.source.heldout=val.jsonl", "--rows", "2")
    assert code == 0
    assert "prompt/completion from rows.jsonl" in text
    assert re.search(r"user +30 +Latin", text)
    assert re.search(r"assistant +30 +Latin", text)
    assert re.findall("⟦(.*?)⟧", text) == ["supervised", "ho <|end|>", "ho ho <|end|>"]
    assert "<|user|>say 0<|end|><|assistant|>⟦ho <|end|>⟧" in text
    assert text.rstrip().endswith(f"next: qtarget train {' '.join(FILES)} data.source.heldout=val.jsonl")
    example = report("data.source.heldout=val.jsonl").prepared.train[1]
    pieces = report("data.source.heldout=val.jsonl").pieces(example)
    assert [piece.kind for piece in pieces] == ["context", "supervised"]


def test_messages_are_counted_by_role_and_by_the_script_of_most_of_their_letters(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["How are you, Иван?", "Как дела, Bob?", "世界は広い", "1 + 1 = ?", "Tell me!"]
    answers = ["Fine.", "Хорошо", "そうですね", "2", "Скажу."]
    write("rows.jsonl", [{"prompt": a, "completion": b} for a, b in zip(asked, answers, strict=True)])
    code, text = shown(capsys, "data.heldout_rows=0", "--rows", "0")
    assert code == 0
    assert re.search(r"user +5 +Latin 2, Cyrillic 1, Japanese 1, no letters 1", text)
    assert re.search(r"assistant +5 +Cyrillic 2, Latin 1, Japanese 1, no letters 1", text)
    assert "1 rows are answered in another script than they ask: 5\n" in text
    assert "own words" not in text


@pytest.mark.parametrize(
    ("letter", "script"), [("a", "Latin"), ("ｱ", "Katakana"), ("語", "Han"), ("ß", "Latin"), ("7", ""), ("ำ", "Thai")]
)
def test_a_letter_s_script_is_the_first_word_of_its_name(letter: str, script: str) -> None:
    """Unicode's names; a halfwidth kana is one once it is normalised."""
    (held,) = [script_of(char) for char in unicodedata.normalize("NFKC", letter)][-1:]
    assert held == script


CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_an_end_of_turn_that_is_no_token_is_said_and_so_is_what_a_template_writes_itself(
    rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """ChatML's template, as Qwen 2.5's writes it, on a tokenizer without its tokens, as a base model's may be."""
    code, text = shown(capsys, "data.heldout_rows=0", f"model.chat_template={json.dumps(CHATML)}", "--rows", "1")
    assert code == 0
    said = " ".join(text.replace("\\n", " ").split())
    assert "ends replies with '<|im_end|>', which is no token of this tokenizer: it is taught as text" in said
    assert "the template's own words (Latin): <|im_start|>system You are a helpful assistant.<|im_end|>" in said
    assert re.search(r"<\|im_end\|> *<\|end\|>⟧", said)


def test_a_template_that_closes_replies_with_no_token_is_said(rows: list[dict[str, Any]]) -> None:
    plain = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} -- {% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    notes = report("data.heldout_rows=0", f"model.chat_template={json.dumps(plain)}").notes()
    assert notes == ["the chat template ends replies with no token: '<|end|>' is taught behind them"]
    assert report("data.heldout_rows=0").notes() == []


def test_rows_that_are_several_examples_are_told_from_them(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A template that writes a reply in history otherwise than at the end, as Qwen3's does of one with a thought."""
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' and not loop.last %}"
        "{{ m['content'] | upper }}{% else %}{{ m['content'] }}{% endif %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    turns = [("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two")]
    talk = [{"role": role, "content": content} for role, content in turns]
    write("rows.jsonl", [{"messages": talk}, {"messages": talk[:2]}])
    options = ["data.heldout_rows=0", f"model.chat_template={json.dumps(template)}"]
    made = report(*options)
    assert made.rows() == [("read", 2, 0), ("examples that they are, turn by turn", 3, 0)]
    code, text = shown(capsys, *options)
    assert code == 0
    assert "among these: 1 rows of several replies" in text
    assert re.findall(r"^row .*?:", text, re.MULTILINE) == [
        "row 1, example 1 of 2:",
        "row 1, example 2 of 2:",
        "row 2:",
    ]


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


HINTED = ["target=kd", "reference@references.teacher=privileged", "references.teacher.hint='So: {hint}!'"]


def test_a_row_is_shown_as_a_teacher_with_a_hint_reads_it(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside what the policy reads, with the same tokens supervised: those that training gives the teacher."""
    write("rows.jsonl", [{"prompt": f"say {i}", "completion": "ho", "hint": f"count {i}"} for i in range(30)])
    given = [*HINTED, "data.source.heldout_share=0", "data.heldout_rows=0"]
    code, text = shown(capsys, *given, "--rows", "2")
    assert code == 0
    plan = make_plan(RunConfig.compose([*FILES, *given]))
    for row, example in enumerate(plan.hinted["teacher"][:2]):
        policy = f"<|user|>say {row}<|end|><|assistant|>⟦ho<|end|>⟧"
        teacher = f"<|user|>So: count {row}!\n\nsay {row}<|end|><|assistant|>⟦ho<|end|>⟧"
        title = f"as the teacher reads it, with its hint: {len(example)} tokens"
        assert f"{policy}\n{title}\n{teacher}" in text
    assert list(report(*given).hinted["teacher"]) == plan.hinted["teacher"]
    assert "with its hint" not in shown(capsys, "data.source.heldout_share=0", "data.heldout_rows=0")[1]


def test_hints_that_training_would_refuse_are_said(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("rows.jsonl", [{"prompt": f"say {i}", "completion": "ho", "hint": "x" * 1100 * (i == 3)} for i in range(5)])
    given = [*HINTED, "data.source.heldout_share=0", "data.heldout_rows=0"]
    code, text = shown(capsys, *given)
    assert code == 2
    assert "training would stop: row 1 has no hint, which the hint 'So: {hint}!' names" in text
    code, text = shown(capsys, *given[:2], "references.teacher.hint=" + "y" * 1100, *given[3:])
    assert code == 2
    assert "training would stop: with references.teacher.hint 5 of 5 examples are longer than the 1024 tokens" in text


def test_it_prints_the_configuration_and_leaves_nothing_behind(
    rows: list[dict[str, Any]], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = shown(capsys, "--cfg", "job")
    assert (code, "source:" in text) == (0, True)
    assert sorted(path.name for path in workdir.iterdir()) == ["rows.jsonl", "val.jsonl"]


def test_rows_that_are_all_too_long_are_answered_with_what_makes_them_fit(workdir: Path) -> None:
    """More rows, which an empty file needs, would be as long."""
    dropped = ["data=arithmetic", "model=tiny", "data.rows=4", "data.max_length=5", "data.truncation=drop"]
    fitting = r"4 .*too long.*: raise data\.max_length up to the model's context, ask for"
    with pytest.raises(QTargetError, match=fitting):
        make_plan(RunConfig.compose(dropped))
    (workdir / "none.jsonl").write_text("")
    (workdir / "held.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n')
    empty = ["data=files", "model=tiny", "data.source.path=none.jsonl", "data.source.heldout=held.jsonl"]
    with pytest.raises(QTargetError) as raised:
        make_plan(RunConfig.compose(empty))
    assert "max_length" not in str(raised.value)
