"""Asked in a process of its own: what math-verify makes of two texts."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import math_verify
import sympy

_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SYMBOLS = re.compile(r"[\\^A-Za-z()\[\]{}]")
_MARKED = re.compile(r"\$|\\[(\[]|\\boxed")
_PERCENT = re.compile(r"\s*\\?%$")


def answer(said: str, bare: bool, gold: str) -> tuple[bool, str]:
    """Is `said` equal to `gold`, and its canonical spelling. bare: the text is an answer and nothing else."""
    parsed = _parsed(said, bare)
    # The time is kept outside: math-verify's own clock is a signal, and would replace ours.
    correct = math_verify.verify(list(_parsed(gold, True)), list(parsed), timeout_seconds=None)
    return bool(correct), _spelled(parsed)


@lru_cache(maxsize=1000)
def _parsed(text: str, bare: bool) -> tuple[Any, ...]:
    """Expressions and the text they come from, as math-verify's parser gives them.

    It looks for numbers alone where a formula isn't marked as one, and for nothing in words.
    """
    found = _parse(_formula(text) if _is_formula(text, bare) else text)
    return found if found or not (bare and text) else _parse(_formula(rf"\text{{{text}}}"))


def _parse(text: str) -> tuple[Any, ...]:
    return tuple(math_verify.parse(text, parsing_timeout=None))


def _is_formula(text: str, bare: bool) -> bool:
    """Is it a formula as a whole, and not marked as one?"""
    if _MARKED.search(text):
        return False
    if bare and "\\" in text:
        return True
    alone = bare or ("\n" not in text.strip() and bool(_SYMBOLS.search(text)))
    return alone and not _PROSE.search(text)


def _formula(text: str) -> str:
    line = " ".join(text.split())
    number = _PERCENT.sub("", line)
    return f"${number}$" + ("%" if number != line else "")


def _spelled(parsed: tuple[Any, ...]) -> str:
    """Evaluated, decimals as fractions, of x = 5 the 5: equal answers are spelled alike."""
    if not parsed:
        return ""
    found = parsed[0]
    if isinstance(found, sympy.Eq) and (found.lhs.is_Symbol or not found.lhs.free_symbols):
        found = found.rhs
    try:
        return str(sympy.nsimplify(found.doit(), rational=True))
    except Exception:  # sympy raises all sorts on what is no number
        return str(parsed[-1])
