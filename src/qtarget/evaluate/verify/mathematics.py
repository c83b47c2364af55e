r"""Mathematical answers, compared by math-verify: {"verifier": "math", "answer": LaTeX or a number}."""

from __future__ import annotations

from qtarget import isolated
from qtarget.data.example import FINAL
from qtarget.evaluate.verify.verdict import Entry, Verdict, boxed, final_answer, normal

LONGEST = 4000
"""Characters of a completion's end that are looked at: nobody's answer is longer, and patterns take their time."""


def verdict(completion: str, entry: Entry) -> Verdict:
    r"""Equal to the entry's answer as math-verify sees it: \frac12, 0.5 and 1/2 are.

    The answer is what the last \boxed{…} holds, else what follows the last ####, else the last expression or number
    that math-verify finds. It is spelled as sympy prints it; where math-verify finds none, or no verdict in time, the
    answer is wrong.
    """
    said = _said(completion)
    try:
        correct, answer = isolated.ask("qtarget.evaluate.verify.math_answers", *said, _said(str(entry["answer"]))[0])
    except isolated.UnansweredError:
        return Verdict(False, normal(said[0])[:LONGEST])
    return Verdict(correct, answer)


def _said(text: str) -> tuple[str, bool]:
    """What is to be parsed, and whether it is nothing but the answer."""
    box = boxed(text)
    if box is not None:
        return box[-LONGEST:], True
    return final_answer(text)[-LONGEST:], FINAL in text
