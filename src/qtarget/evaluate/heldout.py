"""Held-out demonstrations: nll, drift from the prior, and verified answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from qtarget.data.batch import Batch
from qtarget.data.chat import ChatFormat
from qtarget.data.collate import Collate
from qtarget.data.example import Demonstration, Example
from qtarget.data.ranks import leads
from qtarget.design import reliance, residual, weight
from qtarget.evaluate.generate import greedy
from qtarget.evaluate.scores import accuracy
from qtarget.evaluate.verify import judge
from qtarget.math.loss import linear_loss
from qtarget.math.target import Mixture
from qtarget.model.frozen import Frozen
from qtarget.model.policy import Policy

PLAIN_SFT = Mixture(reliance.Constant(1.0), residual.Self(), weight.Constant(1.0))
SPARE_TOKENS = 8


@torch.no_grad()
def token_metrics(policy: Policy, prior: Frozen | None, batches: Iterable[Batch]) -> dict[str, float]:
    """ "nll" = mean −log p(y) and "kl_prior" = mean KL(p‖π_0), nats per supervised token.

    Measured the same way for every design. The KL runs from the policy to the prior: what the policy now says, judged
    by the model it started from.
    """
    totals = {"nll": 0.0, "kl_prior": 0.0} if prior else {"nll": 0.0}
    tokens = 0
    for batch in (batch.to(policy.lm.device) for batch in batches):
        references = {"prior": prior.exact(batch)} if prior else {}
        hidden = policy(batch.input_ids, batch.position_ids)
        out = linear_loss(hidden, policy.head, batch.labels, PLAIN_SFT, references=references)
        for name in totals:
            totals[name] += float(getattr(out, name).sum())
        tokens += len(out.nll)
    return {name: total / tokens for name, total in totals.items()} if tokens else {}


@dataclass(frozen=True)
class Sample:
    """One held-out problem, the answer given, and the verdict."""

    row: int
    question: str
    expected: str
    answer: str
    correct: bool


def answer_problems(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Demonstration],
    *,
    new_tokens: int,
    batch: int,
    watch: Callable[[list[Any]], Iterable[Any]] = iter,
) -> list[Sample]:
    """Greedy answers to verifiable problems, each judged by its own scorer."""
    chat = ChatFormat(tokenizer)
    ends = sorted({chat.end_of_turn, int(tokenizer.eos_token_id or chat.end_of_turn)})
    prompts = [chat.prompt_ids(row.prompt) for row in rows]
    pad = int(tokenizer.pad_token_id)
    written = greedy(policy, prompts, ends=ends, pad=pad, new_tokens=new_tokens, batch=batch, watch=watch)
    return [
        _judge(row, str(tokenizer.decode(ids, skip_special_tokens=True)))
        for row, ids in zip(rows, written, strict=True)
    ]


def _judge(row: Demonstration, answer: str) -> Sample:
    assert row.entry is not None
    question = row.prompt[-1]["content"]
    return Sample(row.row, question, row.completion, answer.strip(), judge(answer, row.entry).correct)


def accuracy_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """ "accuracy" with the ends of its 95 % interval."""
    if not samples:
        return {}
    score = accuracy([sample.correct for sample in samples])
    return {"accuracy": score.mean, "accuracy_low": score.low, "accuracy_high": score.high}


@dataclass(frozen=True)
class Evaluator:
    """Everything measured on held-out data, by one piece of code during and after training.

    rows and examples are the same held-out demonstrations, as text and as tokens. autocast: the precision of training,
    so that the policy is judged as it was trained. new_tokens: longest answer, in tokens; None: a few more than the
    longest held-out demonstration has.
    """

    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[Demonstration]
    examples: Sequence[Example]
    prior: Frozen | None
    autocast: Callable[[], AbstractContextManager[Any]]
    new_tokens: int | None = None
    batch_size: int = 64

    def __call__(self, policy: Policy, limit: int | None = None) -> tuple[dict[str, float], list[Sample]]:
        """Metrics by name, and the answers given; `limit` takes only the first so many problems."""
        was_training = policy.training
        policy.eval()
        try:
            with torch.no_grad(), self.autocast():
                watch = partial(_watched, hidden=limit is not None)
                metrics = token_metrics(policy, self.prior, watch(self._batches(limit), title="held-out nll"))
                samples = self._answers(policy, limit, partial(watch, title="held-out answers"))
        finally:
            policy.train(was_training)
        return metrics | accuracy_metrics(samples), samples

    def _batches(self, limit: int | None) -> list[Batch]:
        collate = Collate(int(self.tokenizer.pad_token_id))
        by_length = sorted(self.examples[:limit], key=len)
        starts = range(0, len(by_length), self.batch_size)
        return [collate(by_length[start : start + self.batch_size]) for start in starts]

    def _answers(self, policy: Policy, limit: int | None, watch: Callable[[list[Any]], Iterable[Any]]) -> list[Sample]:
        problems = [row for row in self.rows[:limit] if row.entry is not None]
        if not problems:
            return []
        longest = self.new_tokens or SPARE_TOKENS + max(sum(example.supervised) for example in self.examples)
        batch = self.batch_size
        return answer_problems(policy, self.tokenizer, problems, new_tokens=longest, batch=batch, watch=watch)


def _watched(batches: list[Any], *, title: str, hidden: bool) -> Iterable[Any]:
    """A bar with the time left on a terminal; nothing while the training's own bar is up, or where nobody watches."""
    quiet = hidden or not leads() or not sys.stderr.isatty()
    return track(batches, title, console=Console(stderr=True), transient=True, disable=quiet)
