"""One text and no other: {"verifier": "exact", "answer": text}."""

from __future__ import annotations

from qtarget.evaluate.verify.verdict import Entry, Verdict, final_answer, normal


def verdict(completion: str, entry: Entry) -> Verdict:
    """Equal but for case, white space and Unicode's spellings; of a worked solution, what follows the last ####."""
    answer = normal(final_answer(completion))
    return Verdict(answer == normal(final_answer(str(entry["answer"]))), answer)
