"""What a noise is, none of it, and several in a row."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import ClassVar, Protocol

from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration, Example
from qtarget.errors import QTargetError
from qtarget.settings import Checked, Part, setting


class Noise(Protocol):
    """What is done to training rows: to their words, their tokens, or both. The truth of it is kept in `wrong`."""

    def __call__(self, rows: Sequence[Demonstration]) -> list[Demonstration]:
        """Rows with other words."""
        return list(rows)

    def tokens(self, examples: Sequence[Example], chat: ChatFormat) -> list[Example]:
        """The same rows behind the chat template, with other tokens."""
        return list(examples)


@dataclass(frozen=True)
class NoNoise(Noise):
    """Leaves the rows as they are."""


@dataclass(frozen=True)
class Several(Checked, Noise):
    """Noises one after the other, in the order of `parts`: words first, by all of them, then tokens.

    What an earlier one made wrong stays wrong under the later ones.
    """

    NODE_KEY: ClassVar[str] = "data.noise"
    parts: Mapping[str, Noise] = setting(
        MISSING, Part("NAME: a noise, +data/noise@data.noise.parts.NAME=OPTION"), "the noises, in order"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.parts, Mapping) or not self.parts or not all(map(callable, self.parts.values())):
            raise QTargetError(
                f"data.noise.parts must hold at least one noise by name, got {self.parts!r}: add "
                "+data/noise@data.noise.parts.NAME=typo to the command line, once for each"
            )

    def __call__(self, rows: Sequence[Demonstration]) -> list[Demonstration]:
        for part in self.parts.values():
            rows = part(rows)
        return list(rows)

    def tokens(self, examples: Sequence[Example], chat: ChatFormat) -> list[Example]:
        for part in self.parts.values():
            examples = part.tokens(examples, chat)
        return list(examples)


def writes_tokens(noise: Noise) -> bool:
    """Whether a noise may change tokens behind the chat template, beside the words before it."""
    if isinstance(noise, Several):
        return any(map(writes_tokens, noise.parts.values()))
    return type(noise).tokens is not Noise.tokens


def draws(kind: str, seed: int) -> random.Random:
    """A noise's own random numbers: kinds of noise draw apart from each other, whatever their seeds."""
    return random.Random(f"{kind} {seed}")


def spoilable(rows: Sequence[Demonstration]) -> list[int]:
    """Places of rows whose last message is taught and is text alone: of a call no character can be marked as wrong."""
    return [
        index
        for index, row in enumerate(rows)
        if not row.messages[-1].get("tool_calls") and row.messages[-1].get("weight", 1.0) > 0
    ]


def share(rate: float, among: Sequence[int], rows: int, rng: random.Random) -> list[int]:
    """round(rate·rows) of the rows `among` which to choose, in random order. Raises QTargetError for too few."""
    wanted = round(rate * rows)
    if wanted > len(among):
        raise QTargetError(
            f"noise is asked for in {wanted} of {rows} rows and only {len(among)} can take it: set data.noise.rate to "
            f"{len(among) / rows:.3g} at most"
        )
    return rng.sample(among, wanted)
