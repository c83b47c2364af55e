"""How an answer's tokens are chosen: the likeliest, or drawn by numbers of the answer's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from qtarget import checks
from qtarget.errors import QTargetError


@dataclass(frozen=True)
class Sampling:
    """How answers are chosen: `samples` of each prompt, drawn from softmax(z/temperature) cut to its top_p.

    temperature 0: the likeliest token at each step. top_p in (0, 1]: the fewest likeliest tokens that hold so much
    probability. seed: with a prompt's tokens and a sample's number it fixes every draw, see `seed_of`.
    """

    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks.whole("eval.samples", self.samples, 1)
        checks.number("eval.temperature", self.temperature, 0)
        checks.number("eval.top_p", self.top_p, 0, 1)
        checks.whole("eval.seed", self.seed, 0)
        if self.top_p == 0:
            raise QTargetError("eval.top_p must lie in (0, 1], got 0: for the likeliest token set eval.temperature=0")
        if self.temperature == 0 and (self.samples > 1 or self.top_p < 1):
            raise QTargetError(
                f"eval.samples={self.samples} eval.top_p={self.top_p} draws answers, and eval.temperature=0 takes the "
                "likeliest one: set eval.temperature=1, or leave samples and top_p at 1"
            )


GREEDY = Sampling()


def seed_of(seed: int, prompt: Sequence[int], sample: int) -> int:
    """Of one answer's draws, from the run's seed, the prompt's tokens and the sample's number: below 2⁶³.

    Runs that are compared draw with the same numbers, so that like policies give like answers.
    """
    text = json.dumps([seed, sample, list(prompt)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
