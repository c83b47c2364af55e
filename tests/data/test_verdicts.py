"""Mathematical verdicts: a table of pairs, right and wrong, each under the rule it stands for."""

from __future__ import annotations

import time

import pytest
from verdict_pairs import COMPLETIONS, RULES

import qtarget


def judged(said: str, answer: str) -> bool:
    return bool(qtarget.judge(rf"\boxed{{{said}}}", {"verifier": "math", "answer": answer}).correct)


@pytest.mark.parametrize("rule", RULES)
def test_the_verdict_is_that_of_mathematics(rule: str) -> None:
    judged_wrong = [(gold, said) for gold, right, _ in RULES[rule] for said in (gold, *right) if not judged(said, gold)]
    judged_right = [(gold, said) for gold, _, wrong in RULES[rule] for said in wrong if judged(said, gold)]
    assert (judged_wrong, judged_right) == ([], [])


@pytest.mark.parametrize("rule", COMPLETIONS)
def test_the_answer_is_found_where_a_completion_states_it(rule: str) -> None:
    misjudged = [
        (completion, answer)
        for completion, answer, right in COMPLETIONS[rule]
        if qtarget.judge(completion, {"verifier": "math", "answer": answer}).correct != right
    ]
    assert misjudged == []


def test_the_table_has_both_directions() -> None:
    right = sum(1 + len(right) for rows in RULES.values() for _, right, _ in rows)
    wrong = sum(len(wrong) for rows in RULES.values() for _, _, wrong in rows)
    assert (right > 250, wrong > 250) == (True, True)


def test_a_number_of_any_size_gets_its_verdict_in_time() -> None:
    start = time.monotonic()
    assert judged("9^{9^{9^{9}}}", "9^{9^{9^9}}")
    assert not judged(r"\frac{1}{9^{9^{9^{9}}}}", "0")
    assert time.monotonic() - start < 5


THINKING = [
    ({"verifier": "exact", "answer": "Oslo"}, "Oslo", "Bergen"),
    ({"verifier": "choice", "answer": "B", "options": {"A": "Paris", "B": "Rome"}}, "B", "A"),
    ({"verifier": "math", "answer": "12"}, "12", "11"),
    ({"verifier": "instruct", "checks": [{"check": "says", "value": ["fig"]}]}, "fig", "pear"),
    (
        {
            "verifier": "reasoning_gym",
            "question": "6 * 7?",
            "answer": "42",
            "metadata": {"source_dataset": "chain_sum"},
        },
        "42",
        "41",
    ),
]


@pytest.mark.parametrize(("entry", "right", "wrong"), THINKING, ids=[row[0]["verifier"] for row in THINKING])
def test_what_stands_in_a_thought_is_no_answer_to_any_verifier(entry: dict[str, str], right: str, wrong: str) -> None:
    assert qtarget.judge(right, entry).correct
    assert qtarget.judge(f"<think>\n{wrong}\n</think>\n\n{right}", entry).correct
    assert qtarget.judge(f"{wrong}\n</think>\n\n{right}", entry).correct  # the prompt opened it
    assert not qtarget.judge(f"<think>\n{right}\n</think>\n\n{wrong}", entry).correct
    assert not qtarget.judge(f"<think>\n{right}", entry).correct
    assert not qtarget.judge(f"<think>\n{right}\n\n#### {right}\n", entry).correct
    assert not qtarget.judge(f"[THINK]{right}", entry).correct
