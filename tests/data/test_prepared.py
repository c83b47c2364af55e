"""Data that is prepared once: the same examples as in memory, under a key of all that makes them, built by one."""

from __future__ import annotations

import ast
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch

from qtarget.data import in_files, prepared_files
from qtarget.data.batch import Batch, Collate
from qtarget.data.example import Demonstration, label_counts, lengths
from qtarget.data.module import DataConfig, Prepared, prepare
from qtarget.data.noise import (
    Noise,
    NoNoise,
    ParaphraseStyle,
    RandomToken,
    Several,
    SpuriousMarker,
    SwappedDemonstration,
    Truncated,
    Typo,
    WrongAnswer,
)
from qtarget.data.once import prepare_once
from qtarget.data.recipe import PACKAGE, code_digest, code_files, recipe, recipe_digest
from qtarget.data.sources.instruct import Instruct
from qtarget.data.sources.jsonl import Jsonl
from qtarget.data.sources.mix import Mix
from qtarget.data.sources.reasoning_gym import ReasoningGym
from qtarget.data.stored import NotStorableError, StoredRows, write_rows
from qtarget.errors import QTargetError
from qtarget.forked import in_forks
from qtarget.model.builtin import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
NOISES: Mapping[str, Noise] = {
    "none": NoNoise(),
    "wrong_answer": WrongAnswer(0.5),
    "swapped": SwappedDemonstration(0.5),
    "typo": Typo(0.3),
    "truncated": Truncated(0.4),
    "style": ParaphraseStyle(0.4),
    "marker": SpuriousMarker(0.4),
    "replaced": RandomToken(0.2),
    "inserted": RandomToken(0.2, span=2, how="insert"),
    "several": Several({"first": Typo(0.2), "then": RandomToken(0.1)}),
}


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    """Sums of unequal lengths; every third with a weight of its own and a part that is doubled."""
    made = []
    for index in range(count):
        answer = f"{index} plus {index * index} is {index + index * index}"
        row: dict[str, Any] = {"prompt": f"{index} + {index * index}?", "completion": answer, "critical": [[0, 1]]}
        made.append(row | ({"weight": 0.5, "span_weights": [[0, 4, 2.0]]} if index % 3 == 0 else {}) | more)
    return made


def turns(count: int) -> list[dict[str, Any]]:
    """Conversations of two replies with thoughts."""
    talk = ("user", "{}?"), ("assistant", "<think>a</think>one"), ("user", "and?"), ("assistant", "<think>b</think>{}")
    made = [[{"role": role, "content": text.format(index)} for role, text in talk] for index in range(count)]
    return [
        {"messages": [{**one, "span_weights": [[0, 7, 0.5]]} if "one" in one["content"] else one for one in messages]}
        for messages in made
    ]


def jsonl(folder: Path, given: Sequence[Mapping[str, Any]], **fields: Any) -> Jsonl:
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in given))
    return Jsonl(str(path), **fields)


def config(source: Any, **fields: Any) -> DataConfig:
    return DataConfig(source, **{"rows": None, "heldout_rows": None, "keep": True, **fields})


def once(given: DataConfig, holder: Path, context: int = 1024, tokenizer: Any = TOKENIZER) -> Prepared:
    return prepare_once(given, tokenizer, context, holder, say=lambda text: None)


def batches(prepared: Prepared) -> list[Batch]:
    given: list[Any] = [prepared.rows[start : start + 3] for start in range(0, len(prepared.rows), 3)]
    return [Collate(0)(some) for some in given]


def assert_same(stored: Prepared, made: Prepared) -> None:
    """Every field, of the types that it had; and every tensor of the batches."""
    for name in ("train", "heldout", "heldout_rows", "rows", "heldout_of"):
        assert repr(list(getattr(stored, name))) == repr(list(getattr(made, name))), name
        assert list(getattr(stored, name)) == list(getattr(made, name)), name
    for name in ("counts", "described", "notes", "roles", "few_in_words", "dropped_in_words"):
        assert getattr(stored, name) == getattr(made, name), name
    assert [row.entry for row in stored.heldout_rows] == [row.entry for row in made.heldout_rows]
    for one, other in zip(batches(stored), batches(made), strict=True):
        for name in ("input_ids", "labels", "label_indices", "position_ids", "weights"):
            pair = getattr(one, name), getattr(other, name)
            assert pair == (None, None) or torch.equal(*pair), name
        assert one.columns.keys() == other.columns.keys()
        assert all(torch.equal(one.columns[name], other.columns[name]) for name in one.columns)


CUTTING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content if loop.last or m.role == 'user' else "
    "m.content.split('</think>')[-1] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A template that cuts the thoughts out of earlier replies, as Qwen3's does."""


# The same examples


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("packing", [None, 150])
def test_what_is_kept_is_what_is_prepared_in_memory(name: str, packing: int | None, tmp_path: Path) -> None:
    """Weights, a data column, held-out rows with an entry, and a prompt of its own in every row."""
    given = rows(30, answer="7")
    source = jsonl(tmp_path, given, columns=["critical"], verifier="exact", heldout_share=0.2)
    kept = config(source, noise=NOISES[name], packing=packing)
    for _ in ("built", "read"):
        assert_same(once(kept, tmp_path / "kept"), prepare(kept, TOKENIZER, 1024))


@pytest.mark.parametrize("truncation", ["drop", "cut"])
@pytest.mark.parametrize("name", ["none", "inserted"])
def test_rows_that_are_too_long_are_dropped_or_cut_alike(truncation: str, name: str, tmp_path: Path) -> None:
    source = jsonl(tmp_path, rows(30))
    kept = config(source, noise=NOISES[name], truncation=truncation, max_length=28)
    stored = once(kept, tmp_path / "kept")
    assert stored.counts["cut" if truncation == "cut" else "dropped_too_long"] > 0
    assert_same(stored, prepare(kept, TOKENIZER, 1024))


@pytest.mark.parametrize(
    "source",
    [
        ReasoningGym(tasks={"chain_sum": 1, "spell_backward": 2, "letter_counting": 1}),
        Mix({"sums": ReasoningGym("chain_sum"), "words": Instruct()}),
        ReasoningGym("knights_knaves"),  # whose names are of numpy
    ],
    ids=["tasks", "mix", "numpy"],
)
def test_rows_that_are_made_and_their_entries_are_kept_alike(source: Any, tmp_path: Path) -> None:
    kept = config(source, rows=6, heldout_rows=4, contamination="drop")
    assert_same(once(kept, tmp_path, context=4096), prepare(kept, TOKENIZER, 4096))
    assert only_folder(tmp_path)


@pytest.mark.parametrize(
    "value", [np.str_("Ann"), np.int8(-3), np.uint64(2**64 - 1), np.float32(0.1), np.float64(0.1), np.bool_(True)]
)
def test_numbers_and_texts_of_numpy_come_back_as_they_were(value: Any, tmp_path: Path) -> None:
    given = Demonstration([], row=0, entry={"held": [value]})
    write_rows(tmp_path / "rows.arrow", [given])
    (held,) = StoredRows(tmp_path / "rows.arrow")[0].entry["held"]  # type: ignore[index]
    assert (type(held), held) == (type(value), value)


@pytest.mark.parametrize("value", [{1}, b"x", 1j, date(2026, 7, 26), np.datetime64("2026-07-26"), Decimal("0.1")])
def test_values_that_no_file_gives_back_are_refused_by_their_kind(value: Any, tmp_path: Path) -> None:
    with pytest.raises(NotStorableError, match=f"a value of the kind {type(value).__name__}$"):
        write_rows(tmp_path / "rows.arrow", [Demonstration([], row=0, entry={"held": value})])


def test_a_row_of_several_examples_is_kept_as_these(tmp_path: Path) -> None:
    """One for each turn, as the template cuts earlier thoughts."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CUTTING
    source = jsonl(tmp_path, [*turns(8)], heldout_share=0.4)
    kept = config(source, contamination="drop")
    stored = once(kept, tmp_path / "kept", tokenizer=tokenizer)
    assert len(stored.train) > stored.counts["train"] > 0
    assert len(stored.heldout) > len(stored.heldout_rows) > 0
    assert_same(stored, prepare(kept, tokenizer, 1024))


# Who builds


def test_several_processes_write_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_files, "SHARE_ROWS", 3)
    given = config(jsonl(tmp_path, rows(23)), noise=RandomToken(0.2))
    one, three = (once(replace(given, workers=workers), tmp_path / str(workers)) for workers in (1, 3))
    assert_same(three, one)
    assert [one.train[index] for index in (-1, 0)] == [*list(one.train)[-1:], *list(one.train)[:1]]


def test_the_first_row_that_is_refused_is_named_whichever_process_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_files, "SHARE_ROWS", 3)
    given = rows(20)
    for bad in (7, 15):
        given[bad]["tools"] = [{"type": "function", "function": {"name": "f"}}]  # the template has no place for them
    source = jsonl(tmp_path, given, heldout_share=0.0)
    messages = []
    for keep in (True, False):
        with pytest.raises(QTargetError) as raised:
            once(config(source, keep=keep, workers=3), tmp_path / "kept")
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith("row 8: the chat template has no place for tools")
    assert not list((tmp_path / "kept").rglob("*.arrow"))


def test_of_several_processes_one_builds_and_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, log = config(jsonl(tmp_path, rows(12))), tmp_path / "log"
    build = prepared_files._build

    def slow(*arguments: Any) -> None:
        write_line("built")
        until(lambda: log.read_text().count("waiting for it") == 2)
        build(*arguments)

    def write_line(text: str) -> None:
        with log.open("a") as file:
            file.write(f"{text}\n")

    monkeypatch.setattr(prepared_files, "_build", slow)
    tasks = [lambda: len(prepare_once(given, TOKENIZER, 1024, tmp_path / "kept", write_line).train)] * 3
    assert set(in_forks(tasks)) == {len(prepare(given, TOKENIZER, 1024).train)}
    assert log.read_text().count("built") == 1


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_build_that_is_killed_leaves_nothing_half_and_the_next_one_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed where the examples are written and the rows are not; the process that wrote them goes with it."""
    given, holder, there = config(jsonl(tmp_path, rows(12))), tmp_path / "kept", tmp_path / "there"

    def endless(*_: Any) -> None:
        there.write_text(str(os.getpid()))
        time.sleep(600)

    with monkeypatch.context() as patched:
        patched.setattr(prepared_files, "write_rows", endless)
        process = multiprocessing.get_context("fork").Process(target=once, args=(given, holder))
        process.start()
        until(lambda: there.is_file() and there.read_text() != "")
    process.kill()
    process.join()
    until(lambda: not Path(f"/proc/{there.read_text()}").exists())
    (folder,) = holder.iterdir()
    assert [path.name for path in folder.iterdir() if path.name[0] != "."] == []
    assert (folder / ".building" / "train.arrow").is_file()
    assert_same(once(given, holder), prepare(given, TOKENIZER, 1024))
    assert {path.name for path in folder.iterdir()} == {*prepared_files.FILES, "manifest.json", ".lock", ".reading"}


def test_a_process_that_is_killed_while_it_prepares_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_files, "write_rows", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(QTargetError, match=r"was ended by SIGKILL: was memory short\?"):
        once(config(jsonl(tmp_path, rows(3))), tmp_path / "kept")


# What is refused


def only_folder(holder: Path) -> Path:
    (folder,) = (path for path in holder.iterdir() if (path / "manifest.json").is_file())
    return folder


@pytest.mark.parametrize("name", prepared_files.FILES)
@pytest.mark.parametrize("how", ["missing", "cut", "changed"])
def test_a_damaged_file_is_refused_by_name(name: str, how: str, tmp_path: Path) -> None:
    given, holder = config(jsonl(tmp_path, rows(12))), tmp_path / "kept"
    once(given, holder)
    file = only_folder(holder) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content[:-8] if how == "cut" else content)
    if how == "missing":
        file.unlink()
    said = {"missing": "is missing", "cut": r"has \d+ bytes instead of \d+", "changed": "was changed after it was made"}
    with pytest.raises(QTargetError, match=f"{file.parent} is damaged: {name} {said[how]}; remove the folder"):
        once(given, holder)


def test_a_folder_of_another_recipe_and_an_unreadable_manifest_are_refused(tmp_path: Path) -> None:
    given, holder = config(jsonl(tmp_path, rows(12))), tmp_path / "kept"
    once(given, holder)
    manifest = only_folder(holder) / "manifest.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(facts | {"identity": facts["identity"] | {"limit": "7"}}))
    with pytest.raises(QTargetError, match="is of other limit; remove the folder"):
        once(given, holder)
    manifest.write_text("[")
    with pytest.raises(QTargetError, match=r"has no readable manifest\.json"):
        once(given, holder)


def test_a_cache_that_cant_be_written_names_the_two_ways_on(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file where the folder should be")
    with pytest.raises(QTargetError, match=r"QTARGET_CACHE=FOLDER to a place that has room, or data\.keep=false"):
        once(config(jsonl(tmp_path, rows(3))), tmp_path / "kept")


# The key


def key(given: DataConfig, tokenizer: Any = TOKENIZER, limit: int = 1024) -> str:
    return recipe_digest(recipe(given, tokenizer, limit))


def test_an_edit_of_a_file_that_makes_examples_changes_the_key(tmp_path: Path) -> None:
    """One more character in any of them, in a copy of the package."""
    copy = tmp_path / "qtarget"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = code_digest(copy)
    assert before == code_digest(PACKAGE)
    for name in ("data/chat.py", "data/template.py", "data/tokenise.py", "data/limits.py", "data/noise/wording.py"):
        file = copy / name
        file.write_text(file.read_text() + "#")
        code_digest.cache_clear()
        assert code_digest(copy) != before, name
        before = code_digest(copy)
    (copy / "plot" / "figures.py").write_text("")
    code_digest.cache_clear()
    assert code_digest(copy) == before


def test_the_code_of_the_key_is_all_that_preparing_imports() -> None:
    """But for what makes no example: messages of errors, names of files, and the training of prepared rows."""
    others = {
        "__init__.py",
        "cache_layout.py",
        "errors.py",
        "parallel.py",
        "extras.py",
        "files.py",
        "units.py",
        "math/",
    }
    known = {str(file.relative_to(PACKAGE)) for file in code_files(PACKAGE)}
    for file in code_files(PACKAGE):
        for node in ast.walk(ast.parse(file.read_text())):
            name = node.module if isinstance(node, ast.ImportFrom) else None
            if name and name.startswith("qtarget."):
                path = "/".join(name.split(".")[1:])
                assert {f"{path}.py", f"{path}/__init__.py"} & known or path.startswith(
                    tuple(other.removesuffix(".py") for other in others)
                ), f"{file} imports {name}"


NO_EXAMPLE = {"latex2sympy2_extended", "lightning", "torch"}
"""Of the libraries that the code of the key imports: verdicts, and training."""


def test_the_versions_of_the_key_are_of_all_libraries_that_preparing_imports(tmp_path: Path) -> None:
    used = set()
    for file in code_files(PACKAGE):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            used |= {name.split(".")[0] for name in names}
    libraries = json.loads(recipe(config(jsonl(tmp_path, rows(3))), TOKENIZER, 1024)["libraries"])
    of_others = used - sys.stdlib_module_names - {"qtarget"} - NO_EXAMPLE
    assert of_others | {"python", "tokenizers"} == {name.replace("-", "_") for name in libraries}
    assert libraries["python"] == ".".join(map(str, sys.version_info[:2]))
    assert libraries["pyarrow"] == pa.__version__


def test_the_key_is_of_what_files_hold_and_not_of_their_folder_or_times(tmp_path: Path) -> None:
    """Of a large file too, in the middle of which a letter is another one."""
    source = jsonl(tmp_path, rows(12, note="a" * 100_000))
    before = key(config(source))
    os.utime(source.path, (1, 1))
    (tmp_path / "other").mkdir()
    moved = str(shutil.copy(source.path, tmp_path / "other"))
    assert key(config(Jsonl(moved))) == before
    stat, content = os.stat(source.path), bytearray(Path(source.path).read_bytes())
    content[100_000 + 77_777] ^= 1
    Path(source.path).write_bytes(content)
    os.utime(source.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert key(config(source)) != before


def test_the_key_is_of_all_that_changes_examples_and_of_nothing_else(tmp_path: Path) -> None:
    source = jsonl(tmp_path, rows(12))
    plain = config(source)
    dated = tiny_tokenizer()
    dated.chat_template = CUTTING
    more = tiny_tokenizer()
    more.add_tokens(["plus"])
    keys = [
        key(plain),
        key(replace(plain, noise=Typo(0.1))),
        key(replace(plain, noise=Typo(0.1, seed=1))),
        key(replace(plain, packing=100)),
        key(replace(plain, truncation="cut")),
        key(replace(plain, supervise="last")),
        key(replace(plain, rows=3)),
        key(replace(plain, source=replace(source, heldout_share=0.5))),
        key(replace(plain, heldout_source=source)),
        key(plain, dated),
        key(plain, more),
        key(plain, limit=512),
    ]
    assert len(set(keys)) == len(keys)
    same = [
        key(replace(plain, workers=3)),
        key(replace(plain, keep="auto")),
        key(replace(plain, max_length=1024)),
        key(plain, tiny_tokenizer()),
    ]
    assert set(same) == {keys[0]}


# What is kept


def test_little_data_is_prepared_for_every_run_and_leaves_no_file(tmp_path: Path) -> None:
    source = jsonl(tmp_path, rows(12))
    for keep in ("auto", False):
        once(config(source, keep=keep), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    once(config(jsonl(tmp_path, rows(12, note="a" * 100_000)), keep="auto"), tmp_path / "kept")
    assert only_folder(tmp_path / "kept")


@dataclass(frozen=True)
class OfMine:
    """A source of the user's, which may read whatever it likes."""

    def rows(self, split: str, count: int | None) -> list[Demonstration]:
        talk = [{"role": "user", "content": f"{split}?"}, {"role": "assistant", "content": "yes"}]
        return [Demonstration(talk, row=0)][:count]


def test_rows_of_a_class_of_the_users_are_prepared_for_every_run(tmp_path: Path) -> None:
    given = config(OfMine(), rows=5000, keep="auto")
    assert len(once(given, tmp_path / "kept").train) == 1
    assert not (tmp_path / "kept").exists()
    with pytest.raises(QTargetError, match=r"data\.keep=true.*OfMine is not: leave data\.keep at auto"):
        once(replace(given, keep=True), tmp_path / "kept")


def test_the_files_are_arrow_as_datasets_reads_it(tmp_path: Path) -> None:
    """datasets 5.2."""
    prepared = once(config(jsonl(tmp_path, rows(12))), tmp_path / "kept")
    table = datasets.Dataset.from_file(str(only_folder(tmp_path / "kept") / "train.arrow"))
    assert table["input_ids"][:] == [example.input_ids for example in prepared.train]


def test_an_example_is_made_when_it_is_looked_at(tmp_path: Path) -> None:
    """And lengths and counts of labels without one: no row is read where a run begins."""
    prepared = once(config(jsonl(tmp_path, rows(12))), tmp_path / "kept")
    assert lengths(prepared.train) == [len(example) for example in prepared.train]
    assert label_counts(prepared.train) == [example.labels for example in prepared.train]
    assert prepared.train[0] is not prepared.train[0]
    copied = pickle.loads(pickle.dumps((prepared.train, prepared.heldout_rows)))
    assert list(copied[0]) == list(prepared.train)
    assert list(copied[1]) == list(prepared.heldout_rows)
