"""Rows of any origin → conversations and verifiable answers; what is wrong with one is said in words.

Text comes from columns: a column's name, or a text with names of columns in braces. Errors here don't know their row:
whoever reads the rows says which one it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from string import Formatter
from typing import Any

from qtarget import checks
from qtarget.data.example import Message
from qtarget.data.sources.written import Twice, WrittenNumber, number_text
from qtarget.data.verify.verdict import Verifier
from qtarget.errors import QTargetError

VERIFIERS = ("math", "choice", "exact")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
_KINDS |= {WrittenNumber: "a number", Twice: "two different values, as its key stands twice in the object"}


def kind(value: object) -> str:
    """What a value is, in a word or two."""
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def text(value: object, name: str) -> str:
    """The value, if it is a text with something in it that a tokenizer takes."""
    if not isinstance(value, str):
        raise QTargetError(f"{name} is null" if value is None else f"{name} must be text, got {kind(value)}")
    if not value.strip():
        raise QTargetError(f"{name} is empty")
    return encodable(value, name)


def shown(value: object) -> object:
    """A number as the text that it is written as; anything else, and what is no number (NaN), as it is."""
    if isinstance(value, Decimal) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return number_text(value) or value
    return value


def exchange(prompt: str, completion: str, system: str | None = None) -> list[Message]:
    """A conversation of one question and its answer. system: None for the template's own."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def check_verifier(verifier: object) -> None:
    """Raise QTargetError for what a source can't judge by: anything but VERIFIERS, None and one of the user's."""
    if callable(verifier):
        checks.implements("data.source.verifier", verifier, Verifier)
    elif verifier is not None and verifier not in VERIFIERS:
        raise QTargetError(
            f"data.source.verifier must be one of None, {', '.join(VERIFIERS)}, or a class of your own, verifier: "
            f"{{_target_: MODULE.CLASS}} in a yaml file, got {verifier!r}"
        )


def entry(verifier: str | Verifier, answer: object, options: object = None) -> dict[str, Any]:
    """What the verifier needs to judge a new answer. options, for "choice": letter → text, or a list of texts.

    A verifier of the user's is given options where there are any.
    """
    answer = shown(answer)
    result: dict[str, Any] = {"verifier": verifier, "answer": text(answer, "answer").strip()}
    if callable(verifier):
        return result if options is None else {**result, "options": lettered(options)}
    if verifier != "choice":
        return result
    choices = lettered(options)
    if result["answer"] not in choices:
        raise QTargetError(
            f"answer must be one of the options' letters {listed(choices)}, got {result['answer'][:40]!r}"
        )
    return {**result, "options": choices}


def trusted(entry: Mapping[str, Any], trust_scorer: bool) -> dict[str, Any]:
    """The entry, marked where its scorer is taken at its word: qtarget.evaluate.probing leaves it alone."""
    return {**entry, "trust_scorer": True} if trust_scorer else dict(entry)


def lettered(options: object) -> dict[str, str]:
    """Options by letter; a list is lettered from A."""
    if isinstance(options, list) and len(options) <= len(LETTERS):
        options = dict(zip(LETTERS, options, strict=False))
    if not isinstance(options, Mapping) or not options:
        raise QTargetError(
            f"options must be {{letter: text, …}} or a list of up to {len(LETTERS)} texts, got {kind(options)}"
        )
    letters = {text(str(letter), "an option's letter"): option for letter, option in options.items()}
    return {letter: text(option, f"option {listed([letter])}") for letter, option in letters.items()}


def listed(names: Sequence[Any] | Mapping[Any, Any]) -> str:
    """Names for a message that can be printed, however many, long and odd they are."""
    shown = [str(name)[:40].encode(errors="backslashreplace").decode() for name in names]
    return ", ".join(shown[:30]) + (f" and {len(shown) - 30} more" if len(shown) > 30 else "") or "none"


def encodable(value: str, name: str) -> str:
    """The value, if a tokenizer takes it."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        is_byte = "\udc80" <= value[error.start] <= "\udcff"  # what Python makes of a byte that it can't read
        what = "a byte that isn't UTF-8" if is_byte else "a lone surrogate, half of a pair,"
        raise QTargetError(f"{name} holds {what} at character {error.start}") from error
    return value


def columns_of(spec: str) -> list[str]:
    """The columns that a spec names. "{question}\\n{options}" is a template: names alone, `{{` for a brace."""
    return [name for _, name in _parts(spec) if name is not None]


def filled(spec: str, row: Mapping[str, Any], name: str) -> str:
    """The text of a spec for a row; raises QTargetError, with the field's name, where a column holds none."""
    written = "".join(literal + ("" if column is None else _shown(row, column)) for literal, column in _parts(spec))
    return text(written, f"{name} ({spec!r})")


def _parts(spec: str) -> list[tuple[str, str | None]]:
    """(literal text, column behind it or None) in order. A column is looked up and nothing else: no attributes."""
    if "{" not in spec:
        return [("", spec)]
    try:
        parsed = list(Formatter().parse(spec))
    except ValueError as error:
        raise QTargetError(f"the template {spec!r} can't be read: {error}; write {{{{ for a brace") from error
    for _, column, form, conversion in parsed:
        if column == "" or form or conversion:
            raise QTargetError(f"the template {spec!r} may hold names of columns in braces, and nothing beside them")
    return [(literal, column) for literal, column, _, _ in parsed]


def _shown(row: Mapping[str, Any], column: str) -> str:
    value = shown(row[column])
    if not isinstance(value, str):
        what = "NaN or an infinity" if isinstance(value, float) else kind(value)
        raise QTargetError(f"column {column!r} must hold text or numbers, got {what}")
    return value
