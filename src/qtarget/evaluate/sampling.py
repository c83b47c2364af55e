"""How an answer's tokens are chosen: the likeliest, or drawn by numbers of the answer's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

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


class GumbelNoise(LogitsProcessor):
    """Makes the likeliest token a drawn one: argmax_v (z_v + G_v) has the distribution softmax(z).

    G_v = −log(−log U_v) with U_v uniform, from a generator for each row. (Of transformers' own sampling all rows share
    one generator, and an answer changes with its neighbours.)
    """

    def __init__(self, generators: Sequence[torch.Generator], vocab_size: int) -> None:
        self.generators = generators
        self.vocab_size = vocab_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        width = min(self.vocab_size, scores.shape[1])
        uniform = scores.new_empty(len(scores), width)
        for row, generator in zip(uniform, self.generators, strict=True):
            row.uniform_(generator=generator)
        noisy = scores.clone()
        noisy[:, :width] -= uniform.log_().neg_().log_()
        return noisy


class TrueVocabulary(LogitsProcessor):
    """Rows from `vocab_size` on pad the output layer and are no tokens."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.vocab_size >= scores.shape[1]:
            return scores
        masked = scores.clone()
        masked[:, self.vocab_size :] = -torch.inf
        return masked


def processors(sampling: Sampling, vocab_size: int, generators: Sequence[torch.Generator]) -> LogitsProcessorList:
    """What makes of scores [n, V] those whose largest entry is the next token. generators: one a row, read in turn."""
    chain = LogitsProcessorList([TrueVocabulary(vocab_size)])
    if sampling.temperature:
        chain.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_p < 1:
            chain.append(TopPLogitsWarper(float(sampling.top_p)))
        chain.append(GumbelNoise(generators, vocab_size))
    return chain
