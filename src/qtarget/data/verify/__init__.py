"""Is an answer right? Asked of the verifier that a problem's entry names.

An entry is what a data source keeps for a verifier: {"verifier": name, …what that one needs}. No completion makes a
verifier raise or hang.
"""

from __future__ import annotations

from collections.abc import Callable

from qtarget.data.verify import choice, gym, instruct, mathematics, verdict
from qtarget.data.verify.verdict import Entry, Verdict, after_thought, final_answer
from qtarget.errors import QTargetError

__all__ = ["VERIFIERS", "Entry", "Verdict", "final_answer", "judge"]

VERIFIERS: dict[str, Callable[[str, Entry], Verdict]] = {
    "reasoning_gym": gym.verdict,
    "math": mathematics.verdict,
    "choice": choice.verdict,
    "exact": verdict.verdict,
    "instruct": instruct.verdict,
}
"""By the name that entries carry."""


def judge(completion: str, entry: Entry) -> Verdict:
    """Whether a completion answers a problem, as the entry's verifier sees it.

    entry: {"verifier": "reasoning_gym", "math", "choice", "exact" or "instruct", …what that one needs}. `.correct`:
    full marks; `.answer`: what is answered; `.score`: marks in [0, 1]. What stands in a thought, <think>…</think> and
    the like, is no answer, and a completion that ends within one has none. Code of others (sympy, scorers of
    reasoning-gym) runs in a process of its own, for 5 seconds at most. No completion makes it raise. Raises
    QTargetError for an entry that no verifier can read.
    """
    name = entry.get("verifier")
    if name not in VERIFIERS:
        raise QTargetError(f"an entry's verifier must be one of {', '.join(VERIFIERS)}, got {name!r}")
    try:
        return VERIFIERS[name](after_thought(completion), entry)
    except KeyError as missing:
        raise QTargetError(f"an entry of the verifier {name} lacks {missing}: {dict(entry)}") from missing
