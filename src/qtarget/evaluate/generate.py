"""Batched generation: the likeliest answer, or several drawn ones, the same however prompts are batched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from qtarget import checks
from qtarget.errors import QTargetError
from qtarget.model.policy import Policy
from qtarget.model.sharding import is_sharded

Request = tuple[int, int]
"""(which prompt, which of its samples)."""


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


@dataclass(frozen=True)
class GeneratedAnswer:
    """An answer's tokens up to its end, and whether it came to one: False where the limit cut it off."""

    ids: list[int]
    ended: bool


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    *,
    ends: Sequence[int],
    pad: int,
    new_tokens: int,
    batch: int,
    sampling: Sampling = GREEDY,
    watch: Callable[[list[Any]], Iterable[Any]] = iter,
) -> list[list[GeneratedAnswer]]:
    """Answers to each prompt (token ids), up to one of `ends`: `sampling.samples` each, in the order of the prompts.

    Prompts are padded on the left and go through in order of length, so that little is padded. An answer depends on
    neither order nor batch, but for what a batch's shape rounds: nothing that matters in fp32, in bf16 now and then a
    token whose rival is as likely. Rows that pad the vocabulary are never written.
    policy: in eval mode; its checkpoint's own generation settings (repetition penalties and the like) are left aside.
    batch: answers written at a time. watch: wraps the batches, to show how far they are.
    """
    settings = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=list(ends), pad_token_id=pad, bos_token_id=None
    )
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    requests: list[Request] = [(prompt, sample) for prompt in by_length for sample in range(sampling.samples)]
    answers: dict[Request, GeneratedAnswer] = {}
    for part in watch([requests[start : start + batch] for start in range(0, len(requests), batch)]):
        batch_prompts = [prompts[prompt] for prompt, _ in part]
        seeds = [seed_of(sampling.seed, prompts[prompt], sample) for prompt, sample in part]
        rows = _continued(policy, batch_prompts, pad, settings, _processors(policy, sampling, seeds))
        answers |= {request: _up_to_end(row, ends) for request, row in zip(part, rows, strict=True)}
    return [[answers[prompt, sample] for sample in range(sampling.samples)] for prompt in range(len(prompts))]


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

    def __init__(self, seeds: Sequence[int], vocab_size: int, device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
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
        masked = scores.clone()
        masked[:, self.vocab_size :] = -torch.inf
        return masked


def _processors(policy: Policy, sampling: Sampling, seeds: Sequence[int]) -> LogitsProcessorList:
    processors = LogitsProcessorList([TrueVocabulary(policy.vocab_size)])
    if sampling.temperature:
        processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(float(sampling.top_p)))
        processors.append(GumbelNoise(seeds, policy.vocab_size, policy.lm.device))
    return processors


def _continued(
    policy: Policy, prompts: Sequence[Sequence[int]], pad: int, settings: GenerationConfig, processors: Any
) -> list[list[int]]:
    """What one batch writes behind its prompts, padded where a row has ended before the others."""
    input_ids, mask = _left_padded(prompts, pad, policy.lm.device)
    with _generation_settings(policy.lm, settings):
        written = policy.generate(
            input_ids=input_ids,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=processors,
            synced_gpus=is_sharded(policy),
        )
    rows: list[list[int]] = written[:, input_ids.shape[1] :].tolist()
    return rows


def _up_to_end(row: Sequence[int], ends: Sequence[int]) -> GeneratedAnswer:
    ids = list(takewhile(lambda token: token not in ends, row))
    return GeneratedAnswer(ids, ended=len(ids) < len(row))


@contextmanager
def _generation_settings(lm: Any, settings: GenerationConfig) -> Iterator[None]:
    """generate() fills what its argument leaves open from the model's own settings: those stand aside meanwhile."""
    own, lm.generation_config = lm.generation_config, settings
    try:
        yield
    finally:
        lm.generation_config = own


def _left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return input_ids.to(device), mask.to(device)
