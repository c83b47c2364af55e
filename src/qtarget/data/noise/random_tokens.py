"""Tokens that nobody would write."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import ClassVar

from qtarget.data.chat import ChatFormat
from qtarget.data.example import Example
from qtarget.data.noise.base import Noise, draws
from qtarget.settings import Checked, Choice, Number, Whole, setting

WAYS = ("replace", "insert")


@dataclass(frozen=True)
class RandomToken(Checked, Noise):
    """Puts random tokens instead of supervised ones, or in front of them.

    rate in [0, 1]: exactly round(rate·tokens) are written, `tokens` being all that are supervised but the ends of
    turns; they stand in groups of `span` (fewer where a reply ends, and in the last one). how: replace or insert. Ids
    are drawn uniformly from the vocabulary without special tokens and without the token that stands there in truth.
    Rows are measured against data.max_length after this, so what was inserted counts.
    """

    NODE_KEY: ClassVar[str] = "data.noise"
    rate: float = setting(0.1, Number(0, 1), "share of the supervised tokens")
    span: int = setting(1, Whole(1), "random tokens in a row")
    how: str = setting("replace", Choice(WAYS), "in the place of tokens, or in front of them")
    seed: int = setting(0, Whole(0), "of the draws")

    def tokens(self, examples: Sequence[Example], chat: ChatFormat) -> list[Example]:
        rng = draws("random_token", self.seed)
        drawn, vocabulary = self._places(examples, chat.ends, rng), chat.plain_tokens
        return [
            self._spoilt(example, drawn[index], vocabulary, rng) if index in drawn else example
            for index, example in enumerate(examples)
        ]

    def _places(self, examples: Sequence[Example], ends: Container[int], rng: random.Random) -> dict[int, Counter[int]]:
        """Row → index → how many random tokens are written there."""
        groups = [(index, group) for index, row in enumerate(examples) for group in self._groups(row, ends, rng)]
        left = round(self.rate * sum(len(group) for _, group in groups))
        drawn: dict[int, Counter[int]] = {}
        for index, group in rng.sample(groups, len(groups)):
            if left > 0:
                taken = group[:left]
                drawn.setdefault(index, Counter()).update(taken if self.how == "replace" else taken[:1] * len(taken))
            left -= len(group)
        return drawn

    def _groups(self, example: Example, ends: Container[int], rng: random.Random) -> Iterator[list[int]]:
        """The tokens of each reply in groups of `span`, the first of a random size, so that all borders are likely."""
        for run in _replies(example, ends):
            for start in range(rng.randrange(self.span) - self.span + 1, len(run), self.span):
                yield run[max(start, 0) : start + self.span]

    def _spoilt(self, example: Example, counts: Counter[int], vocabulary: Sequence[int], rng: random.Random) -> Example:
        order = list(self._order(len(example), counts))
        ids = [_another(example.input_ids[at], vocabulary, rng) if new else example.input_ids[at] for at, new in order]
        put_in = self.how == "insert"
        columns = {
            name: [column[at] and not (new and put_in) for at, new in order] for name, column in example.columns.items()
        }
        columns["wrong"] = [new or example.wrong[at] for at, new in order]
        return replace(
            example,
            input_ids=ids,
            supervised=[example.supervised[at] for at, _ in order],
            columns=columns,
            weights=None if example.weights is None else [example.weights[at] for at, _ in order],
        )

    def _order(self, length: int, counts: Counter[int]) -> Iterator[tuple[int, bool]]:
        """(index in the row as it was, is a random token written there) in the new order."""
        for index in range(length):
            yield from [(index, True)] * counts[index]
            if not counts[index] or self.how == "insert":
                yield index, False


def _replies(example: Example, ends: Container[int]) -> Iterator[list[int]]:
    """Places of consecutive tokens that a model learns to write, without ends of turns."""
    ids = example.input_ids
    said = [index for index in range(1, len(ids)) if example.supervised[index] and ids[index] not in ends]
    for _, run in groupby(enumerate(said), key=lambda numbered: numbered[1] - numbered[0]):
        yield [index for _, index in run]


def _another(token: int, vocabulary: Sequence[int], rng: random.Random) -> int:
    while (drawn := rng.choice(vocabulary)) == token:
        pass
    return drawn
