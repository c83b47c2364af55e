"""Problems put to a model, its answers judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration
from qtarget.evaluate.generate import GREEDY, Sampling, Written, generate
from qtarget.evaluate.samples import HELDOUT, Sample
from qtarget.evaluate.verify import judge
from qtarget.model.policy import Policy


def answer_problems(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Demonstration],
    *,
    new_tokens: int,
    batch: int,
    sampling: Sampling = GREEDY,
    source: str = HELDOUT,
    watch: Callable[[list[Any]], Iterable[Any]] = iter,
) -> list[Sample]:
    """Answers to verifiable problems, each judged by its own verifier; the samples of a prompt stand together."""
    chat = ChatFormat(tokenizer)
    written = generate(
        policy,
        [chat.prompt_ids(row.prompt, row.tools) for row in rows],
        ends=sorted(chat.ends),
        pad=int(tokenizer.pad_token_id),
        new_tokens=new_tokens,
        batch=batch,
        sampling=sampling,
        watch=watch,
    )
    return [
        _judged(row, source, number, one, str(tokenizer.decode(one.ids, skip_special_tokens=True)).strip())
        for row, answers in zip(rows, written, strict=True)
        for number, one in enumerate(answers)
    ]


def _judged(row: Demonstration, source: str, number: int, written: Written, answer: str) -> Sample:
    assert row.entry is not None
    verdict = judge(answer, row.entry)
    return Sample(
        source=source,
        row=row.row,
        sample=number,
        prompt="\n\n".join(message["content"] for message in row.prompt if message["content"]),
        expected=row.completion,
        answer=answer,
        final=verdict.answer,
        correct=verdict.correct,
        score=verdict.score,
        tokens=len(written.ids),
        ended=written.ended,
    )
