"""Whether prompts and their answers fit the positions that a model has: told before training, not after it."""

from __future__ import annotations

import warnings
from typing import Any

from qtarget.app.benchmarks import Benchmarks
from qtarget.data.chat import ChatFormat
from qtarget.data.module import Prepared
from qtarget.errors import QTargetError
from qtarget.evaluate.heldout import longest_answer
from qtarget.model import provide
from qtarget.model.positions import is_bounded


def check_answer_length(
    new_tokens: int | None,
    model: provide.Source,
    tokenizer: Any,
    prepared: Prepared,
    beside: Benchmarks,
) -> None:
    """Raise QTargetError where an answer could run past the last position; a model that goes on there is warned of.

    new_tokens: eval.new_tokens. The last token of an answer is never read: prompt + new tokens − 1 positions are
    needed.
    """
    context = provide.context_length(provide.load_config(model))
    problems = {
        "the held-out rows": prepared.heldout_rows,
        **{f"eval.benchmarks.{k}": v for k, v in beside.benchmarks.items()},
    }
    chat = ChatFormat(tokenizer)
    for name, rows in problems.items():
        asked = list(chat.asked(rows))
        if not asked:
            continue
        prompt = max(len(ids) for _, ids in asked)
        new = new_tokens or longest_answer(tokenizer, [row for row, _ in asked], prepared.heldout)
        if prompt + new - 1 > context:
            _exceeded(name, prompt, new, context, bounded=is_bounded(model, len(tokenizer), context))


def _exceeded(name: str, prompt: int, new: int, context: int, *, bounded: bool) -> None:
    room = context + 1 - prompt
    told = (
        f"the model has {context} positions, and the longest prompt of {name} has {prompt} tokens that up to {new} new "
        f"ones follow"
    )
    if not bounded:
        warnings.warn(f"{told}: it goes on beyond them, where it was not trained", stacklevel=4)
        return
    way = f"set eval.new_tokens={room} or fewer" if room > 0 else "leave such rows out"
    raise QTargetError(f"{told}: {way}, or take a model with a longer context")
