"""Checks of rows against the model, before training: do they fit its positions, and have all tokens an embedding?"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qtarget.config.benchmarks import Benchmarks
from qtarget.data.chat import ChatFormat
from qtarget.data.module import Prepared
from qtarget.errors import QTargetError
from qtarget.evaluate.heldout import longest_answer
from qtarget.model import provide
from qtarget.model.provide import is_bounded


def check_answer_length(
    new_tokens: int | None,
    model: provide.ModelSource,
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
        prompts = list(chat.asked(rows))
        if not prompts:
            continue
        prompt = max(len(ids) for _, ids in prompts)
        new = new_tokens or longest_answer(tokenizer, [row for row, _ in prompts], prepared.heldout)
        if prompt + new - 1 > context:
            _exceeded(name, prompt, new, context, bounded=is_bounded(model, len(tokenizer), context))


def _exceeded(name: str, prompt: int, new: int, context: int, *, bounded: bool) -> None:
    room = context + 1 - prompt
    fact = (
        f"the model has {context} positions, and the longest prompt of {name} has {prompt} tokens that up to {new} new "
        f"ones follow"
    )
    if not bounded:
        warnings.warn(f"{fact}: it goes on beyond them, where it was not trained", stacklevel=4)
        return
    way = f"set eval.new_tokens={room} or fewer" if room > 0 else "leave such rows out"
    raise QTargetError(f"{fact}: {way}, or take a model with a longer context")


NAMED = 5
"""Tokens that a message names."""


def chat_tokenizer(model: provide.ModelSource, chat_template: str | None) -> Any:
    """A model's tokenizer. Raises QTargetError where it has no chat template, or is given one that can't be used."""
    tokenizer = provide.load_tokenizer(model, chat_template)
    chat = ChatFormat(tokenizer)
    if chat_template:
        chat.template.check()
    return tokenizer


def with_pad(tokenizer: Any, sizes: Mapping[str, int | None]) -> Any:
    """A padding token that every model has a row for: padding is never seen, but it is looked up.

    The tokenizer's own; else its eos, else the end of turn, which the rows have anyway. sizes: as `check_embeddings`.
    """
    rows = min((rows for rows in sizes.values() if rows is not None), default=None)
    given = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    if not _has_row(given[0], rows):
        pad = given[1] if _has_row(given[1], rows) else ChatFormat(tokenizer).end_of_turn
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(int(pad))
    return tokenizer


def _has_row(token: int | None, rows: int | None) -> bool:
    return token is not None and (rows is None or token < rows)


def check_embeddings(sizes: Mapping[str, int | None], tokenizer: Any, prepared: Prepared, beside: Benchmarks) -> None:
    """Raise QTargetError where rows, or what is asked of the model, hold a token behind a model's last embedding.

    sizes: by name of the model, how many rows its embeddings have; None: its configuration doesn't say.
    """
    last = max(tokenizer.get_vocab().values())
    for name, rows in sizes.items():
        if rows is not None and last >= rows:
            _check(name, rows, tokenizer, [*_texts(tokenizer, prepared, beside)])
            if prepared.stream is not None:
                raise QTargetError(
                    f"{name} has no embeddings for the tokens from {rows} to {last}, and which of them the rows of a "
                    "stream use isn't known before: resize_token_embeddings in transformers, or set "
                    "data.source.streaming=false"
                )


def _check(name: str, rows: int, tokenizer: Any, texts: Iterable[tuple[str, Iterable[int]]]) -> None:
    size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))  # some have ids that no token has
    lacking = {where: {token for token in ids if token >= rows} for where, ids in texts}
    users = {where: tokens for where, tokens in lacking.items() if tokens}
    if not users:
        return
    tokens = sorted(set().union(*users.values()))
    listed = ", ".join(map(str, tokenizer.convert_ids_to_tokens(tokens[:NAMED]))) + ", …" * (len(tokens) > NAMED)
    raise QTargetError(
        f"the tokenizer has {size} tokens and {name} has {rows} embedding rows: {listed} have none, and "
        f"{len(users)} rows or prompts use them (the first: {next(iter(users))}). Give the model rows for them "
        f"(resize_token_embeddings({size}) in transformers, and save it), or take a model.chat_template "
        "without these tokens"
    )


def _texts(tokenizer: Any, prepared: Prepared, beside: Benchmarks) -> Iterator[tuple[str, Iterable[int]]]:
    kinds = {"training row": prepared.train, "held-out row": prepared.heldout, "retention row": beside.retention}
    for kind, examples in kinds.items():
        yield from ((f"{kind} {example.row}", example.input_ids) for example in examples)
    chat = ChatFormat(tokenizer)
    for name, problems in {"held-out": prepared.heldout_rows, **beside.benchmarks}.items():
        yield from ((f"prompt of {name} row {row.row}", ids) for row, ids in chat.asked(problems))


def sizes(
    config: Any, model: provide.ModelSource, references: Mapping[str, provide.ModelSource]
) -> dict[str, int | None]:
    """Rows of embeddings by name of the model. config: of the policy's."""
    own = {"the model": provide.embedding_rows(config)}
    return own | {
        f"the {role}": provide.embedding_rows(provide.load_config(source))
        for role, source in references.items()
        if source != model
    }
