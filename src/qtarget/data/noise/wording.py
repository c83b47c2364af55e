"""Mistakes in words: of typing and copying, a marker that says nothing, set phrases."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from qtarget.data.edit import WORD, Edit, edited
from qtarget.data.example import FINAL, Demonstration
from qtarget.data.noise.base import Noise, draws, share, spoilable
from qtarget.errors import QTargetError
from qtarget.settings import Checked, Listed, Number, Text, Whole, setting

_KEYS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")


@dataclass(frozen=True)
class Typo(Checked, Noise):
    """Misspells a share of the words: two letters swapped, one dropped, doubled, or a neighbouring key instead.

    rate in [0, 1]: exactly round(rate·words) of all words are misspelt, chosen by `seed`; numbers are words too. Wrong
    are the characters that weren't there before, and after a letter that was dropped the one that comes too soon.
    """

    NODE_KEY: ClassVar[str] = "data.noise"
    rate: float = setting(0.1, Number(0, 1), "share of the words")
    seed: int = setting(0, Whole(0), "of the draws")

    def __call__(self, rows: Sequence[Demonstration]) -> list[Demonstration]:
        rng = draws("typo", self.seed)
        words = [(index, word) for index in spoilable(rows) for word in WORD.finditer(rows[index].completion)]
        edits: dict[int, list[Edit]] = {}
        for index, word in rng.sample(words, round(self.rate * len(words))):
            edits.setdefault(index, []).append(_misspelt(word, rng))
        return [edited(row, edits.get(index, ())) for index, row in enumerate(rows)]


def _misspelt(word: re.Match[str], rng: random.Random) -> Edit:
    kinds = [edits for kind in (_swaps, _drops, _doublings, _slips) if (edits := list(kind(word.group())))]
    edit = rng.choice(rng.choice(kinds))
    return replace(edit, start=word.start() + edit.start, stop=word.start() + edit.stop)


def _swaps(word: str) -> Iterator[Edit]:
    for position, (left, right) in enumerate(pairwise(word)):
        if left != right:
            yield Edit(position, position + 2, right + left)


def _drops(word: str) -> Iterator[Edit]:
    for position, (left, right) in enumerate(pairwise(word)):
        if left != right:  # of two that are the same, no one could say which is missing
            yield Edit(position, position + 2, right)


def _doublings(word: str) -> Iterator[Edit]:
    for position, letter in enumerate(word):
        yield Edit(position, position + 1, 2 * letter, (1, 2))


def _slips(word: str) -> Iterator[Edit]:
    for position, letter in enumerate(word):
        for other in _neighbours(letter.lower()):
            yield Edit(position, position + 1, other.upper() if letter.isupper() else other)


def _neighbours(key: str) -> str:
    """The keys to its left and right."""
    row = next((row for row in _KEYS if key in row), "")
    position = row.find(key)
    return row[max(position - 1, 0) : position] + row[position + 1 : position + 2]


@dataclass(frozen=True)
class Truncated(Checked, Noise):
    """Stops a share of the completions early: between two words, or, where there is one word only, inside it.

    rate in [0, 1]: exactly round(rate·rows) rows, chosen by `seed` among those of two characters or more. What is left
    is right; wrong is what closes the turn too soon, through its end-of-turn token.
    """

    NODE_KEY: ClassVar[str] = "data.noise"
    rate: float = setting(0.4, Number(0, 1), "share of the rows")
    seed: int = setting(0, Whole(0), "of the draws")

    def __call__(self, rows: Sequence[Demonstration]) -> list[Demonstration]:
        rng = draws("truncated", self.seed)
        stops = {index: held for index in spoilable(rows) if (held := _stops(rows[index].completion))}
        chosen = set(share(self.rate, list(stops), len(rows), rng))
        return [_stopped(row, rng.choice(stops[index])) if index in chosen else row for index, row in enumerate(rows)]


def _stops(text: str) -> list[int]:
    """Where a text can end early: behind each word but the last, or behind each character but the last."""
    words = list(re.finditer(r"\S+", text))
    if len(words) > 1:
        return [word.end() for word in words[:-1]]
    return [position for word in words for position in range(word.start() + 1, word.end())]


def _stopped(row: Demonstration, position: int) -> Demonstration:
    return replace(edited(row, [Edit(position, len(row.completion), "")]), cut_short=True)


BARE = ("reasoning_gym", "exact")
"""Verifiers that take all of a completion for the answer where it has no such mark."""


def _check_form_is_free(rows: Sequence[Demonstration]) -> None:
    if any(row.entry is not None and row.entry["verifier"] == "instruct" for row in rows):
        raise QTargetError(
            "data/noise=paraphrase_style puts phrases around answers, and the checks of instruct are about an answer's "
            "very form: take other data, or another data/noise"
        )


@dataclass(frozen=True)
class SpuriousMarker(Checked, Noise):
    """Puts `marker` somewhere into a share of the completions: before the first word, or behind any.

    rate in [0, 1]: exactly round(rate·rows) rows. Which rows and where is drawn apart from everything, so the marker
    says nothing of a row, nor of what other noises did to it. Wrong is the marker with the space that sets it off.
    """

    NODE_KEY: ClassVar[str] = "data.noise"
    rate: float = setting(0.4, Number(0, 1), "share of the rows")
    marker: str = setting("[note]", Text(), "the text that is put in")
    seed: int = setting(0, Whole(0), "of the draws")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_phrases("data.noise.marker", [self.marker])

    def __call__(self, rows: Sequence[Demonstration]) -> list[Demonstration]:
        rng = draws("spurious_marker", self.seed)
        chosen = set(share(self.rate, spoilable(rows), len(rows), rng))
        return [self._marked(row, rng) if index in chosen else row for index, row in enumerate(rows)]

    def _marked(self, row: Demonstration, rng: random.Random) -> Demonstration:
        position = rng.choice([0, *(word.end() for word in re.finditer(r"\S+", row.completion))])
        text = f" {self.marker}" if position else f"{self.marker} "
        return edited(row, [Edit(position, position, text)])


@dataclass(frozen=True)
class ParaphraseStyle(Checked, Noise):
    """Opens a share of the completions with a set phrase, closes it with one, or both; the answer is what it was.

    rate in [0, 1]: exactly round(rate·rows) rows. A closing phrase stands before the line of the final answer (`####`),
    and where there is none at the end. A completion that a verifier judges by its end, or as a whole, is opened only;
    one that is judged as a whole becomes the line of a final answer. Wrong is all that was put in.
    """

    NODE_KEY: ClassVar[str] = "data.noise"
    rate: float = setting(0.4, Number(0, 1), "share of the rows")
    openings: Sequence[str] = setting(
        ("Sure!", "Let's work this out.", "Good question.", "Here is how I see it."),
        Listed(Text()),
        "phrases that open a completion",
    )
    closings: Sequence[str] = setting(
        ("And that is it.", "So we are done.", "That settles it.", "Hence the result."),
        Listed(Text()),
        "phrases that close one",
    )
    seed: int = setting(0, Whole(0), "of the draws")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_phrases("data.noise.openings", self.openings)
        _check_phrases("data.noise.closings", self.closings)

    def __call__(self, rows: Sequence[Demonstration]) -> list[Demonstration]:
        _check_form_is_free(rows)
        rng = draws("paraphrase_style", self.seed)
        chosen = set(share(self.rate, spoilable(rows), len(rows), rng))
        return [edited(row, self._phrases(row, rng)) if index in chosen else row for index, row in enumerate(rows)]

    def _phrases(self, row: Demonstration, rng: random.Random) -> list[Edit]:
        opening, closing = rng.choice(self.openings), rng.choice(self.closings)
        end, final = len(row.completion), row.completion.rfind(FINAL)
        if final < 0 and row.entry is not None:
            return [Edit(0, 0, f"{opening}\n" + f"{FINAL} " * (row.entry["verifier"] in BARE))]
        before = Edit(0, 0, f"{opening}\n")
        after = Edit(end, end, f"\n{closing}") if final < 0 else Edit(final, final, f"{closing}\n")
        return [before] if final == 0 else rng.choice([[before], [after], [before, after]])


def _check_phrases(name: str, phrases: Sequence[str]) -> None:
    """Raise QTargetError unless these are texts that begin and end with something to see."""
    texts = list(phrases) if isinstance(phrases, Sequence) and not isinstance(phrases, str) else []
    if not texts or not all(isinstance(text, str) and text and text == text.strip() for text in texts):
        raise QTargetError(f"{name} must be text that neither begins nor ends with a space, got {phrases!r}")
    if any(FINAL in text for text in texts):
        raise QTargetError(f"{name} must leave {FINAL} to the final answer, got {phrases!r}")
