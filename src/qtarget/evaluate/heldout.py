"""Held-out demonstrations: nll, drift from the prior, and verified answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from qtarget.data.chat import ChatFormat
from qtarget.data.collate import Batch, Collate
from qtarget.data.example import Demonstration, Example
from qtarget.evaluate.generate import greedy
from qtarget.evaluate.scores import accuracy
from qtarget.evaluate.verify import is_correct
from qtarget.math.head import matmul_dtype
from qtarget.math.loss import IGNORE
from qtarget.model.frozen import FrozenModel
from qtarget.model.policy import Policy

CHUNK = 256
SPARE_TOKENS = 8


@torch.no_grad()
def token_metrics(policy: Policy, prior: FrozenModel | None, batches: Iterable[Batch]) -> dict[str, float]:
    """ "nll" = mean −log p(y) and "kl_prior" = mean KL(p‖π_0), nats per supervised token.

    Measured the same way for every design. The KL runs from the policy to the prior: what the policy now says, judged
    by the model it started from.
    """
    nll = kl = tokens = 0.0
    for batch in batches:
        kept = (batch.labels.reshape(-1) != IGNORE).nonzero().squeeze(1)
        labels = batch.labels.reshape(-1)[kept]
        rows = policy(batch.input_ids).flatten(0, 1)[kept]
        prior_rows = prior.policy(batch.input_ids).flatten(0, 1)[kept] if prior else None
        for start in range(0, len(kept), CHUNK):
            chunk = slice(start, start + CHUNK)
            logp = _logp(policy, rows[chunk])
            nll -= float(logp.gather(1, labels[chunk, None]).sum())
            if prior is not None and prior_rows is not None:
                kl += float(_kl(logp, _logp(prior.policy, prior_rows[chunk])).sum())
        tokens += len(kept)
    if not tokens:
        return {}
    return {"nll": nll / tokens} | ({"kl_prior": kl / tokens} if prior else {})


def _logp(policy: Policy, hidden: Tensor) -> Tensor:
    return torch.log_softmax(policy.head.logits(hidden, matmul_dtype(hidden)), dim=-1)


def _kl(logp: Tensor, log_prior: Tensor) -> Tensor:
    p = logp.exp()
    return torch.where(p > 0, p * (logp - log_prior), 0.0).sum(-1)


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
) -> list[Sample]:
    """Greedy answers to verifiable problems, each judged by its own scorer."""
    chat = ChatFormat(tokenizer)
    ends = sorted({chat.end_of_turn, int(tokenizer.eos_token_id or chat.end_of_turn)})
    prompts = [chat.prompt_ids(row.prompt) for row in rows]
    written = greedy(policy.lm, prompts, ends=ends, pad=int(tokenizer.pad_token_id), new_tokens=new_tokens, batch=batch)
    return [
        _judge(row, str(tokenizer.decode(ids, skip_special_tokens=True)))
        for row, ids in zip(rows, written, strict=True)
    ]


def _judge(row: Demonstration, answer: str) -> Sample:
    assert row.entry is not None
    question = row.prompt[-1]["content"]
    return Sample(row.row, question, row.completion, answer.strip(), is_correct(answer, row.entry))


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
    prior: FrozenModel | None
    autocast: Callable[[], AbstractContextManager[Any]]
    new_tokens: int | None = None
    batch_size: int = 64

    def __call__(self, policy: Policy, limit: int | None = None) -> tuple[dict[str, float], list[Sample]]:
        """Metrics by name, and the answers given; `limit` takes only the first so many problems."""
        was_training = policy.training
        policy.eval()
        try:
            with torch.no_grad(), self.autocast():
                metrics = token_metrics(policy, self.prior, self._batches(policy, limit))
                samples = self._answers(policy, limit)
        finally:
            policy.train(was_training)
        return metrics | accuracy_metrics(samples), samples

    def _batches(self, policy: Policy, limit: int | None) -> Iterator[Batch]:
        collate = Collate(int(self.tokenizer.pad_token_id))
        by_length = sorted(self.examples[:limit], key=len)
        for start in range(0, len(by_length), self.batch_size):
            yield collate(by_length[start : start + self.batch_size]).to(policy.lm.device)

    def _answers(self, policy: Policy, limit: int | None) -> list[Sample]:
        problems = [row for row in self.rows[:limit] if row.entry is not None]
        if not problems:
            return []
        longest = self.new_tokens or SPARE_TOKENS + max(sum(example.supervised) for example in self.examples)
        return answer_problems(policy, self.tokenizer, problems, new_tokens=longest, batch=self.batch_size)
