"""Asked in a process of its own: what math-verify makes of two texts."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import math_verify
import sympy

_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_MARKED = re.compile(r"\$|\\[(\[]|\\boxed")


def answer(said: str, bare: bool, gold: str) -> tuple[bool, str]:
    """Is `said` equal to `gold`, and its canonical spelling. bare: the text is an answer and nothing else."""
    parsed = _parsed(said, bare)
    # The time is kept outside: math-verify's own clock is a signal, and would replace ours.
    correct = math_verify.verify(list(_parsed(gold, True)), list(parsed), timeout_seconds=None)
    return bool(correct), _spelled(parsed)


@lru_cache(maxsize=1000)
def _parsed(text: str, bare: bool) -> tuple[Any, ...]:
    """Expressions and the text they come from, as math-verify's parser gives them."""
    if not _MARKED.search(text) and _is_latex(text, bare):
        text = rf"\boxed{{{text}}}"
    return tuple(math_verify.parse(text, parsing_timeout=None))


def _is_latex(text: str, bare: bool) -> bool:
    """Is it a formula as a whole? math-verify looks for numbers alone where a formula isn't marked as one."""
    if bare:
        return "\\" in text or not _PROSE.search(text)
    return "\\" in text and "\n" not in text.strip() and not _PROSE.search(text)


def _spelled(parsed: tuple[Any, ...]) -> str:
    """Decimals as fractions and evaluated, so that equal numbers are spelled alike."""
    if not parsed:
        return ""
    try:
        return str(sympy.nsimplify(parsed[0].doit(), rational=True))
    except Exception:  # sympy raises all sorts on what is no number
        return str(parsed[-1])
