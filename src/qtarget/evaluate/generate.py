"""Answers to prompts: the likeliest, or several drawn ones, the same however prompts are batched.

Rows leave and join a batch while it is written (`qtarget.evaluate.refill`) where the model's cache allows it;
else transformers' generate writes batch after batch, each until its longest answer has ended. Texts that grow so long
that the model rotates them otherwise (`qtarget.model.rotation`) are written by generate, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, takewhile
from typing import Any

import torch
from transformers import GenerationConfig

from qtarget.evaluate.logits import processors
from qtarget.evaluate.refill import Refill, why_not_refilled
from qtarget.evaluate.requests import Answers, AnswerTask, GeneratedAnswer, Prompts, Request, left_padded
from qtarget.evaluate.sampling import GREEDY, Sampling
from qtarget.model.policy import Policy
from qtarget.model.rotation import LengthRule, forget_length, length_rule
from qtarget.model.sharding import is_sharded
from qtarget.parallel import all_reduce_max

REFILLED = "in refilled batches"


def way_of_writing(policy: Policy) -> str:
    """In words, with the reason where batches aren't refilled."""
    reason, rule = why_not_refilled(policy), length_rule(policy)
    way = REFILLED if reason is None else f"in whole batches, each until its longest answer has ended: {reason}"
    return (
        way if rule is None else f"{way}; of texts that may pass {rule.steady} tokens, prompts of one length at a time"
    )


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: Prompts,
    *,
    ends: Sequence[int],
    pad: int,
    new_tokens: int,
    batch: int,
    sampling: Sampling = GREEDY,
    watch: Callable[[list[Any]], Iterable[Any]] = iter,
    refilled: bool | None = None,
) -> list[list[GeneratedAnswer]]:
    """Answers to each prompt (token ids), up to one of `ends`: `sampling.samples` each, in the order of the prompts.

    Prompts are padded on the left and go through in order of length, so that little is padded. An answer depends on
    neither order nor batch, but for what a batch's shape rounds: nothing that matters in fp32, in bf16 now and then a
    token whose rival is as likely. Rows that pad the vocabulary are never written.
    policy: in eval mode; its checkpoint's own generation settings (repetition penalties and the like) are left aside.
    batch: answers written at a time. watch: wraps the answers to come, to show how far they are. refilled: whether
    rows leave and join a batch that is being written; None: where `why_not_refilled` has no reason against it.
    Collective where the policy is sharded: ranks may have different prompts, or none.
    """
    task = AnswerTask(prompts, tuple(ends), pad, new_tokens, batch, sampling)
    if refilled is None:
        refilled = why_not_refilled(policy) is None
    answers: Answers = {}
    progress = iter(watch(task.requests))
    for request, answer in _written(policy, task, refilled=refilled):
        answers[request] = answer
        next(progress, None)
    next(progress, None)
    return [[answers[prompt, sample] for sample in range(sampling.samples)] for prompt in range(len(prompts))]


def _written(policy: Policy, task: AnswerTask, *, refilled: bool) -> Iterator[tuple[Request, GeneratedAnswer]]:
    rule = length_rule(policy)
    short, long = task.requests, []
    if rule:
        long = [request for request in short if task.most_tokens(request) > rule.steady]
        short = [request for request in short if task.most_tokens(request) <= rule.steady]
    if refilled:
        yield from Refill(policy, task, short).answers()
    else:
        yield from whole_batches(policy, task, _parts(short, task.batch))
    if rule:  # on every rank, whether it has such requests or not
        yield from _changing(policy, task, long, rule)


def _changing(
    policy: Policy, task: AnswerTask, requests: Sequence[Request], rule: LengthRule
) -> Iterator[tuple[Request, GeneratedAnswer]]:
    """Those share a batch whose texts are rotated otherwise from the same step on."""

    def together(request: Request) -> float:
        return rule.together(len(task.prompts[request[0]]))

    groups = [list(group) for _, group in groupby(requests, together)]  # they come by length
    parts = [part for group in groups for part in _parts(group, task.batch)]
    yield from whole_batches(policy, task, parts)


def _parts(requests: Sequence[Request], batch: int) -> list[Sequence[Request]]:
    return [requests[start : start + batch] for start in range(0, len(requests), batch)]


def whole_batches(
    policy: Policy, task: AnswerTask, parts: Sequence[Sequence[Request]]
) -> Iterator[tuple[Request, GeneratedAnswer]]:
    """By transformers' generate: a batch is over when its longest answer is."""
    settings = GenerationConfig(
        max_new_tokens=task.new_tokens,
        do_sample=False,
        eos_token_id=list(task.ends),
        pad_token_id=task.pad,
        bos_token_id=None,
    )
    for part in [*parts, *[()] * (_rounds(policy, len(parts)) - len(parts))]:
        forget_length(policy)
        rows = _continued(policy, task, part, settings)
        for request, row in zip(part, rows, strict=bool(part)):
            yield request, _up_to_end(row, task.ends)


def _rounds(policy: Policy, batches: int) -> int:
    """Batches that every rank takes part in: as many as the one with most has, where the weights are shards."""
    if not is_sharded(policy):
        return batches
    return int(all_reduce_max(torch.tensor([batches], device=policy.lm.device)))


def _continued(
    policy: Policy, task: AnswerTask, part: Sequence[Request], settings: GenerationConfig
) -> list[list[int]]:
    """What one batch writes behind its prompts, padded where a row has ended before the others.

    Where the rank has no batch left, a prompt of one token is answered along with those of other ranks.
    """
    prompts = [task.prompts[prompt] for prompt, _ in part] or [[task.pad]]
    generators = [task.generator(request, policy.lm.device) for request in part] or [torch.Generator(policy.lm.device)]
    input_ids, mask = left_padded(prompts, task.pad, policy.lm.device)
    with _generation_settings(policy.lm, settings):
        written = policy.generate(
            input_ids=input_ids,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=processors(task.sampling, policy.vocab_size, generators),
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
