"""(g) Tokens a second of sampled answers whose lengths differ: refilled batches beside whole ones."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import timing
import torch
from steps import autocast, device
from table import Row, Section
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from qtarget.config.run_config import RunConfig
from qtarget.data.chat import ChatFormat
from qtarget.evaluate import generate, refill
from qtarget.evaluate.logits import processors
from qtarget.evaluate.requests import GeneratedAnswer
from qtarget.evaluate.sampling import Sampling
from qtarget.model.policy import Policy
from qtarget.run import build
from qtarget.run.plan import make_plan

SHORTEST, LONGEST = 20, 300
SAMPLES, BATCH = 8, 64
WAYS = {"whole batches": False, "refilled batches": True}


def length_of(seed: int) -> int:
    """Tokens of the answer with these draws: any from SHORTEST to LONGEST, the same in every way of writing it."""
    return SHORTEST + seed % (LONGEST - SHORTEST + 1)


class EndsAt(LogitsProcessor):
    """Each row writes its `length_of` tokens and then the end: lengths are the task's, not an untrained model's."""

    written: dict[int, int]

    def __init__(self, generators: Sequence[torch.Generator], end: int, written: dict[int, int]) -> None:
        self.generators, self.end, self.written = generators, end, written

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row, generator in zip(scores, self.generators, strict=True):
            seed = generator.initial_seed()
            self.written[seed] = self.written.get(seed, 0) + 1
            row[self.end] = torch.inf if self.written[seed] > length_of(seed) else -torch.inf
        return scores


def ending(end: int, written: dict[int, int], *given: Any) -> LogitsProcessorList:
    chain = processors(*given)
    chain.append(EndsAt(given[-1], end, written))
    return chain


@contextmanager
def forced_lengths(end: int) -> Iterator[None]:
    own = generate.processors
    generate.processors = refill.processors = partial(ending, end, {})
    try:
        yield
    finally:
        generate.processors = refill.processors = own


@dataclass(frozen=True)
class Problems:
    """Prompts, and the model that answers them."""

    policy: Policy
    prompts: list[list[int]]
    end: int

    def answered(self, refilled: bool, kept: Callable[[Any], None]) -> None:
        with autocast(), forced_lengths(self.end):
            answers: list[list[GeneratedAnswer]] = generate.generate(
                self.policy,
                self.prompts,
                ends=[self.end],
                pad=self.end,
                new_tokens=LONGEST + 1,
                batch=BATCH,
                sampling=Sampling(SAMPLES, 1.0),
                refilled=refilled,
            )
        kept([[one.ids for one in samples] for samples in answers])


def problems(overrides: Sequence[str], count: int) -> Problems:
    plan = make_plan(RunConfig.compose(["data=gsm_symbolic", "data.rows=8", f"data.heldout_rows={count}", *overrides]))
    chat = ChatFormat(plan.tokenizer)
    prompts = [chat.prompt_ids(row.prompt, row.tools) for row in plan.prepared.heldout_rows]
    policy, _ = build.load_models(plan)
    return Problems(policy.to(device()).eval(), prompts, min(chat.ends))


def measure(overrides: Sequence[str], count: int, rounds: int) -> list[Row]:
    """Tokens a second of each way; the tokens are counted, and are as many in both."""
    given = problems(overrides, count)
    written: dict[str, Any] = {}
    ways = {
        name: partial(given.answered, refilled, partial(written.__setitem__, name)) for name, refilled in WAYS.items()
    }
    taken = timing.in_turn(ways, rounds, title="(g) answers", warm=0)
    return [row(name, taken, written) for name in WAYS]


def row(name: str, taken: timing.Times, written: dict[str, Any]) -> Row:
    answers, base = written[name], written["whole batches"]
    lengths = [len(ids) for samples in answers for ids in samples]
    same = [mine == theirs for a, b in zip(answers, base, strict=True) for mine, theirs in zip(a, b, strict=True)]
    other = name != "whole batches"
    return {
        "way": name,
        "answers": len(lengths),
        "tokens": sum(lengths),
        "tokens/s": sum(lengths) / statistics.median(taken[name]),
        "times as fast": timing.ratio(taken, "whole batches", name) if other else None,
        "answers that differ": sum(not one for one in same) if other else None,
        "aim": "≥ 1.5" if other else None,
    }


def section(quick: bool) -> Section:
    count, rounds = (12, 1) if quick else (64, 2)
    return Section("g", "Answers of unequal length", [(caption(count, rounds), measure((), count, rounds))])


def caption(count: int, rounds: int) -> str:
    return (
        f"{SAMPLES} answers to each of {count} prompts of `data=gsm_symbolic`, temperature 1, by SmolLM2-135M in "
        f"bf16-mixed on {device().type}, {BATCH} at a time. Each answer ends behind a number of tokens that its seed "
        f"draws evenly from {SHORTEST} to {LONGEST}. Whole batches go through transformers' `generate`, until their "
        "longest answer has ended (as every evaluation did up to commit 08cbad9). In refilled ones an answer that has "
        "ended makes room for the next, and the samples of a prompt share its prefill. Both took turns; times as fast: "
        f"median of {rounds} rounds. Answers differ where bf16 rounds otherwise in a batch of another shape."
    )
