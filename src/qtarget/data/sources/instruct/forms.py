"""How an answer is to be written down: a wording for the reader, the answer in that form, and the checks of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from qtarget.data.sources.instruct.tasks import COUNT, LIST, NUMBERS, TEXT, VERBATIM

Check = Mapping[str, Any]


@dataclass(frozen=True)
class FormattedAnswer:
    """wording: the instruction. answer: the pieces in that form. checks: what `qtarget.data.verify.instructions` has.

    lead: how many characters stand before the first piece.
    """

    wording: str
    answer: str
    checks: tuple[Check, ...]
    lead: int = 0


def bare(rng: Random, pieces: Sequence[str]) -> FormattedAnswer:
    wordings = ("Answer with the result only.", "Write nothing but the answer.", "Give only the answer.")
    return FormattedAnswer(rng.choice(wordings), pieces[0], (_check("lines", count=1),))


def commas(rng: Random, pieces: Sequence[str]) -> FormattedAnswer:
    wordings = (
        "Answer with a comma-separated list only.",
        "Give only the result, separated by commas.",
        "Write nothing but the result, with commas between the items.",
    )
    return FormattedAnswer(rng.choice(wordings), ", ".join(pieces), (_check("separated", by=",", count=len(pieces)),))


def marks(rng: Random, pieces: Sequence[str]) -> FormattedAnswer:
    mark = rng.choice((";", "|", "/", "->"))
    wordings = (
        f'Write the result on one line with "{mark}" between the items.',
        f'Use "{mark}" to separate the items.',
    )
    return FormattedAnswer(
        rng.choice(wordings), f" {mark} ".join(pieces), (_check("separated", by=mark, count=len(pieces)),)
    )


def capital_list(rng: Random, pieces: Sequence[str]) -> FormattedAnswer:
    wordings = (
        "Answer in capital letters, with commas between the items.",
        "Write the result in upper case, separated by commas.",
    )
    checks = (_check("separated", by=",", count=len(pieces)), _check("upper"))
    return FormattedAnswer(rng.choice(wordings), ", ".join(pieces).upper(), checks)


def bullets(rng: Random, pieces: Sequence[str]) -> FormattedAnswer:
    wordings = (
        "Write the result as a bullet list, each line beginning with a dash.",
        'Answer with a bullet list: one item a line, each after "- ".',
    )
    return FormattedAnswer(
        rng.choice(wordings), "\n".join(f"- {item}" for item in pieces), (_check("bullets", count=len(pieces)),)
    )


def one_a_line(rng: Random, pieces: Sequence[str]) -> FormattedAnswer:
    wordings = (
        "Write each item of the result on a line of its own.",
        "Answer with one item per line and nothing else.",
    )
    return FormattedAnswer(rng.choice(wordings), "\n".join(pieces), (_check("lines", count=len(pieces)),))


def array(rng: Random, pieces: Sequence[str]) -> FormattedAnswer:
    wordings = ("Write the result as a JSON list.", "Answer with a JSON list and nothing else.")
    return FormattedAnswer(
        rng.choice(wordings), json.dumps([_value(item) for item in pieces]), (_check("json_list", count=len(pieces)),)
    )


def capitals(rng: Random, pieces: Sequence[str]) -> FormattedAnswer:
    wordings = ("Answer in capital letters only.", "Write the result in upper case.")
    return FormattedAnswer(rng.choice(wordings), pieces[0].upper(), (_check("upper"),))


def wrapped(rng: Random, pieces: Sequence[str]) -> FormattedAnswer:
    left, right = rng.choice((("<answer>", "</answer>"), ("<out>", "</out>"), ("[", "]"), ("<<", ">>"), ("{", "}")))
    wordings = (
        f"Write the answer between {left} and {right}.",
        f"Begin with {left}, then give the answer, and end with {right}.",
    )
    return FormattedAnswer(
        rng.choice(wordings), f"{left}{pieces[0]}{right}", (_check("wrapped", left=left, right=right),), len(left)
    )


def member(rng: Random, pieces: Sequence[str]) -> FormattedAnswer:
    key = rng.choice(("answer", "result", "output", "value"))
    wordings = (
        f'Answer with a JSON object that has the single key "{key}".',
        f'Write the result as JSON under the key "{key}".',
    )
    return FormattedAnswer(
        rng.choice(wordings), json.dumps({key: _value(pieces[0])}), (_check("json_keys", keys=[key]),), len(key) + 3
    )


def opening(rng: Random, pieces: Sequence[str]) -> FormattedAnswer:
    start = rng.choice(("Result:", "Answer:", "Here it is:", "My answer:"))
    wordings = (f'Begin your answer with "{start}".', f'Write "{start}" before the result.')
    return FormattedAnswer(
        rng.choice(wordings), f"{start} {pieces[0]}", (_check("starts_with", value=start),), len(start)
    )


def ending(rng: Random, pieces: Sequence[str]) -> FormattedAnswer:
    end = rng.choice(("Done.", "That is all.", "Over and out.", "Thank you."))
    wordings = (f'End your answer with "{end}"', f'Write the result and finish with "{end}"')
    return FormattedAnswer(rng.choice(wordings), f"{pieces[0]}\n{end}", (_check("ends_with", value=end),))


Form = Callable[[Random, Sequence[str]], FormattedAnswer]

PLAIN: dict[str, Form] = {LIST: commas, NUMBERS: commas, TEXT: bare, VERBATIM: bare, COUNT: bare}
"""By kind of answer: the form where nothing is made of it."""
FORMS: dict[str, tuple[Form, ...]] = {
    LIST: (bullets, one_a_line, array, capital_list, marks),
    NUMBERS: (bullets, one_a_line, array, marks),
    TEXT: (capitals, wrapped, member, opening, ending),
    VERBATIM: (wrapped, member, opening, ending),
    COUNT: (wrapped, member, opening, ending),
}
"""By kind of answer: the forms that suit it."""


def _check(name: str, **arguments: Any) -> Check:
    return {"check": name, **arguments}


def _value(piece: str) -> str | int:
    return int(piece) if piece.isdigit() else piece
