"""Answers written in a batch that is refilled: a row that has ended leaves, and a waiting one joins.

Time follows the tokens that are written, not the longest answer of each batch, and the samples of a prompt share its
prefill. (transformers 5.23 has continuous batching of its own, `generate_batch`. All its rows draw from one generator,
so that an answer changes with its neighbours, and `model.attention=eager` has no paged form in it.)
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from qtarget.evaluate.logits import processors
from qtarget.evaluate.requests import AnswerTask, GeneratedAnswer, Request, left_padded
from qtarget.evaluate.row_cache import Prefix, RowCache
from qtarget.model.policy import Policy
from qtarget.model.sharding import is_sharded
from qtarget.parallel import all_reduce_max

JOINING = 8
"""Rows join when one slot in so many is free: a prefill each time that a row ends would read few tokens at once."""
MOVABLE = (DynamicLayer, DynamicSlidingWindowLayer)
NEEDED = ("attention_mask", "position_ids", "past_key_values")


def why_not_refilled(policy: Policy) -> str | None:
    """Why rows of this model can't leave and join a batch; None: they can.

    Every layer of the cache that transformers makes for it has to hold keys and values of tokens, and nothing else:
    all of them (`DynamicLayer`) or a window that a mask makes of all (`DynamicSlidingWindowLayer`). Recurrent states,
    indexes and layers that share others' keys have no tokens to move, and chunks begin where a row does.
    """
    lm = policy.base
    name, config = type(lm).__name__, lm.config.get_text_config(decoder=True)
    missing = [key for key in NEEDED if key not in inspect.signature(lm.forward).parameters]
    if missing:
        return f"{name} takes no {' or '.join(missing)}"
    other = {type(layer).__name__ for layer in DynamicCache(config=config).layers if type(layer) not in MOVABLE}
    if other:
        return f"the cache of {name} has layers of kind {', '.join(sorted(other))}"
    unusual = [key for key in ("attention_chunk_size", "cross_attention_layers") if getattr(config, key, None)]
    return f"{name} attends by {unusual[0]}" if unusual else None


@dataclass
class Prefilled:
    """A read prompt: its keys and values, the scores [V] of the token after it, and how many samples haven't begun."""

    prefix: Prefix
    scores: Tensor
    waiting: int


@dataclass
class Row:
    """An answer that is being written."""

    request: Request
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)


class Refill:
    """Writes the answers to these requests of a task."""

    def __init__(self, policy: Policy, task: AnswerTask, requests: Sequence[Request]) -> None:
        self.policy, self.task = policy, task
        self.device: torch.device = policy.lm.device
        self.forward = Forward(policy)
        self.waiting = deque(requests)
        self.slots = max(1, min(task.batch, len(self.waiting)))
        self.rows: list[Row] = []
        self.cache: RowCache | None = None
        self.prefilled: dict[int, Prefilled] = {}

    def answers(self) -> Iterator[tuple[Request, GeneratedAnswer]]:
        """As they end."""
        while self.waiting or self.rows:
            if self._rows_may_join():
                yield from self._join()
            if self.rows:
                yield from self._step()
        self.forward.until_all_are_done(self.task.pad)

    def _rows_may_join(self) -> bool:
        free = self.slots - len(self.rows)
        return bool(self.waiting) and free >= min(max(1, self.slots // JOINING), len(self.waiting))

    def _join(self) -> Iterator[tuple[Request, GeneratedAnswer]]:
        """Waiting requests draw their first token; those that go on are rows from now on."""
        free = self.slots - len(self.rows)
        requests = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        self._prefill(list(dict.fromkeys(prompt for prompt, _ in requests)))
        rows = [Row(request, self.task.generator(request, self.device)) for request in requests]
        scores = torch.stack([self.prefilled[prompt].scores for prompt, _ in requests])
        for row, token in zip(rows, self._drawn(scores, rows), strict=True):
            read = self.prefilled[row.request[0]]
            answer = self._after(row, token)
            if answer:
                yield row.request, answer
            else:
                self._row_cache(read.prefix).join(read.prefix, 1)
                self.rows.append(row)
            read.waiting -= 1
        self.prefilled = {prompt: read for prompt, read in self.prefilled.items() if read.waiting}

    def _prefill(self, prompts: Sequence[int]) -> None:
        new = [prompt for prompt in prompts if prompt not in self.prefilled]
        if not new:
            return
        input_ids, mask = left_padded([self.task.prompts[prompt] for prompt in new], self.task.pad, self.device)
        cache = DynamicCache()  # without the configuration every layer keeps all tokens
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        scores = self.forward(input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
        for row, prompt in enumerate(new):
            start = input_ids.shape[1] - len(self.task.prompts[prompt])
            layers: Any = cache.layers
            prefix = [(layer.keys[row, :, start:], layer.values[row, :, start:]) for layer in layers]
            self.prefilled[prompt] = Prefilled(prefix, scores[row], self.task.sampling.samples)

    def _row_cache(self, prefix: Prefix) -> RowCache:
        self.cache = self.cache or RowCache(len(prefix), self.slots)
        return self.cache

    def _step(self) -> Iterator[tuple[Request, GeneratedAnswer]]:
        """Every row draws its next token; those that end leave."""
        cache = self.cache
        assert cache is not None
        cache.make_room()
        starts = torch.tensor(cache.starts, device=self.device)[:, None]
        columns = torch.arange(cache.start, cache.end + 1, device=self.device)
        scores = self.forward(
            input_ids=torch.tensor([row.ids[-1:] for row in self.rows], device=self.device),
            attention_mask=(columns >= starts).long(),
            position_ids=cache.end - starts,
            past_key_values=cache,
        )
        cache.advance()
        tokens = self._drawn(scores, self.rows)
        for place in reversed(range(len(tokens))):  # the row that takes the place of one that leaves has had its turn
            row = self.rows[place]
            answer = self._after(row, tokens[place])
            if answer:
                cache.leave(place)
                self.rows[place] = self.rows[-1]
                self.rows.pop()
                yield row.request, answer

    def _drawn(self, scores: Tensor, rows: Sequence[Row]) -> list[int]:
        chain: Any = processors(self.task.sampling, self.policy.vocab_size, [row.generator for row in rows])
        tokens: list[int] = chain(None, scores).argmax(-1).tolist()
        return tokens

    def _after(self, row: Row, token: int) -> GeneratedAnswer | None:
        """The answer, where this token ends it."""
        if token in self.task.ends:
            return GeneratedAnswer(row.ids, ended=True)
        row.ids.append(token)
        return GeneratedAnswer(row.ids, ended=False) if len(row.ids) == self.task.new_tokens else None


class Forward:
    """The policy's forwards. Where its weights are shards, every rank takes part in those of all, with a token of no
    use where it has none to read.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.sharded = is_sharded(policy)

    def __call__(self, **inputs: Any) -> Tensor:
        """Scores [n, V] of the next token, fp32. Collective where the policy is sharded."""
        self._any_rank_reads(True)
        return self.policy.next_scores(**inputs).float()

    def until_all_are_done(self, token: int) -> None:
        while self._any_rank_reads(False):
            self.policy.next_scores(input_ids=torch.tensor([[token]], device=self.policy.lm.device))

    def _any_rank_reads(self, reads: bool) -> bool:
        if not self.sharded:
            return False
        return bool(all_reduce_max(torch.tensor([int(reads)], device=self.policy.lm.device)))
