"""Scorers that give full marks to an answer that is none are refused by name, others pass."""

from __future__ import annotations

import pytest

from qtarget.data.example import Demonstration
from qtarget.data.sources.conversation import exchange
from qtarget.data.sources.instruct import Instruct
from qtarget.data.sources.reasoning_gym import ReasoningGym
from qtarget.errors import QTargetError
from qtarget.evaluate.probing import check_scorers


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("coin_flip", "'0'"),
        ("complex_arithmetic", "'nan'"),
        ("game_of_life_halting", "''|'nan'"),
        ("puzzle24", ".* . .*"),
    ],
)
def test_a_scorer_that_cannot_tell_is_refused_with_the_answer_it_took(task: str, text: str) -> None:
    """reasoning-gym 0.1.25. puzzle24's scorer doesn't look at which numbers were given."""
    with pytest.raises(QTargetError, match=rf"the scorer of {task} gives full marks to ({text}).*trust_scorer=true"):
        check_scorers(ReasoningGym(task).rows("heldout", 16))
    check_scorers(ReasoningGym(task, trust_scorer=True).rows("heldout", 16))


@pytest.mark.parametrize("task", ["chain_sum", "gsm_symbolic", "circuit_logic", "syllogism", "n_queens", "gcd"])
def test_a_scorer_that_can_tell_passes(task: str) -> None:
    """Two answers only (circuit_logic, syllogism), several right ones (n_queens), one that is frequent (gcd: 1)."""
    check_scorers(ReasoningGym(task).rows("heldout", 16))


def test_instructions_pass() -> None:
    check_scorers(Instruct().rows("heldout", 16))


def verified(answers: list[str], verifier: str) -> list[Demonstration]:
    return [
        Demonstration(exchange(f"{row}?", answer), row=row, entry={"verifier": verifier, "answer": answer})
        for row, answer in enumerate(answers)
    ]


def test_a_frequent_answer_however_spelled_is_no_hit() -> None:
    check_scorers(verified(["0", "0.00", "-0", r"\frac{0}{3}", "0.0", "5", "6", "7"], "math"))
    check_scorers(verified(["yes", "no"] * 8, "exact"))


def test_answers_in_words_and_intervals_pass() -> None:
    check_scorers(verified([r"\text{Evelyn}", r"\text{Dan}", "[0,1)", "(3,4)", "x^2", "p - q"], "math"))


def test_own_answers_without_full_marks_are_refused() -> None:
    rows = [
        Demonstration(
            exchange("?", "fig"), row=row, entry={"verifier": "instruct", "checks": [{"check": "length", "count": 9}]}
        )
        for row in range(4)
    ]
    with pytest.raises(QTargetError, match="instruct gives no full marks to the task's own answers on 4 of 4 rows"):
        check_scorers(rows)
