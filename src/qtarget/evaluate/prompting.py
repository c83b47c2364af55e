"""Answers of a model to verifiable problems, each judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration
from qtarget.data.thought import MARKS
from qtarget.data.verify import judge
from qtarget.data.verify.verdict import after_thought, opens_thought
from qtarget.errors import QTargetError
from qtarget.evaluate.generate import generate
from qtarget.evaluate.requests import GeneratedAnswer
from qtarget.evaluate.samples import HELDOUT, Sample
from qtarget.evaluate.sampling import GREEDY, Sampling
from qtarget.evaluate.served import Served, ServedPrompt
from qtarget.evaluate.spreading import ALONE, Ranks
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
    served: Served | None = None,
    ranks: Ranks = ALONE,
    watch: Callable[[list[Any]], Iterable[Any]] = iter,
) -> list[Sample]:
    """Answers to verifiable problems, each judged by its own verifier; the samples of a prompt stand together.

    Every rank answers and judges its share of the problems, and gets the samples of all. served: the server that
    writes them in the policy's place. Collective.
    """
    chat = ChatFormat(tokenizer)
    prompts = [chat.prompt_ids(row.prompt, row.tools) for row in rows]
    by_length = sorted(range(len(rows)), key=lambda index: len(prompts[index]))  # so that shares take as long
    own = ranks.share(by_length)
    if served:
        asked = [ServedPrompt(prompts[index], chat.prompt_text(rows[index].prompt, rows[index].tools)) for index in own]
        written = served.answers(asked, new_tokens, watch)
    else:
        written = generate(
            policy,
            [prompts[index] for index in own],
            ends=sorted(chat.ends),
            pad=int(tokenizer.pad_token_id),
            new_tokens=new_tokens,
            batch=batch,
            sampling=sampling,
            watch=watch,
        )
    judged = [
        _judged_answers(tokenizer, rows[index], prompts[index], answers, source)
        for index, answers in zip(own, written, strict=True)
    ]
    by_row = dict(zip(by_length, ranks.collected(judged, len(rows)), strict=True))
    return [sample for index in range(len(rows)) for sample in by_row[index]]


def _judged_answers(
    tokenizer: PreTrainedTokenizerBase,
    row: Demonstration,
    prompt: Sequence[int],
    answers: Sequence[GeneratedAnswer],
    source: str,
) -> list[Sample]:
    return [
        _judged(row, written, *_texts(tokenizer, prompt, written), source=source, sample=number)
        for number, written in enumerate(answers)
    ]


def _texts(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], written: GeneratedAnswer) -> tuple[str, str]:
    """(an answer's text, what of it follows its thought)."""
    if written.text is not None:
        opened = opens_thought(str(tokenizer.decode(list(prompt))))
        visible = after_thought(opened + written.text)
        return written.text.strip(), (written.text if visible == opened + written.text else visible).strip()
    text = str(tokenizer.decode(written.ids, skip_special_tokens=True))
    return text.strip(), without_thought(tokenizer, prompt, written.ids).strip()


def check_thoughts(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise QTargetError for a tokenizer whose thoughts are marked by special tokens, which servers leave out of texts:
    a thought would be judged as the answer.
    """
    special = [mark for pair in MARKS for mark in pair if mark in tokenizer.all_special_tokens]
    if special:
        raise QTargetError(
            f"this tokenizer marks thoughts by special tokens ({', '.join(special)}), which a server's text lacks: "
            "evaluate with eval.engine=local"
        )


def without_thought(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], answer: Sequence[int]) -> str:
    """The text of an answer after its thought; "" where the thought has no end.

    The prompt may open the thought (DeepSeek-R1, QwQ), and special tokens may mark it (Command A Reasoning, Apertus):
    neither stands in the answer's text.
    """
    opened = opens_thought(str(tokenizer.decode(list(prompt))))
    marked = opened + str(tokenizer.decode(list(answer)))
    visible = after_thought(marked)
    if visible == marked:
        return str(tokenizer.decode(list(answer), skip_special_tokens=True))
    for special in set(answer) & set(tokenizer.all_special_ids):
        visible = visible.replace(str(tokenizer.convert_ids_to_tokens(special)), "")
    return visible


def _judged(row: Demonstration, written: GeneratedAnswer, answer: str, visible: str, **where: Any) -> Sample:
    assert row.entry is not None
    verdict = judge(visible, row.entry)
    return Sample(
        **where,
        row=row.row,
        prompt="\n\n".join(message["content"] for message in row.prompt if message["content"]),
        expected=row.completion,
        answer=answer,
        final=verdict.answer,
        correct=verdict.correct,
        score=verdict.score,
        tokens=written.tokens,
        ended=written.ended,
    )
