"""Data sets of the hub: the real loading code on local files of the real schemas. No hub is reached."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
from hydra.utils import instantiate as hydra_instantiate
from schemas import NAMED, files_of, openr1, parquet

from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import compose_config, instantiate, options
from qtarget.config.identity import config_hash
from qtarget.data.example import Demonstration
from qtarget.data.sources.conversation import columns_of, filled
from qtarget.data.sources.hub import Hub
from qtarget.data.verify import VERIFIERS, Verdict
from qtarget.errors import QTargetError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` makes of a file stays beside it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def named(name: str, **changes: Any) -> Hub:
    """A named source, as the command line makes it."""
    source: Hub = instantiate({**compose_config("train", [f"data={name}"]).data.source, **changes})
    return source


def given(name: str, folder: Path, **changes: Any) -> Hub:
    return named(name, files=files_of(name, folder), **changes)


def test_every_named_data_set_has_rows_here() -> None:
    others = {"arithmetic", "files", "gsm_symbolic", "instruct", "hub", "jsonl", "mix", "reasoning_gym"}
    assert set(NAMED) == set(options("data")) - others == set(options("data/source")) - others


@pytest.mark.parametrize("name", NAMED)
def test_named_data_sets_read_their_schema(name: str, tmp_path: Path) -> None:
    """Every split there is; training on data that is for evaluation is refused, and none is there to be asked for."""
    source, known = given(name, tmp_path), NAMED[name]
    for split, there in (("train", known.train), ("heldout", known.heldout)):
        if there:
            rows = source.rows(split, None)
            assert rows
            assert all(row.prompt[-1]["role"] == "user" and row.completion for row in rows)
            assert [row.row for row in source.rows(split, 2)] == [row.row for row in rows[:2]]
        else:
            with pytest.raises(QTargetError, match=f"has no {split} rows: "):
                source.rows(split, 2)
        assert source.rows(split, 0) == []
    assert source.rows("reserve", 0) == []
    judged = {row.entry["verifier"] for row in source.rows("heldout", None) if row.entry}
    if known.heldout and name != "numina_math_cot":
        assert len(judged) == 1


def only(name: str, folder: Path, split: str = "heldout", place: int = 1) -> Demonstration:
    return given(name, folder).rows(split, None)[place]


def test_a_worked_answer_is_closed_by_a_box(tmp_path: Path) -> None:
    row = only("gsm8k", tmp_path)
    assert row.completion == "She sells 9/2 = half.\nThat makes 1,009 dollars.\n\nThe answer is \\boxed{1009}."
    assert row.entry == {"verifier": "math", "answer": "1009"}
    assert row.prompt[-1]["content"].endswith("put your final answer within \\boxed{}.")


def test_the_first_right_and_complete_generation_is_taken(tmp_path: Path) -> None:
    """Rows 1 and 5 have none; of rows 2 and 6 it is the second."""
    rows, counts = given("openr1_math_15k", tmp_path).read("train", None)
    taken = {row.row: row.completion.splitlines()[-1] for row in rows}
    assert taken == {2: "second", 3: "first", 4: "first", 6: "second", 7: "first", 8: "first"}
    assert counts == {"read": 8, "adapt": 2, "unpicked": 0}


def test_options_are_lettered_and_shown(tmp_path: Path) -> None:
    letters = {"A": "Ulnar", "B": "Median", "C": "Radial", "D": "Axillary"}
    rows, counts = given("medmcqa", tmp_path).read("heldout", None)  # rows 8 to 15, of which 10 and 15 hold −1
    assert [row.entry for row in rows][:2] == [
        {"verifier": "choice", "answer": "C", "options": letters},
        {"verifier": "choice", "answer": "D", "options": letters},
    ]
    assert "A. Ulnar\nB. Median\nC. Radial\nD. Axillary" in rows[0].prompt[-1]["content"]
    assert counts == {"read": 8, "adapt": 2}


def test_options_of_an_object_and_of_the_yaml(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    row, other = only("medqa", tmp_path), only("pubmedqa", tmp_path / "p")
    assert row.entry
    assert other.entry
    assert row.entry["options"]["D"] == "Nitrofurantoin"
    assert (other.entry["answer"], other.entry["options"]) == ("B", {"A": "yes", "B": "no", "C": "maybe"})
    assert other.prompt[-1]["content"].startswith("We studied.\n\nIn 1 plants.\n\nDo mitochondria")
    assert other.completion == "Results depict 1.\n\n\\boxed{B}"


def test_an_olympiad_problem_stands_behind_its_context(tmp_path: Path) -> None:
    with_context, alone = (only("olympiadbench", tmp_path, place=place) for place in (0, 1))
    assert with_context.prompt[-1]["content"].startswith("Xenia and Sergey play.\n\nGame 0.")
    assert alone.prompt[-1]["content"].startswith("Game 1.")
    assert [row.entry["answer"] for row in (with_context, alone) if row.entry] == ["2, 3", "2"]


# Any data set


def plain(folder: Path, rows: list[Mapping[str, Any]], **changes: Any) -> Hub:
    return Hub(parquet(folder / "rows.parquet", rows), **{"prompt": "question", "completion": "answer", **changes})


def numbered(count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"question {index}", "answer": str(index), "kind": "ab"[index % 2], "id": f"id{index}"}
        for index in range(count)
    ]


def questions(rows: list[Demonstration]) -> list[str]:
    return [row.prompt[-1]["content"] for row in rows]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_files_folders_and_formats_are_one(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    table = datasets.Dataset.from_list(numbered(4))
    write = {"parquet": table.to_parquet, "jsonl": table.to_json, "csv": table.to_csv}[suffix]
    write(folder / f"train.{suffix}")
    columns = {"prompt": "question", "completion": "answer"}
    expected = ["question 0", "question 1", "question 2", "question 3"]
    path = str(folder / f"train.{suffix}")
    for source in (Hub(str(folder), **columns), Hub(path, **columns), Hub("a/b", files={"train": [path]}, **columns)):
        assert questions(source.rows("train", None)) == expected


def test_where_keeps_rows_and_names_the_others(tmp_path: Path) -> None:
    rows, counts = plain(tmp_path, numbered(10), where={"kind": "a", "id": ["id0", "id1", "id4"]}).read("train", None)
    assert questions(rows) == ["question 0", "question 4"]
    assert counts == {"read": 10, "where": 8}


@pytest.mark.parametrize("key", [None, "id", "{kind}/{id}"])
def test_a_pick_does_not_depend_on_the_order_of_the_file(tmp_path: Path, key: str | None) -> None:
    rows = numbered(60)
    shuffled = random.Random(0).sample([*rows, *({**row, "kind": "c", "id": "x" + row["id"]} for row in rows)], 120)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    picked = plain(tmp_path / "a", rows, pick=20, key=key).rows("train", None)
    same = plain(tmp_path / "b", shuffled, pick=20, key=key, where={"kind": ["a", "b"]}).rows("train", None)
    assert questions(picked) == questions(same)
    assert questions(picked) != sorted(questions(picked))
    assert questions(plain(tmp_path / "a", rows, pick=7, key=key).rows("train", None)) == questions(picked)[:7]
    assert questions(plain(tmp_path / "a", rows, pick=20, key=key, seed=1).rows("train", None)) != questions(picked)
    assert plain(tmp_path / "a", rows, pick=20, key=key).read("train", 5)[1] == {"read": 45, "unpicked": 40}


def test_a_share_is_held_out_by_its_prompt(tmp_path: Path) -> None:
    rows = [{**row, "question": f"question {index % 50}"} for index, row in enumerate(numbered(100))]
    source = plain(tmp_path, rows, heldout_share=0.3)
    (train, counts), heldout = source.read("train", None), source.rows("heldout", None)
    assert counts == {"read": 100, "other_split": len(heldout)}
    assert 0 < len(heldout) < len(train) == 100 - len(heldout)
    assert not set(questions(train)) & set(questions(heldout))


def test_rows_without_text_are_refused_or_counted(tmp_path: Path) -> None:
    rows = [{"question": "a", "answer": "b"}, {"question": "c", "answer": None}, {"question": " ", "answer": "d"}]
    with pytest.raises(
        QTargetError, match=r"row 2 of train: column 'answer' must hold text or numbers, got null; .*=drop"
    ):
        plain(tmp_path, rows).rows("train", None)
    found, counts = plain(tmp_path, rows, malformed="drop").read("train", None)
    assert questions(found) == ["a"]
    assert counts == {"read": 3, "malformed": 2}
    with pytest.raises(QTargetError, match="has 1 train rows in 'train', 2 left out: malformed; 2 were asked for"):
        plain(tmp_path, rows, malformed="drop").rows("train", 2)


def test_templates_hold_columns_and_nothing_else() -> None:
    row = {"a": "x", "n": 3, "none": None, "some": ["y"]}
    assert filled("{a}: \\boxed{{{n}}}", row, "prompt") == "x: \\boxed{3}"
    assert columns_of("{a}{{b}}{n}") == ["a", "n"]
    for spec in ("{a!r}", "{n:3}", "{}", "{a", "a}{"):
        with pytest.raises(QTargetError, match="template"):
            columns_of(spec)
    with pytest.raises(KeyError):  # the name of no column: looked up as it stands
        filled("{a.__class__}", row, "prompt")
    for spec in ("{none}", "{some}"):
        with pytest.raises(QTargetError, match="must hold text or numbers"):
            filled(spec, row, "prompt")


def test_missing_columns_are_named_with_those_there_are(tmp_path: Path) -> None:
    rows = numbered(3)
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"prompt": "problem"},
            r"no column 'problem' \(data.source.prompt\) in 'train'; its columns: question, answer,",
        ),
        ({"prompt": "{question} {hint}"}, r"no column 'hint' \(data.source.prompt\)"),
        ({"where": {"level": 3}}, r"no column 'level' \(data.source.where\)"),
        ({"pick": 1, "key": "uuid"}, r"no column 'uuid' \(data.source.key\)"),
        ({"verifier": "choice", "answer": "answer", "options": ["opa"]}, r"no column 'opa' \(data.source.options\)"),
        ({"adapt": hydra_instantiate({"_target_": "qtarget.data.sources.adapt.LetterOf"})}, r"'cop' .*\.adapt"),
    ]
    for changes, message in cases:
        with pytest.raises(QTargetError, match=message):
            plain(tmp_path, rows, **changes).rows("train", None)


def test_an_adapter_that_meets_another_schema_says_so(tmp_path: Path) -> None:
    rows = [{**openr1(1), "generations": 5}]
    source = named("openr1_math_15k", files={"train": parquet(tmp_path / "x.parquet", rows)}, malformed="error")
    with pytest.raises(QTargetError, match=r"row 1 of train: FirstVerified can't read its generations, .*TypeError"):
        source.rows("train", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verifier": "maths"}, "verifier must be one of None, math, choice, exact"),
        ({"verifier": "math"}, "judges by an answer: set data.source.answer"),
        ({"verifier": "choice", "answer": "answer"}, "needs data.source.options"),
        ({"messages": "messages"}, "say which columns are read"),
        ({"completion": None}, "say which columns are read"),
        ({"prompt": None}, "say which columns are read"),
        ({"heldout_share": 1}, r"heldout_share must lie in \[0, 1\)"),
        ({"heldout_share": 0.1, "heldout": "test"}, "leave it at 0"),
        ({"heldout": "train"}, "are both 'train'"),
        ({"train": None}, "are both None"),
        ({"pick": 0}, "pick must be a whole number of at least 1"),
        ({"malformed": "skip"}, "malformed must be one of error, drop"),
        ({"prompt": "{question"}, "can't be read"),
    ],
)
def test_fields_are_checked_before_anything_is_loaded(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        Hub("nobody/nothing", **{"prompt": "question", "completion": "answer", **changes})


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    columns = {"prompt": "question", "completion": "answer"}
    file, text = parquet(tmp_path / "rows.parquet", numbered(2)), tmp_path / "notes.txt"
    text.write_text("a")
    (tmp_path / "broken.parquet").write_text("not parquet")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"path": "nobody/nothing"}, r"can't load the split 'train' of nobody/nothing: .*Instead, give local copies"),
        ({"path": "./nowhere"}, "no data at './nowhere'"),
        ({"path": "a/b", "files": {"train": "none.parquet"}}, "no data at 'none.parquet'"),
        ({"path": "a/b", "files": {"test": file}}, "the split 'train' has no file; those given: test"),
        ({"path": "a/b", "files": {"train": [file, str(text)]}}, "must all be of one of .parquet, .arrow, .jsonl"),
        ({"path": str(tmp_path / "broken.parquet")}, "can't load the split 'train' of .*broken.parquet"),
        ({"path": str(tmp_path / "empty")}, "the folder .*empty holds no files"),
    ]
    for changes, message in cases:
        with pytest.raises(QTargetError, match=message):
            Hub(**{**columns, **changes}).rows("train", None)


def test_a_split_that_is_not_there_is_named_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    parquet(tmp_path / "set" / "train.parquet", numbered(2))
    source = Hub(str(tmp_path / "set"), prompt="question", completion="answer", heldout="validation")
    with pytest.raises(QTargetError, match=r'Unknown split "validation". Should be one of \[\'train\'\]'):
        source.rows("heldout", None)


# In a run

SMALL = ["model=tiny", "trainer.max_steps=1", "trainer.batch_size=2", "checkpoint.save=false", "eval.new_tokens=2"]


def test_a_run_trains_on_one_data_set_and_is_judged_on_another(
    workdir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VERIFIERS, "math", lambda completion, entry: Verdict(False, completion))
    for name in ("gsm8k", "math500"):
        Path(name).mkdir()
    train, judged = files_of("gsm8k", Path("gsm8k")), files_of("math500", Path("math500"))
    overrides = [
        *SMALL,
        "data=gsm8k",
        f"data.source.files={{train: {train['train']}}}",
        "+data/source@data.heldout_source=math500",
        f"data.heldout_source.files={{test: {judged['test']}}}",
        "data.heldout_source.trust_scorer=true",  # the verifier above says no to everything
    ]
    hashed = config_hash(compose_config("train", overrides))
    assert qtarget_cli(["train", *overrides]) == 0
    (path,) = workdir.glob("outputs/runs/*/result.json")
    result = json.loads(path.read_text())
    assert path.parent.name == hashed
    assert (result["rows"]["train"], result["rows"]["heldout"], result["rows"]["source_read"]) == (8, 8, 8)
    assert result["data"] == "openai/gsm8k main"
    assert "epochs of 8 rows of openai/gsm8k main" in capfd.readouterr().out
    parquet(Path("math500/test.parquet"), [{"problem": "other", "solution": "x", "answer": "1"}])
    assert config_hash(compose_config("train", overrides)) != hashed


def test_any_data_set_is_mapped_on_the_command_line(workdir: Path) -> None:
    rows = [{"q": f"q{index}", "a": f"a{index}", "level": index % 3} for index in range(9)]
    path = parquet(Path("rows.parquet"), rows)
    mapping = [f"data.source.path={path}", "data.source.prompt='{q}: {level}'", "data.source.completion=a"]
    chosen = ["data.source.where={level: [0, 2]}", "data.source.pick=4", "data.source.heldout_share=0.5"]
    source = instantiate(compose_config("train", ["data=hub", *mapping, *chosen]).data.source)
    train, heldout = source.rows("train", None), source.rows("heldout", None)
    assert len(train) + len(heldout) == 4
    assert all(question[-1] in "02" for question in questions([*train, *heldout]))
