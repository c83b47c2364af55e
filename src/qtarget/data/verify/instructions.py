"""Instructions, by checks that a text passes or not: {"verifier": "instruct", "checks": [{"check": name, …}, …]}."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qtarget.data.edit import words
from qtarget.data.verify.verdict import Entry, Verdict
from qtarget.errors import QTargetError

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)}


def verdict(completion: str, entry: Entry) -> Verdict:
    """Correct where all checks are passed; the partial score is the share of them that is."""
    passed = [_passes(completion.strip(), check) for check in entry["checks"]]
    share = sum(passed) / len(passed) if passed else 1.0
    return Verdict(all(passed), " ".join(completion.split()), share)


def _passes(text: str, check: Mapping[str, Any]) -> bool:
    name, arguments = check.get("check"), {key: value for key, value in check.items() if key != "check"}
    if name not in CHECKS:
        raise QTargetError(f"an instruct entry's check must be one of {', '.join(CHECKS)}, got {name!r}")
    try:
        inspect.signature(CHECKS[name]).bind(text, **arguments)
    except TypeError as error:
        raise QTargetError(f"the check {name} {error}: {dict(check)}") from error
    return CHECKS[name](text, **arguments)


def says(text: str, value: Sequence[str]) -> bool:
    """The words of `value` stand in it, in this order and nothing between them.

    Case and punctuation don't matter, and up to twelve neither does it whether a number is in digits.
    """
    said, wanted = _numbered(words(text)), _numbered(word.casefold() for word in value)
    return any(said[start : start + len(wanted)] == wanted for start in range(len(said) - len(wanted) + 1))


def contains(text: str, value: str) -> bool:
    """`value` stands in it, letter by letter, and not as a part of a longer word."""
    return re.search(rf"(?<![^\W_]){re.escape(value)}(?![^\W_])", text) is not None


def length(text: str, count: int) -> bool:
    """It has `count` words."""
    return len(words(text)) == count


def upper(text: str) -> bool:
    """It has letters, and all that have a case are capitals."""
    return text.isupper()


def lines(text: str, count: int) -> bool:
    """It has `count` lines that aren't blank."""
    return len(_lines(text)) == count


def bullets(text: str, count: int) -> bool:
    """It is `count` lines that each begin with a dash and have an item."""
    found = _lines(text)
    return len(found) == count and all(line.startswith("-") and words(line) for line in found)


def separated(text: str, by: str, count: int) -> bool:
    """It is `count` items on one line with `by` between them."""
    items = text.split(by)
    return len(_lines(text)) == 1 and len(items) == count and all(map(words, items))


def wrapped(text: str, left: str, right: str) -> bool:
    """It begins with `left` and ends with `right`."""
    return len(text) >= len(left) + len(right) and text.startswith(left) and text.endswith(right)


def starts_with(text: str, value: str) -> bool:
    return text.startswith(value)


def ends_with(text: str, value: str) -> bool:
    return text.endswith(value)


def json_object(text: str, value: Mapping[str, Any]) -> bool:
    """It is a JSON object with the keys of `value` and no others, and its values, where 3 and "3" are the same."""
    found = _json(text)
    return isinstance(found, dict) and _texts(found) == _texts(value)


def json_keys(text: str, keys: Sequence[str]) -> bool:
    """It is a JSON object with these keys and no others."""
    found = _json(text)
    return isinstance(found, dict) and set(found) == set(keys)


def json_list(text: str, count: int) -> bool:
    """It is a JSON list of `count` items."""
    found = _json(text)
    return isinstance(found, list) and len(found) == count


def _numbered(found: Iterable[str]) -> list[str]:
    return [_DIGITS.get(word, word) for word in found]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _texts(values: Mapping[str, Any]) -> dict[str, str | None]:
    return {key: str(value) if isinstance(value, str | int | float) else None for key, value in values.items()}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: thousands of brackets
        return None


CHECKS: dict[str, Callable[..., bool]] = {
    check.__name__: check
    for check in (
        says,
        contains,
        length,
        upper,
        lines,
        bullets,
        separated,
        wrapped,
        starts_with,
        ends_with,
        json_object,
        json_keys,
        json_list,
    )
}
"""By the name that entries carry; all look at the text without the white space around it."""
