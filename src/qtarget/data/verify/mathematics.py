r"""Mathematical answers: {"verifier": "math", "answer": LaTeX or a number}. The rules are those of `math_equal`."""

from __future__ import annotations

import re

from qtarget import isolated
from qtarget.data.example import FINAL
from qtarget.data.verify.verdict import Box, Entry, Verdict, boxes, final_answer, normal, tagged

LONGEST = 4000
"""Characters of a completion's end that are looked at: nobody's answer is longer, and patterns take their time."""


def verdict(completion: str, entry: Entry) -> Verdict:
    r"""Equal to the entry's answer as mathematics: \frac12, 0.5 and 1/2 are; 10^{-20} and 10^{-21} are not.

    The answer is what the last \boxed{…} holds, with those before it that a comma, "and" or "or" joins to it; else what
    follows the last ####; else what follows the last "answer is", the last formula or the last number. Of a completion
    with <answer>…</answer> only what stands there counts; a box that is not closed states nothing. Numbers are compared
    exactly; a decimal of six significant digits or more stands for what it is rounded from. It is spelled as sympy
    prints it; where none is read, or no verdict comes in time, the answer is wrong.
    """
    said = _said(completion)
    try:
        correct, answer = isolated.ask("qtarget.data.verify.math_answers", *said, _said(str(entry["answer"]))[0])
    except isolated.UnansweredError:
        return Verdict(False, normal(said[0])[:LONGEST])
    return Verdict(correct, answer)


_OPENED = re.compile(r"\\boxed\s*\{")
_JOINS = re.compile(r"[\s$]*(?:[,;]|[,;]?\s*(?:and|or))[\s$]*")


def _said(text: str) -> tuple[str, bool]:
    """What is to be parsed, and whether it is nothing but the answer."""
    inner = tagged(text)
    held = boxes(inner)
    if held:
        return ", ".join(_joined(inner, held))[-LONGEST:], True
    opened = _OPENED.search(inner)  # a reply that was cut short within its box states nothing there
    inner = inner[: opened.start()] if opened else inner
    return final_answer(inner)[-LONGEST:], FINAL in inner or (inner != text and not opened)


def _joined(text: str, held: list[Box]) -> list[str]:
    """What the last box holds, and those that a comma, "and" or "or" joins to it."""
    joined = [held[-1]]
    for box in held[-2::-1]:
        if box.start > joined[0].start:
            continue  # within it
        if not _JOINS.fullmatch(text[box.end : joined[0].start]):
            break
        joined.insert(0, box)
    return list(dict.fromkeys(box.held for box in joined))
