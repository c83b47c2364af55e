r"""Mathematical answers: {"verifier": "math", "answer": LaTeX or a number}. The rules are those of `math_equal`."""

from __future__ import annotations

from qtarget import isolated
from qtarget.data.example import FINAL
from qtarget.evaluate.verify.verdict import Entry, Verdict, boxed, final_answer, normal

LONGEST = 4000
"""Characters of a completion's end that are looked at: nobody's answer is longer, and patterns take their time."""


def verdict(completion: str, entry: Entry) -> Verdict:
    r"""Equal to the entry's answer as mathematics: \frac12, 0.5 and 1/2 are; 10^{-20} and 10^{-21} are not.

    The answer is what the last \boxed{…} holds, else what follows the last ####, else what follows the last "answer
    is", the last formula or the last number. Numbers are compared exactly; a decimal of six significant digits or more
    stands for what it is rounded from. It is spelled as sympy prints it; where none is read, or no verdict comes in
    time, the answer is wrong.
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
