"""Texts that are nearly the same, against the definition over all pairs."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from qtarget.run import near_duplicates as module
from qtarget.run.near_duplicates import BANDS, DEPTH, NEIGHBOURS, SIMILAR, near_duplicates


def similarity(a: str, b: str) -> float:
    """|A ∩ B| / |A ∪ B| over runs of three words; of texts of plain lower-case words."""
    first, second = (set(zip(*(held.split()[start:] for start in range(3)), strict=False)) for held in (a, b))
    return len(first & second) / len(first | second)


def drawn(count: int, length: int = 40) -> list[str]:
    draw = random.Random(1)
    return [" ".join(f"w{draw.randrange(2000)}" for _ in range(length)) for _ in range(count)]


def changed(text: str, words: int, seed: int) -> str:
    draw, held = random.Random(seed), text.split()
    for place in draw.sample(range(len(held)), words):
        held[place] = f"x{draw.randrange(10**6)}"
    return " ".join(held)


def test_pairs_are_those_of_the_definition() -> None:
    """Copies with one to eight words of forty changed lie on both sides of the threshold."""
    texts = drawn(60)
    texts += [changed(text, 1 + index % 8, index) for index, text in enumerate(texts)]
    every = {(i, j): similarity(texts[i], texts[j]) for i, j in combinations(range(len(texts)), 2)}
    wanted = {pair: value for pair, value in every.items() if value >= SIMILAR}
    assert 10 < len(wanted) < 55
    found = {(first, second): value for first, second, value in near_duplicates(texts)}
    assert found == pytest.approx(wanted)


def test_case_spaces_and_punctuation_are_no_difference() -> None:
    text = "Give me, please, the name of the tallest mountain in Norway; thanks."
    ((first, second, value),) = near_duplicates([*drawn(3), text, text.upper().replace(",", " ").replace(";", " -")])
    assert (first, second, value) == (3, 4, 1.0)


def test_what_many_texts_begin_with_makes_none_alike() -> None:
    """A system message of thirty words before questions of eight that have nothing in common."""
    system = " ".join(f"system{index}" for index in range(30))
    questions = drawn(40, length=8)
    assert similarity(f"{system} {questions[0]}", f"{system} {questions[1]}") > SIMILAR / 2
    assert list(near_duplicates([f"{system} {question}" for question in questions])) == []


def test_texts_without_spaces_are_compared_by_character() -> None:
    text = "请告诉我挪威最高的山叫什么名字以及它有多高"
    assert [
        pair[:2] for pair in near_duplicates([text, text.replace("挪威", "瑞典"), "今天天气很好我们去公园散步吧"])
    ] == []
    long = text + "并请说明应该在哪个季节去登山比较安全"
    assert [pair[:2] for pair in near_duplicates([long, long.replace("季节", "月份")])] == [(0, 1)]


def test_short_texts_are_not_compared() -> None:
    assert list(near_duplicates(["what is one plus one", "what is one plus one"])) == []


def test_of_many_copies_each_is_compared_with_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that time is linear: all pairs of 1,000 copies would be 499,500."""
    monkeypatch.setattr(module, "COMMON", 1.0)
    found = list(near_duplicates(drawn(1) * 1000))
    assert len(found) == 1000 * NEIGHBOURS - NEIGHBOURS * (NEIGHBOURS + 1) // 2


def test_two_texts_at_the_threshold_meet_in_a_band() -> None:
    assert 1 - (1 - SIMILAR**DEPTH) ** BANDS > 0.998
