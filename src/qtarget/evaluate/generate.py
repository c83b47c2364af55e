"""Batched greedy generation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from qtarget.model.policy import Policy
from qtarget.model.sharding import is_sharded

Indices = Sequence[int]


@torch.no_grad()
def greedy(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    *,
    ends: Sequence[int],
    pad: int,
    new_tokens: int,
    batch: int,
    watch: Callable[[list[Indices]], Iterable[Indices]] = iter,
) -> list[list[int]]:
    """The continuation of each prompt (token ids) that takes the likeliest token at each step, up to one of `ends`.

    Prompts are padded on the left and go through in order of length, so that little is padded; the answers come back
    in the order of the prompts. policy: in eval mode; its checkpoint's own generation settings (repetition penalties
    and the like) are left aside. watch: wraps the batches, to show how far they are.
    """
    settings = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=list(ends), pad_token_id=pad, bos_token_id=None
    )
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: list[list[int]] = [[] for _ in prompts]
    batches: list[Indices] = [by_length[start : start + batch] for start in range(0, len(by_length), batch)]
    for indices in watch(batches):
        input_ids, mask = _left_padded([prompts[index] for index in indices], pad, policy.lm.device)
        with _generation_settings(policy.lm, settings):
            written = policy.generate(
                input_ids=input_ids, attention_mask=mask, generation_config=settings, synced_gpus=is_sharded(policy)
            )
        for index, row in zip(indices, written[:, input_ids.shape[1] :].tolist(), strict=True):
            answers[index] = list(takewhile(lambda token: token not in ends, row))
    return answers


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
