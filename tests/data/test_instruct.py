"""The instruction suite: its demonstrations pass their own checks, and nothing near them does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from qtarget.config.composing import compose_config, instantiate
from qtarget.data.edit import words
from qtarget.data.example import Demonstration
from qtarget.data.module import prepare
from qtarget.data.sources import splits
from qtarget.data.sources.instruct import FAMILIES, Instruct, _in_form, forms, lexicon, tasks
from qtarget.data.verify import Verdict, judge
from qtarget.errors import QTargetError
from qtarget.model.builtin import tiny_tokenizer

MAKERS = (*tasks.ECHOES, *tasks.ORDER, *tasks.COUNTING, *tasks.TRANSFORMATION)
ROWS = Instruct(system="").rows("train", 600)


def verdict(completion: str, row: Demonstration) -> Verdict:
    assert row.entry is not None
    return judge(completion, row.entry)


def family(row: Demonstration) -> str:
    assert row.entry is not None
    return str(row.entry["family"])


def test_demonstrations_pass_their_own_checks() -> None:
    assert all(verdict(row.completion, row).correct for row in ROWS)
    assert Counter(map(family, ROWS)).keys() == FAMILIES.keys()
    assert max(len(row.completion) for row in ROWS) < 120


def test_answers_to_other_questions_fail() -> None:
    """Another row's answer passes only where it says the same, as two counts of 3 do."""
    for row, other in zip(ROWS, (*ROWS[1:], ROWS[0]), strict=True):
        if set(words(row.completion)) != set(words(other.completion)):
            assert not verdict(other.completion, row).correct, (row, other)


def spoilt(pieces: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Wrong answers beside the right one: off by one, in another order, with an item missing, added or changed."""
    if len(pieces) == 1:
        one = pieces[0]
        near = [str(int(one) + 1), str(int(one) + 10)] if one.isdigit() else [one + "s", "x" + one, one[:-1] + "q"]
        return [(text,) for text in (*near, f"{one} {one}")]
    swapped = [(*pieces[1:], pieces[0])] if len(set(pieces)) > 1 else []
    return [*swapped, pieces[:-1], pieces[1:], (*pieces, pieces[0]), (*pieces[:-1], "oops")]


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_near_misses_fail_in_every_form(maker: tasks.Maker) -> None:
    for seed in range(20):
        task = maker(Random(seed))
        for form in (forms.PLAIN[task.kind], *forms.FORMS[task.kind]):
            problem = _in_form("any", task, form, Random(seed))
            entry = {"verifier": "instruct", "checks": problem.checks}
            assert judge(problem.answer, entry).correct
            for wrong in spoilt(task.pieces):
                answer = form(Random(seed), wrong).answer
                assert not judge(answer, entry).correct, (problem, answer)


@pytest.mark.parametrize("kind", forms.FORMS)
def test_the_right_answer_in_another_form_fails_with_some_marks(kind: str) -> None:
    """What a model gets that knows the answer and doesn't heed the form, or adds a remark."""
    task = next(task for task in (maker(Random(3)) for maker in MAKERS) if task.kind == kind)
    plain = forms.PLAIN[kind](Random(0), task.pieces).answer
    for form in forms.FORMS[kind]:
        problem = _in_form("any", task, form, Random(0))
        entry = {"verifier": "instruct", "checks": problem.checks}
        for answer in (plain, f"Of course! {problem.answer} Is there anything else?"):
            found = judge(answer, entry)
            assert (found.correct, 0 < found.score < 1) == (False, True), (problem, answer)


def test_what_is_asked_is_what_is_answered() -> None:
    """Answers computed anew from the text of the question."""

    def asked(maker: tasks.Maker, seed: int) -> tuple[str, list[str]]:
        task = maker(Random(seed))
        return task.request, list(task.pieces)

    for seed in range(30):
        request, pieces = asked(tasks.sort_words, seed)
        listed = request.split(": ")[1].split(".")[0].split(", ")
        assert pieces == sorted(listed)
        request, pieces = asked(tasks.sort_down, seed)
        assert list(map(int, pieces)) == sorted(map(int, request.split(": ")[1].rstrip(".").split(", ")))[::-1]
        request, pieces = asked(tasks.count_letter, seed)
        letter, word = request.split('"')[1::2]
        assert pieces == [str(len(word.split(letter)) - 1)]
        request, pieces = asked(tasks.replace_word, seed)
        quoted = request.split('"')[1::2]
        sentence = max(quoted, key=len)
        old, new = (text for text in quoted if text != sentence)
        assert pieces == [f" {sentence} ".replace(f" {old} ", f" {new} ").strip()]


def test_the_words_of_the_suite_stand_in_one_list_each() -> None:
    listed = [*lexicon.NOUNS, *lexicon.ADJECTIVES, *lexicon.VERBS]
    assert len(set(listed)) == len(listed)
    assert all(word.isascii() and word.islower() and word.isalpha() for word in listed)


def test_critical_characters_are_the_answer_proper() -> None:
    for row in ROWS:
        assert row.spans["critical"]
        for start, stop in row.spans["critical"]:
            assert 0 <= start < stop <= len(row.completion)
    row = next(row for row in ROWS if row.completion.startswith("- "))
    assert ["- " + row.completion[start:stop] for start, stop in row.spans["critical"]] == row.completion.split("\n")
    row = next(row for row in ROWS if row.completion.startswith("<answer>"))
    ((start, stop),) = row.spans["critical"]
    assert (row.completion[:start], row.completion[stop:]) == ("<answer>", "</answer>")


def questions(rows: list[Demonstration]) -> list[str]:
    return [row.prompt[-1]["content"] for row in rows]


def test_splits_share_no_question_and_seeds_differ() -> None:
    source = Instruct()
    found = [questions(source.rows(split, 100)) for split in ("train", "reserve", "heldout")]
    assert len({question for split in found for question in split}) == 300
    assert questions(source.rows("heldout", 30)) == found[2][:30]
    assert questions(Instruct(seed=1).rows("heldout", 30)) != found[2][:30]
    assert len(source.rows("train", 1)[0].prompt) == 1
    assert Instruct(system="Be brief.").rows("train", 1)[0].prompt[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("families", "found"),
    [
        ("order", {"order"}),
        (["order", "counting"], {"order", "counting"}),
        ({"order": 1, "counting": 0, "combined": 2.5}, {"order", "combined"}),
        (None, set(FAMILIES)),
    ],
)
def test_families_are_chosen(families: Any, found: set[str]) -> None:
    assert {family(row) for row in Instruct(families).rows("train", 80)} == found


@pytest.mark.parametrize(
    ("families", "message"),
    [
        (["odrer"], "an instruct family must be one of format, order, counting, transformation, combined, got 'odrer'"),
        ({"order": -1}, r"the weight of the instruct family order must lie in \[0, ∞\), got -1"),
        ({"order": "much"}, "got 'much'"),
        ({"order": 0}, "some family a weight above 0"),
        ([], "some family a weight above 0"),
    ],
)
def test_families_that_are_none_are_refused(families: Any, message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        Instruct(families)


def test_too_few_problems_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "draws", lambda count: 5)
    with pytest.raises(
        QTargetError, match=r"the families order yields only \d different problems for the split 'heldout', 30"
    ):
        Instruct("order").rows("heldout", 30)
    with pytest.raises(QTargetError, match=r"set data\.rows and data\.heldout_rows"):
        Instruct().rows("train", None)


def test_the_configuration_makes_tokens_with_critical_ones(workdir: Path) -> None:
    overrides = ["data=instruct", "data.rows=30", "data.heldout_rows=10", "data.source.families={order:1,combined:3}"]
    config = instantiate(compose_config("train", overrides).data)
    assert config.source.families == {"order": 1, "combined": 3}
    prepared = prepare(config, tiny_tokenizer(), 1024)
    assert len(prepared.train) == 30
    assert all(any(example.columns["critical"]) for example in prepared.train)
    assert {family(row) for row in prepared.heldout_rows} <= {"order", "combined"}
