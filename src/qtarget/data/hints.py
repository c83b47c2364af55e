"""Rows with a hint in front, for a reference that is told more than the policy: a solution, a worked example.

The hint stands before the text of the row's first user message, so all turns of a conversation are read with it. What
follows a prompt is left as it is: the same tokens, the same of them supervised, noise included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat

from qtarget import checks
from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration, Example
from qtarget.data.sources.conversation import columns_of, filled
from qtarget.errors import QTargetError

FIELDS = ("hint", "answer", "completion")
"""What a template may name of a row: its own hint, the answer it is judged by, its last message."""


DEFAULT = "A solution of the task below. Use it, and don't mention it:\n{hint}"


def check_template(key: str, template: str) -> None:
    """Raise QTargetError for a template that names something else."""
    for name in _named(template):
        checks.choice(f"a name in {key}", name, FIELDS)


def with_hints(
    template: str, rows: Sequence[Demonstration], of: Sequence[int], examples: Sequence[Example], chat: ChatFormat
) -> list[Example]:
    """The examples, each with the hint of its row in its prompt. of: which of the rows each is of.

    template: a text in which names of FIELDS may stand in braces. Raises QTargetError, with the row's number, for one
    that lacks what the template names or has no message of the user.
    """
    return [_hinted(example, rows[index], template, chat) for example, index in zip(examples, of, strict=True)]


def check_lengths(
    key: str, examples: Sequence[Example], plain: Sequence[Example], context: int, max_length: int | None
) -> None:
    """Raise QTargetError, with the numbers, where rows with a hint don't fit the context of who reads them."""
    too_long = [example for example in examples if len(example) > context]
    if not too_long:
        return
    worst = max(too_long, key=len)
    added = max(len(example) - len(without) for example, without in zip(examples, plain, strict=True))
    room = min(context - added, max_length or context)
    way = f", or set data.max_length={room} data.truncation=drop, which leaves room for the longest" if room > 0 else ""
    raise QTargetError(
        f"with {key} {len(too_long)} of {len(examples)} examples are longer than the {context} tokens of the model "
        f"that reads it (the longest, of row {worst.row}, has {len(worst)}; hints add up to {added}): shorten it{way}"
    )


def _hinted(example: Example, row: Demonstration, template: str, chat: ChatFormat) -> Example:
    hinted = _with_hint(row, template)
    first = example.supervised.index(True, 1)
    for turn in reversed(range(1, len(row.messages))):
        if row.messages[turn]["role"] != "assistant":
            continue
        prompt = chat.prompt_ids(row.messages[:turn], row.tools)
        if len(prompt) <= first and list(example.input_ids[: len(prompt)]) == prompt:
            return _behind(example, len(prompt), chat.prompt_ids(hinted.messages[:turn], row.tools))
    raise QTargetError(f"row {row.row}: no prompt of it stands before what is taught, so that a hint has no place")


def _behind(example: Example, start: int, prompt: Sequence[int]) -> Example:
    """What stands in an example from a token on, behind another prompt."""
    context = [False] * len(prompt)
    return replace(
        example,
        input_ids=[*prompt, *example.input_ids[start:]],
        supervised=[*context, *example.supervised[start:]],
        columns={name: [*context, *column[start:]] for name, column in example.columns.items()},
        weights=None if example.weights is None else [*repeat(0.0, len(prompt)), *example.weights[start:]],
    )


def _with_hint(row: Demonstration, template: str) -> Demonstration:
    """The row with the hint before its first user message."""
    asked = next((index for index, message in enumerate(row.messages) if message["role"] == "user"), None)
    if asked is None:
        raise QTargetError(f"row {row.row} has no message of the user for a hint to stand before")
    message = row.messages[asked]
    hinted = {**message, "content": f"{_text(row, template)}\n\n{message['content']}"}
    return replace(row, messages=[*row.messages[:asked], hinted, *row.messages[asked + 1 :]])


def _text(row: Demonstration, template: str) -> str:
    values = {"hint": row.hint, "answer": (row.entry or {}).get("answer"), "completion": row.completion}
    for name in _named(template):
        if not values[name]:
            way = {
                "hint": 'give every row a key "hint", or name a column with data.source.hint',
                "answer": "add data.source.answer=answer data.source.verifier=exact, where the column answer "
                "holds it (of data=jsonl the verifier alone, which reads the key answer)",
            }.get(name, "")
            raise QTargetError(f"row {row.row} has no {name}, which the hint {template!r} names: {way}")
    return filled(template, values, "hint") if _named(template) else template.replace("{{", "{").replace("}}", "}")


def _named(template: str) -> list[str]:
    return columns_of(template) if "{" in template else []
