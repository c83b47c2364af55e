"""Is an answer right? Asked of the verifier that a problem's entry names.

An entry is what a data source keeps for a verifier: {"verifier": name, …what that one needs}. No completion makes a
verifier raise or hang.
"""

from __future__ import annotations

from qtarget.data.verify import choice, gym, instructions, mathematics, verdict
from qtarget.data.verify.verdict import Entry, Verdict, Verifier, after_thought, final_answer, verifier_name
from qtarget.errors import QTargetError

__all__ = ["VERIFIERS", "Entry", "Verdict", "Verifier", "final_answer", "judge"]

VERIFIERS: dict[str, Verifier] = {
    "reasoning_gym": gym.verdict,
    "math": mathematics.verdict,
    "choice": choice.verdict,
    "exact": verdict.verdict,
    "instruct": instructions.verdict,
}
"""By the name that entries carry."""


def judge(completion: str, entry: Entry) -> Verdict:
    """Whether a completion answers a problem, as the entry's verifier sees it.

    entry: {"verifier": "reasoning_gym", "math", "choice", "exact" or "instruct", …what that one needs}; an object with
    the call of `Verifier` may stand in the place of a name, which none can that was read from data. `.correct`: full
    marks; `.answer`: what is answered; `.score`: marks in [0, 1]. What stands in a thought, <think>…</think> and
    the like, is no answer, and a completion that ends within one has none. Code of others (sympy, scorers of
    reasoning-gym) runs in a process of its own, for 5 seconds at most. No completion makes one of ours raise. Raises
    QTargetError for an entry that no verifier can read, and where one of the user's fails or gives no Verdict.
    """
    name = entry.get("verifier")
    if callable(name):
        return _judged_by_users(name, after_thought(completion), entry)
    if not isinstance(name, str) or name not in VERIFIERS:
        raise QTargetError(
            f"an entry's verifier must be one of {', '.join(VERIFIERS)}, got {name!r}; one of your own is no name but "
            "the object, which a source has from its yaml: verifier: {_target_: MODULE.CLASS}"
        )
    try:
        return VERIFIERS[name](after_thought(completion), entry)
    except KeyError as missing:
        raise QTargetError(f"an entry of the verifier {name} lacks {missing}: {dict(entry)}") from missing


def _judged_by_users(verifier: Verifier, completion: str, entry: Entry) -> Verdict:
    name = verifier_name(verifier)
    try:
        verdict = verifier(completion, entry)
    except QTargetError:
        raise
    except Exception as error:
        raise QTargetError(
            f"{name} failed on the completion {completion[:60]!r}: {type(error).__name__}: {error}. A verifier gives a "
            "Verdict for every text"
        ) from error
    if not isinstance(verdict, Verdict):
        raise QTargetError(f"{name} must give a qtarget.data.verify.Verdict, got {type(verdict).__name__}")
    if not 0 <= verdict.score <= 1:
        raise QTargetError(f"{name} gave {verdict.score} marks: partial lies in [0, 1]")
    return verdict
