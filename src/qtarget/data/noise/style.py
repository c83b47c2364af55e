"""Words that leave the answer as it is: a marker that says nothing, and set phrases."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from qtarget.data.edit import Edit, edited
from qtarget.data.example import FINAL, Demonstration
from qtarget.data.noise.base import Noise, check_common, draws, share, spoilable
from qtarget.errors import QTargetError

BARE = ("reasoning_gym", "exact")
"""Verifiers that take all of a completion for the answer where it has no such mark."""


def _check_form_is_free(rows: Sequence[Demonstration]) -> None:
    if any(row.entry is not None and row.entry["verifier"] == "instruct" for row in rows):
        raise QTargetError(
            "data/noise=paraphrase_style puts phrases around answers, and the checks of instruct are about an answer's "
            "very form: take other data, or another data/noise"
        )


@dataclass(frozen=True)
class SpuriousMarker(Noise):
    """Puts `marker` somewhere into a share of the completions: before the first word, or behind any.

    rate in [0, 1]: exactly round(rate·rows) rows. Which rows and where is drawn apart from everything, so the marker
    says nothing of a row, nor of what other noises did to it. Wrong is the marker with the space that sets it off.
    """

    rate: float = 0.4
    marker: str = "[note]"
    seed: int = 0

    def __post_init__(self) -> None:
        check_common(self.rate, self.seed)
        _check_phrases("noise marker", [self.marker])

    def __call__(self, rows: Sequence[Demonstration]) -> list[Demonstration]:
        rng = draws("spurious_marker", self.seed)
        chosen = set(share(self.rate, spoilable(rows), len(rows), rng))
        return [self._marked(row, rng) if index in chosen else row for index, row in enumerate(rows)]

    def _marked(self, row: Demonstration, rng: random.Random) -> Demonstration:
        place = rng.choice([0, *(word.end() for word in re.finditer(r"\S+", row.completion))])
        text = f" {self.marker}" if place else f"{self.marker} "
        return edited(row, [Edit(place, place, text)])


@dataclass(frozen=True)
class ParaphraseStyle(Noise):
    """Opens a share of the completions with a set phrase, closes it with one, or both; the answer is what it was.

    rate in [0, 1]: exactly round(rate·rows) rows. A closing phrase stands before the line of the final answer (`####`),
    and where there is none at the end. A completion that a verifier judges by its end, or as a whole, is opened only;
    one that is judged as a whole becomes the line of a final answer. Wrong is all that was put in.
    """

    rate: float = 0.4
    openings: Sequence[str] = ("Sure!", "Let's work this out.", "Good question.", "Here is how I see it.")
    closings: Sequence[str] = ("And that is it.", "So we are done.", "That settles it.", "Hence the result.")
    seed: int = 0

    def __post_init__(self) -> None:
        check_common(self.rate, self.seed)
        _check_phrases("noise openings", self.openings)
        _check_phrases("noise closings", self.closings)

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
