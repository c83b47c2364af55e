"""Mistakes of typing and of copying."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from qtarget.data.edit import Edit, edited
from qtarget.data.example import Demonstration
from qtarget.data.noise.base import Noise, check_common, draws, share, spoilable
from qtarget.data.words import WORD

_KEYS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")


@dataclass(frozen=True)
class Typo(Noise):
    """Misspells a share of the words: two letters swapped, one dropped, doubled, or a neighbouring key instead.

    rate in [0, 1]: exactly round(rate·words) of all words are misspelt, chosen by `seed`; numbers are words too. Wrong
    are the characters that weren't there before, and after a letter that was dropped the one that comes too soon.
    """

    rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_common(self.rate, self.seed)

    def __call__(self, rows: Sequence[Demonstration]) -> list[Demonstration]:
        rng = draws("typo", self.seed)
        words = [(index, word) for index in spoilable(rows) for word in WORD.finditer(rows[index].completion)]
        edits: dict[int, list[Edit]] = {}
        for index, word in rng.sample(words, round(self.rate * len(words))):
            edits.setdefault(index, []).append(_misspelt(word, rng))
        return [edited(row, edits.get(index, ())) for index, row in enumerate(rows)]


def _misspelt(word: re.Match[str], rng: random.Random) -> Edit:
    kinds = [found for kind in (_swaps, _drops, _doublings, _slips) if (found := list(kind(word.group())))]
    edit = rng.choice(rng.choice(kinds))
    return replace(edit, start=word.start() + edit.start, stop=word.start() + edit.stop)


def _swaps(word: str) -> Iterator[Edit]:
    for place, (left, right) in enumerate(pairwise(word)):
        if left != right:
            yield Edit(place, place + 2, right + left)


def _drops(word: str) -> Iterator[Edit]:
    for place, (left, right) in enumerate(pairwise(word)):
        if left != right:  # of two that are the same, no one could say which is missing
            yield Edit(place, place + 2, right)


def _doublings(word: str) -> Iterator[Edit]:
    for place, letter in enumerate(word):
        yield Edit(place, place + 1, 2 * letter, (1, 2))


def _slips(word: str) -> Iterator[Edit]:
    for place, letter in enumerate(word):
        for other in _neighbours(letter.lower()):
            yield Edit(place, place + 1, other.upper() if letter.isupper() else other)


def _neighbours(key: str) -> str:
    """The keys to its left and right."""
    row = next((row for row in _KEYS if key in row), "")
    place = row.find(key)
    return row[max(place - 1, 0) : place] + row[place + 1 : place + 2]


@dataclass(frozen=True)
class Truncated(Noise):
    """Stops a share of the completions early: between two words, or, where there is one word only, inside it.

    rate in [0, 1]: exactly round(rate·rows) rows, chosen by `seed` among those of two characters or more. What is left
    is right; wrong is what closes the turn too soon, through its end-of-turn token.
    """

    rate: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        check_common(self.rate, self.seed)

    def __call__(self, rows: Sequence[Demonstration]) -> list[Demonstration]:
        rng = draws("truncated", self.seed)
        places = {index: found for index in spoilable(rows) if (found := _stops(rows[index].completion))}
        chosen = set(share(self.rate, list(places), len(rows), rng))
        return [_stopped(row, rng.choice(places[index])) if index in chosen else row for index, row in enumerate(rows)]


def _stops(text: str) -> list[int]:
    """Where a text can end early: behind each word but the last, or behind each character but the last."""
    words = list(re.finditer(r"\S+", text))
    if len(words) > 1:
        return [word.end() for word in words[:-1]]
    return [place for word in words for place in range(word.start() + 1, word.end())]


def _stopped(row: Demonstration, place: int) -> Demonstration:
    return replace(edited(row, [Edit(place, len(row.completion), "")]), cut_short=True)
