"""Your own rows: what a file may hold, what is said of one that doesn't, and that none is lost on the way unnamed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import compose_config
from qtarget.config.identity import config_hash
from qtarget.data.example import Demonstration
from qtarget.data.module import DataConfig, prepare
from qtarget.data.overlap import apart, prompt_text
from qtarget.data.sources.jsonl import Jsonl
from qtarget.data.sources.mix import Mix
from qtarget.data.sources.reasoning_gym import ReasoningGym
from qtarget.data.sources.splits import interleaved
from qtarget.errors import QTargetError
from qtarget.model.builtin import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def write(path: Path, *rows: Any) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def question(row: Demonstration) -> str:
    return row.prompt[-1]["content"]


def talk(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


# Schemas


def test_a_file_has_one_of_three_schemas(tmp_path: Path) -> None:
    messages = talk(("system", ""), ("user", "a"), ("assistant", "b"))
    first = Jsonl(write(tmp_path / "1.jsonl", {"messages": messages, "id": 1}), heldout_share=0)
    pair = Jsonl(write(tmp_path / "2.jsonl", "", {"prompt": "c", "completion": "d", "id": 3}), 0, system="hi")
    alpaca = [
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "Go.", "input": "", "output": "ok"},
    ]
    third = Jsonl(write(tmp_path / "3.jsonl", *alpaca), heldout_share=0)
    assert [source.described for source in (first, pair, third)] == [
        "messages",
        "prompt/completion",
        "instruction/output",
    ]
    assert first.rows("train", None)[0].messages == messages
    (row,) = pair.rows("train", None)
    assert (row.row, [message["role"] for message in row.messages]) == (2, ["system", "user", "assistant"])
    assert [(question(row), row.completion) for row in third.rows("train", None)] == [
        ("Add.\n\n1, 2", "3"),
        ("Go.", "ok"),
    ]


def test_jsonl_held_out_rows_share_no_prompt_with_training(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question  {index % 50}"[index % 2 :], "completion": str(index)} for index in range(100)]
    source = Jsonl(write(tmp_path / "rows.jsonl", *rows), heldout_share=0.3)
    train, heldout = source.rows("train", None), source.rows("heldout", None)
    assert len(train) + len(heldout) == 100
    assert heldout
    assert not {prompt_text(row.prompt) for row in train} & {prompt_text(row.prompt) for row in heldout}


@pytest.mark.parametrize(
    ("verifier", "extra", "entry"),
    [
        ("math", {"answer": 3}, {"verifier": "math", "answer": "3"}),
        ("exact", {"answer": " yes "}, {"verifier": "exact", "answer": "yes"}),
        (
            "choice",
            {"answer": "B", "options": ["x", "y"]},
            {"verifier": "choice", "answer": "B", "options": {"A": "x", "B": "y"}},
        ),
        (None, {"answer": []}, None),
    ],
)
def test_an_answer_makes_a_row_verifiable(verifier: str | None, extra: Any, entry: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "a", "completion": "b", **extra})
    (row,) = Jsonl(path, heldout_share=0, verifier=verifier).rows("train", None)
    assert row.entry == entry


# Malformed rows

LONE = '{"prompt": "a", "completion": "ok \\ud800"}'
FAULTS: dict[str, tuple[Any, str]] = {
    "not JSON": ("{oops", "line 2: not JSON"),
    "not UTF-8": (
        '{"prompt": "\udcff", "completion": "b"}',
        "line 2: prompt holds a byte that isn.t UTF-8 at character 0",
    ),
    "deep": ("[" * 100_000, "line 2: nested too deeply"),
    "a list": ([1, 2], "line 2: expected an object, .*; got a list"),
    "null": ("null", "line 2: expected an object, .*; got null"),
    "keys": ({"prompt": "a", "answer": "b"}, "line 2: expected .*; the keys are: prompt, answer"),
    "two schemas": (
        {"prompt": "a", "completion": "b", "messages": []},
        "line 2: the row is messages and prompt/completion at once",
    ),
    "another schema": (
        {"instruction": "a", "output": "b"},
        "line 2: a row of instruction/output in a file whose first row is prompt/completion",
    ),
    "null text": ({"prompt": None, "completion": "b"}, "line 2: prompt is null"),
    "number": ({"prompt": "a", "completion": 5}, "line 2: completion must be text, got a number"),
    "blank": ({"prompt": "a", "completion": " "}, "line 2: completion is empty"),
    "surrogate": (LONE, "line 2: completion holds a lone surrogate, half of a pair, at character 3"),
}
TURNS: dict[str, tuple[Any, str]] = {
    "no list": ("a", "line 2: messages must be a list of messages, got text"),
    "none": ([], "line 2: messages is an empty list"),
    "no object": (["a"], r"line 2: messages\[0\] must be an object with role and content, got text"),
    "no role": ([{"content": "a"}], r"line 2: messages\[0\] has no 'role'; its keys: content"),
    "no content": ([{"role": "user", "text": "a"}], r"line 2: messages\[0\] has no 'content'; its keys: role, text"),
    "unknown role": (
        talk(("robot", "x")),
        r"line 2: messages\[0\] has the unknown role 'robot'; known: system, developer, user, assistant, tool",
    ),
    "null": ([{"role": "user", "content": None}], r"line 2: messages\[0\].content is null"),
    "parts": (
        [{"role": "user", "content": [{"text": "a"}]}],
        r"line 2: messages\[0\].content\[0\] is of the type 'None'",
    ),
    "empty turn": (talk(("user", ""), ("assistant", "b")), r"line 2: messages\[0\].content is empty"),
    "empty answer": (talk(("user", "a"), ("assistant", "\n")), r"line 2: messages\[1\].content is empty"),
    "last": (
        talk(("assistant", "a"), ("user", "b")),
        "line 2: messages must end with the assistant's answer, .*'user'",
    ),
}
ANSWERS: dict[str, tuple[Any, str]] = {
    "missing": ({"options": ["x"]}, "line 2: no 'answer' for data.source.verifier=choice"),
    "options": ({"answer": "A"}, "line 2: no 'options' for data.source.verifier=choice"),
    "null": ({"answer": None, "options": ["x"]}, "line 2: answer is null"),
    "true": ({"answer": True, "options": ["x"]}, "line 2: answer must be text, got true or false"),
    "letter": (
        {"answer": "C", "options": ["x", "y"]},
        "line 2: answer must be one of the options' letters A, B, got 'C'",
    ),
    "no options": ({"answer": "A", "options": {}}, "line 2: options must be"),
    "null option": ({"answer": "A", "options": {"A": None}}, "line 2: option A is null"),
}


def read(path: str, **options: Any) -> list[Demonstration]:
    return Jsonl(path, heldout_share=0, **options).rows("train", None)


@pytest.mark.parametrize("case", FAULTS)
def test_a_malformed_row_is_named(case: str, tmp_path: Path) -> None:
    row, message = FAULTS[case]
    lines = [json.dumps({"prompt": "a", "completion": "b"}), row if isinstance(row, str) else json.dumps(row)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    with pytest.raises(QTargetError, match=message):
        read(str(path))


@pytest.mark.parametrize("case", TURNS)
def test_a_malformed_conversation_is_named(case: str, tmp_path: Path) -> None:
    messages, message = TURNS[case]
    good = {"messages": talk(("user", "a"), ("assistant", "b"))}
    with pytest.raises(QTargetError, match=message):
        read(write(tmp_path / "rows.jsonl", good, {"messages": messages}))


@pytest.mark.parametrize("case", ANSWERS)
def test_a_malformed_answer_is_named(case: str, tmp_path: Path) -> None:
    extra, message = ANSWERS[case]
    good = {"prompt": "a", "completion": "b", "answer": "A", "options": {"A": "x"}}
    with pytest.raises(QTargetError, match=message):
        read(write(tmp_path / "rows.jsonl", good, {"prompt": "a", "completion": "b", **extra}), verifier="choice")


# Ten thousand rows that nobody would write on purpose

TEXTS = ("", " ", "ok", "2 + 2 = 4", "\ud800", "a\udfffb", "é", "\x00", "<|end|>", "x" * 5_000)
ROLES = ("system", "user", "assistant", "assistant", "tool", None)
KEYS = (
    "messages",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "answer",
    "options",
    "role",
    "content",
    "",
)


def junk(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value; text more often than others, and few of the rest at the third depth."""
    made = {
        "text": lambda: rng.choice(TEXTS),
        "same": lambda: rng.choice(TEXTS[2:4]),
        "number": lambda: rng.choice((0, -1, 3.5, 10**30, float("nan"), float("inf"))),
        "plain": lambda: rng.choice((None, True, False)),
        "list": lambda: [junk(rng, depth + 1) for _ in range(rng.randrange(4))],
        "object": lambda: {rng.choice(KEYS): junk(rng, depth + 1) for _ in range(rng.randrange(4))},
        "turns": lambda: [{"role": rng.choice(ROLES), "content": junk(rng, 3)} for _ in range(rng.randrange(4))],
        "deep": lambda: json.loads("[" * 60 + "]" * 60),
    }
    return made[rng.choice([*made][: 8 if depth < 3 else 4])]()


def fuzzed(rng: random.Random) -> bytes:
    """A line: junk, an object with the keys of a schema and junk in them, or that with some bytes changed."""
    schema = rng.choice((KEYS[:1], KEYS[1:3], KEYS[3:6], KEYS[1:3] + KEYS[6:8]))
    row = junk(rng) if rng.random() < 0.1 else {key: junk(rng, 1) for key in schema if rng.random() < 0.95}
    line = bytearray(json.dumps(row, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass"))
    for _ in range(rng.randrange(1, 5) if rng.random() < 0.1 else 0):
        line[rng.randrange(len(line))] = rng.randrange(256)
    return bytes(line).replace(b"\n", b" ")


@dataclass(frozen=True)
class OneLine(Jsonl):
    """One line of a file, with its number there: opening a file for each takes longer than reading it."""

    line: tuple[int, bytes] = (0, b"")

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        yield self.line


def test_ten_thousand_fuzzed_rows_are_taken_or_refused_with_their_number(tmp_path: Path) -> None:
    """Each is the first row of its file, so every schema is met; what is taken can be tokenised."""
    rng, path, taken, reasons = random.Random(0), tmp_path / "rows.jsonl", 0, set()
    path.write_bytes(b"\n".join(fuzzed(rng) for _ in range(10_000)))
    lines = list(Jsonl(str(path))._lines())
    assert len(lines) == 10_000
    for number, line in lines:
        source = OneLine(str(path), 0, verifier=("math", "choice", None)[number % 3], line=(number, line))
        try:
            (row,) = source.rows("train", None)
        except QTargetError as error:
            said = str(error)
            assert said.startswith(f"{path}, line {number}: ")
            assert len(said.encode()) < 1000
            reasons.add(said.split(": ")[1][:12])
        else:
            taken += 1
            assert row.row == number
            TOKENIZER("".join(message["content"] for message in row.messages))
    assert taken > 50
    assert len(reasons) > 15


# What becomes of rows


@dataclass(frozen=True)
class Given:
    """A source of the rows it is given."""

    train: Sequence[Demonstration]
    heldout: Sequence[Demonstration] = ()
    described: str = "given"

    def rows(self, split: str, count: int | None) -> list[Demonstration]:
        return list({"train": self.train, "heldout": self.heldout, "reserve": ()}[split])[:count]


def row_of(asked: str, answer: str, number: int) -> Demonstration:
    return Demonstration(talk(("user", asked), ("assistant", answer)), row=number)


rows_of = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 40)), min_size=1, max_size=20)


@given(rows_of, rows_of, st.sampled_from(["drop", "allow"]), st.sampled_from(["drop", "cut"]), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_rows_in_are_rows_kept_and_rows_dropped_by_name(
    train: list[tuple[str, int]], heldout: list[tuple[str, int]], contamination: str, truncation: str, room: int
) -> None:
    """Every kept row stands where it stood among the others, and every other one has a name."""
    source = Given(
        [row_of(asked, "x" * length, number) for number, (asked, length) in enumerate(train)],
        [row_of(asked.upper(), "y" * length, number) for number, (asked, length) in enumerate(heldout)],
    )
    config = DataConfig(source, None, contamination=contamination, truncation=truncation, max_length=10 + room)
    known = {asked for asked, _ in heldout} if contamination == "drop" else set()
    fresh = [number for number, (asked, _) in enumerate(train) if asked not in known]
    fixed = 5  # <|user|>, the question, <|assistant|>, and two ends of turn
    fits = [number for number in fresh if truncation == "cut" or train[number][1] + fixed <= 10 + room]
    prepared = prepare(config, TOKENIZER, 1024)
    counts = prepared.counts
    assert [example.row for example in prepared.train] == fits
    assert [row.row for row in prepared.heldout_rows] == [example.row for example in prepared.heldout]
    assert (
        counts["asked"] == len(train) == counts["train"] + counts["dropped_too_long"] + counts["dropped_contaminated"]
    )
    assert counts["heldout_asked"] == len(heldout) == counts["heldout"] + counts["heldout_dropped_too_long"]
    assert counts["dropped_contaminated"] == len(train) - len(fresh)
    assert counts["cut"] == sum(length + fixed > 10 + room for length in (train[n][1] for n in fits))
    assert bool(prepared.dropped_in_words) == any(counts[name] for name in counts if "dropped" in name or "cut" in name)


def test_a_training_row_that_answers_a_held_out_prompt_is_refused_or_dropped() -> None:
    """In other spelling, under another system message, and on the way of a longer conversation."""
    heldout = [row_of("What is  2 + 2?", "4", 0)]
    fresh = [row_of("What is 2 - 2?", "0", 5), row_of("What is 2 + 2? Why?", "4", 6)]
    known = [
        row_of("what is\n2 + 2?", "four", 1),
        Demonstration(talk(("system", "s"), ("user", "What is 2 + 2?"), ("assistant", "5")), row=2),
        Demonstration(
            talk(("user", "What is 2 + 2?"), ("assistant", "4"), ("user", "Sure?"), ("assistant", "Yes")), row=3
        ),
    ]
    rows = [fresh[0], *known, fresh[1]]
    assert apart(rows, heldout, "drop") == fresh
    assert apart(rows, heldout, "allow") == rows
    with pytest.raises(QTargetError, match=r"3 of 5 training rows .* row 1: .*set data.contamination=drop"):
        apart(rows, heldout, "error")
    config = DataConfig(Given(fresh), None, heldout_source=Given([], [*heldout, fresh[0]]), contamination="drop")
    prepared = prepare(config, TOKENIZER, 1024)
    assert prepared.dropped_in_words == "; 1 left out as held out too"
    for changes in ({"contamination": "maybe"}, {"supervise": "first"}):
        with pytest.raises(QTargetError, match="must be one of"):
            replace(config, **changes)


def test_the_last_turn_alone_is_a_setting_of_the_data() -> None:
    long = Demonstration(talk(("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two")), row=0)
    labels = {
        how: prepare(DataConfig(Given([long]), None, supervise=how), TOKENIZER, 1024).train[0].labels
        for how in ("all", "last")
    }
    assert labels == {"all": 8, "last": 4}


def test_a_run_says_what_it_reads_and_what_it_leaves_out(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [{"instruction": f"say {index}", "output": str(index) * (1 + 60 * (index == 7))} for index in range(20)]
    write(Path("mine.jsonl"), *rows)
    options = ["data=jsonl", "data.source.path=mine.jsonl", "data.max_length=40", "data.truncation=drop"]
    few = ["model=tiny", "trainer.max_steps=1", "data.source.heldout_share=0", "checkpoint.save=false"]
    assert qtarget_cli(["train", *few, *options]) == 0
    said = capfd.readouterr().out
    assert "epochs of 19 rows of instruction/output (0 made wrong); 0 rows held out; 1 left out as too long" in said
    (path,) = workdir.glob("outputs/runs/*/result.json")
    counts = json.loads(path.read_text())["rows"]
    assert (counts["asked"], counts["train"], counts["dropped_too_long"]) == (20, 19, 1)


# Mixtures of generated tasks


@given(st.dictionaries(st.sampled_from("abcd"), st.floats(0.1, 10), min_size=1), st.integers(0, 200))
@settings(max_examples=100, deadline=None)
def test_every_beginning_of_a_mixture_has_its_weights(weights: dict[str, float], count: int) -> None:
    order = interleaved(weights, count)
    assert order == interleaved(weights, 200)[:count]
    for name, weight in weights.items():
        wanted = count * weight / sum(weights.values())
        assert abs(order.count(name) - wanted) < len(weights)


MIXED = {"chain_sum": {"weight": 2, "options": {"min_terms": 2, "max_terms": 2}}, "gsm_symbolic": 1}


def test_a_mixture_of_tasks_is_disjoint_and_repeatable() -> None:
    source = ReasoningGym(tasks=MIXED)
    train, heldout = source.rows("train", 30), source.rows("heldout", 15)
    assert source.rows("train", 30) == train
    assert [question(row) for row in source.rows("train", 12)] == [question(row) for row in train[:12]]
    assert len({question(row) for row in (*train, *heldout)}) == 45
    tasks = [row.entry["metadata"]["source_dataset"] for row in train if row.entry]
    assert (tasks.count("chain_sum"), tasks.count("gsm_symbolic")) == (20, 10)
    assert [row.row for row in train] == list(range(30))
    alone = ReasoningGym("chain_sum", {"min_terms": 2, "max_terms": 2}).rows("train", 20)
    assert [question(row) for row in train if "chain" in row.entry["metadata"]["source_dataset"]] == [  # type: ignore[index]
        question(row) for row in alone
    ]


def test_tasks_of_a_mixture_have_answers_of_their_own() -> None:
    tasks = {"chain_sum": 1, "gsm_symbolic": {"answer": "answer_cot"}}
    first, second = ReasoningGym(tasks=tasks, system="").rows("heldout", 2)
    assert len(second.completion) > 40 > len(first.completion)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "name one task"),
        ({"task": "chain_sum", "tasks": {"gsm_symbolic": 1}}, "name one task"),
        ({"tasks": {}}, "names no part"),
        ({"tasks": {"chain_sum": 0}}, "tasks.chain_sum: a weight must be a number above 0, got 0"),
        ({"tasks": {"chain_sum": {"wieght": 2}}}, "tasks.chain_sum has unknown wieght: weight, options, answer"),
        ({"tasks": {"chain_sum": 1}, "options": {"min_terms": 2}}, "options are those of one task"),
    ],
)
def test_mixtures_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        ReasoningGym(**fields)


def test_a_mixture_is_written_on_the_command_line(workdir: Path) -> None:
    few = ["model=tiny", "trainer.max_steps=1", "trainer.batch_size=3", "data.rows=6", "data.heldout_rows=3"]
    mixed = "data.source.tasks={chain_sum: 2, gsm_symbolic: {weight: 1, answer: answer_cot}}"
    options = ["data=reasoning_gym", mixed, "data.truncation=cut", "eval.new_tokens=2", "checkpoint.save=false"]
    assert qtarget_cli(["train", *few, *options]) == 0
    (path,) = workdir.glob("outputs/runs/*/result.json")
    assert json.loads(path.read_text())["data"] == "chain_sum + gsm_symbolic"


def test_sources_are_mixed_by_weight(tmp_path: Path) -> None:
    """Row for row the parts' own, in turn; only columns that all have are kept; counts carry the part's name."""
    own = write(tmp_path / "rows.jsonl", *({"prompt": f"q{index}", "completion": "a"} for index in range(9)))
    parts = {"sums": ReasoningGym("chain_sum"), "own": Jsonl(own, heldout_share=0)}
    mixed = Mix(parts, {"sums": 1, "own": 3})
    rows = mixed.rows("train", 8)
    assert [question(row) for row in rows if question(row)[0] == "q"] == [f"q{index}" for index in range(6)]
    assert [question(row) for row in rows if question(row)[0] != "q"] == [
        question(row) for row in parts["sums"].rows("train", 2)
    ]
    assert all(row.spans == {} for row in rows)
    assert mixed.described == "chain_sum + prompt/completion"
    prepared = prepare(DataConfig(mixed, 8, heldout_rows=0), TOKENIZER, 1024)
    assert prepared.counts["train"] == 8
    with pytest.raises(QTargetError, match=r"holds 9 train rows, 12 were asked for"):
        mixed.rows("train", 16)
    for fields, message in (
        (({},), "a mixture needs parts"),
        ((parts, {"sums": 1}), "weights are of sums and the parts are sums, own"),
        ((parts, {"sums": 1, "own": -1}), "weights.own: a weight must be a number above 0"),
    ):
        with pytest.raises(QTargetError, match=message):
            Mix(*fields)
    with pytest.raises(QTargetError, match=r"set data\.rows"):
        mixed.rows("train", None)
    assert Mix(parts).rows("heldout", 0) == []


def test_a_mixture_of_sources_is_written_on_the_command_line(workdir: Path) -> None:
    write(Path("mine.jsonl"), *({"prompt": f"q{index}", "completion": "a"} for index in range(9)))
    parts = ["+data/source@data.source.parts.own=jsonl", "+data/source@data.source.parts.sums=arithmetic"]
    options = ["data=mix", *parts, "data.source.parts.own.path=mine.jsonl", "data.source.weights={own: 2, sums: 1}"]
    few = ["model=tiny", "trainer.max_steps=1", "trainer.batch_size=3", "data.rows=6", "checkpoint.save=false"]
    assert config_hash(compose_config("train", [*few, *options])) != config_hash(compose_config("train", few))
    assert qtarget_cli(["train", *few, *options]) == 0
    (path,) = workdir.glob("outputs/runs/*/result.json")
    assert json.loads(path.read_text())["data"] == "prompt/completion + chain_sum"
