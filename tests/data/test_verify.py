"""Verdicts: tables per verifier, and that no text makes one raise or hang."""

from __future__ import annotations

import os
import threading
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtarget import isolated
from qtarget.data.sources.reasoning_gym import ReasoningGym
from qtarget.data.verify import VERIFIERS, Verdict, gym, judge
from qtarget.data.verify.verdict import boxed
from qtarget.errors import QTargetError

CAPITALS = {"A": "Paris", "B": "Rome", "C": "New York", "D": "York"}
ANSWERS = {"yes": "yes", "no": "no", "maybe": "maybe"}
NUMBERS = {"A": "5", "B": "5.5", "C": "(1, 2)"}

CHOICES = [
    (r"so \boxed{B}", CAPITALS, "B"),
    (r"\boxed{A} or rather \boxed{\text{B}}", CAPITALS, "B"),
    ("It rains.\n#### B", CAPITALS, "B"),
    ("The answer is (B), since A is far.", CAPITALS, "B"),
    ("A. is wrong\nThe correct answer is: **B**", CAPITALS, "B"),
    ("the answer is option c.", CAPITALS, "C"),
    ("The answer is A. No, wait: the answer is B. I hope this answer is helpful.", CAPITALS, "B"),
    ("Answer:\nB\nbecause it is", CAPITALS, "B"),
    ("B", CAPITALS, "B"),
    ("b", CAPITALS, "B"),
    ("B.", CAPITALS, "B"),
    ("(B)", CAPITALS, "B"),
    ("B) Rome", CAPITALS, "B"),
    ("B - Rome", CAPITALS, "B"),
    ("B is correct", CAPITALS, "B"),
    ("Option B", CAPITALS, "B"),
    ("Rome", CAPITALS, "B"),
    ("  ROME. ", CAPITALS, "B"),
    ("New York", CAPITALS, "C"),
    ("York is it", CAPITALS, "D"),
    ("The answer is New York.", CAPITALS, "C"),
    ("\uff22", CAPITALS, "B"),  # a full-width B
    ("Thinking aloud…\nB", CAPITALS, "B"),
    ("A cat sat on B", CAPITALS, ""),
    ("A or B", CAPITALS, ""),
    ("A, B, C", CAPITALS, ""),
    ("Paris or Rome", CAPITALS, ""),
    ("A. Paris\nB. Rome", CAPITALS, ""),
    ("The answer is not A, but something else", CAPITALS, ""),
    ("E", CAPITALS, ""),
    ("Because", CAPITALS, ""),
    ("Romeo", CAPITALS, ""),
    ("", CAPITALS, ""),
    ("\ud800", CAPITALS, ""),
    ("B) Paris", CAPITALS, ""),
    ("The answer is A. Rome", CAPITALS, ""),
    (r"\boxed{C: New York}", CAPITALS, "C"),
    ("Rome is not the answer", CAPITALS, ""),
    ("The answer is: Rome isn't it", CAPITALS, ""),
    ("The answer is B because A is north of it", CAPITALS, "B"),
    ("<think>A?</think><answer>B</answer>", CAPITALS, "B"),
    ("<answer>A</answer>\nB", CAPITALS, "A"),
    ("Yes, it does.", ANSWERS, "yes"),
    ("maybe", ANSWERS, "maybe"),
    ("Nobody knows", ANSWERS, ""),
    ("The answer is no.", ANSWERS, "no"),
    ("Yes", {"A": "yes", "B": "no"}, "A"),
    ("yes or no", {"A": "yes", "B": "no"}, ""),
    ("5", NUMBERS, "A"),
    ("5.5", NUMBERS, "B"),
    ("5.25", NUMBERS, ""),
    ("(1, 2)", NUMBERS, "C"),
]


@pytest.mark.parametrize(("completion", "options", "answer"), CHOICES)
def test_the_option_chosen(completion: str, options: dict[str, str], answer: str) -> None:
    for key in options:
        entry = {"verifier": "choice", "answer": key, "options": options}
        assert judge(completion, entry) == Verdict(key == answer, answer)


@pytest.mark.parametrize(
    ("completion", "answer", "correct", "spelled"),
    [
        ("Oslo", "Oslo", True, "oslo"),
        (" oslo\n", "Oslo", True, "oslo"),
        ("New \t York", "new york", True, "new york"),
        ("\ufb01ne", "FINE", True, "fine"),  # the ligature fi
        ("STRASSE", "straße", True, "strasse"),
        ("e\u0301t\u00e9", "\u00e9te\u0301", True, "\u00e9t\u00e9"),
        ("thinking\n#### Oslo", "Oslo", True, "oslo"),
        ("thinking\n#### Oslo", "because\n#### oslo", True, "oslo"),
        ("Oslo.", "Oslo", False, "oslo."),
        ("", "Oslo", False, ""),
        ("\ud800", "Oslo", False, "\ud800"),
        ("Oslo " * 100_000, "Oslo", False, ("oslo " * 100_000).strip()),
    ],
)
def test_exact_texts(completion: str, answer: str, correct: bool, spelled: str) -> None:
    assert judge(completion, {"verifier": "exact", "answer": answer}) == Verdict(correct, spelled)


MATHS = [
    ("42", "42", True, "42"),
    ("The answer is 42.", "42", True, "42"),
    ("12 + 30 = 42 apples", "42", True, "42"),
    ("first 42, then 17", "42", False, "17"),
    (r"so \boxed{42}, not 17", "42", True, "42"),
    (r"\boxed{17} … \boxed{42}", "42", True, "42"),
    ("17 and 18\n#### 42", "42", True, "42"),
    ("#### 1,234", "1234", True, "1234"),
    ("#### $42", "42", True, "42"),
    ("#### 42 apples", "42", True, "42"),
    ("#### The total is 42.", "42", True, "42"),
    ("42.0", "42", True, "42"),
    (r"\boxed{\frac12}", "0.5", True, "1/2"),
    (r"\boxed{0.5}", r"\frac{1}{2}", True, "1/2"),
    ("it is 1/2", r"\frac{1}{2}", True, "1/2"),
    (r"the result is $\dfrac{2}{4}$", "0.5", True, "1/2"),
    (r"\boxed{-3}", "3", False, "-3"),
    (r"\boxed{x^2 + 1}", "1 + x^2", True, "x**2 + 1"),
    ("#### 2x + 1", "1 + 2x", True, "2*x + 1"),
    ("#### 2x + 1", "2", False, "2*x + 1"),
    (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", True, "2*sqrt(3)"),
    (r"\boxed{\{1, 2\}}", r"\{2, 1\}", True, "{1, 2}"),
    (r"\boxed{50\%}", "50%", True, "1/2"),
    ("x = 5", "5", True, "5"),
    ("x + 1", "1 + x", True, "x + 1"),
    (r"\[ \frac12 \]", "0.5", True, "1/2"),
    (r"\boxed{Monday}", r"\text{Monday}", True, "monday"),
    ("#### Monday", "Tuesday", False, "monday"),
    (r"\boxed{\frac{1}{2", "0.5", False, None),
    (r"\boxed{\frac{}{}\sqrt[}{]{^_\left(}", "0.5", False, None),
    ("no number at all", "42", False, ""),
    ("", "42", False, ""),
    ("\ud800 42", "42", True, "42"),
    ("1 " * 500_000 + "42", "42", True, None),
    ("9" * 100_000, "42", False, None),
]


@pytest.mark.parametrize(("completion", "answer", "correct", "spelled"), MATHS)
def test_mathematical_answers(completion: str, answer: str, correct: bool, spelled: str | None) -> None:
    verdict = judge(completion, {"verifier": "math", "answer": answer})
    assert verdict.correct == correct
    assert spelled is None or verdict.answer == spelled


def test_mathematics_is_process_ofd_off_the_main_thread_too() -> None:
    found: list[Verdict] = []
    entry = {"verifier": "math", "answer": "0.5"}
    threads = [threading.Thread(target=lambda: found.append(judge(r"\frac12", entry))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Verdict(True, "1/2")] * 3


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{a{b}c}", "a{b}c"),
        (r"\boxed{a} \boxed {b}", "b"),
        (r"\boxed{a} \boxed{b", "a"),
        (r"\boxed{\{1\}}", r"\{1\}"),
        (r"}}\boxed{a}", "a"),
        (r"{\boxed{a}", "a"),
        ("boxed{a}", None),
        ("", None),
    ],
)
def test_boxes_are_read_by_their_braces(text: str, found: str | None) -> None:
    assert boxed(text) == found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Judges that have a second a request, and a folder of their own to be imported from."""
    monkeypatch.setattr(isolated, "SECONDS", 1.0)
    monkeypatch.setattr(isolated, "_process_of", cache(isolated._process_of.__wrapped__))  # the patient ones are kept
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_process_that_hangs_dies_or_raises_is_said_and_the_next_request_answered(impatient: Path) -> None:
    """What a text can make sympy or eval do: run for ever in Python or in C, end the process, print, raise."""
    (impatient / "evaluates.py").write_text("print('not a reply')\ndef answer(text): return eval(text)")

    def asked(text: str) -> Any:
        try:
            return isolated.ask("evaluates", text)
        except isolated.UnansweredError as reason:
            return str(reason)

    late = "no answer within 1 seconds, or its process ended"
    assert asked("6 * 7") == 42
    assert asked("[0 for _ in iter(int, 1)]") == late
    assert asked("sum(iter(int, 1))") == late  # within C code, where no signal handler of Python's would run
    assert asked("__import__('os')._exit(0)") == late
    assert asked("exit()") == "SystemExit: None"
    assert asked("1 / 0") == "ZeroDivisionError: division by zero"
    assert asked("'\\ud800' + chr(0xd800)") == "\ud800\ud800"
    assert asked("print('x' * 100_000)") is None
    process = isolated._process_of("evaluates", os.getpid())._process
    assert process
    process.kill()  # between two requests
    process.wait()
    assert asked("6 * 7") == 42


def test_a_process_that_cannot_start_is_no_verdict(impatient: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (impatient / "broken.py").write_text("import no_such_library")
    with pytest.raises(RuntimeError, match="runs broken did not start"):
        isolated.ask("broken", "text")
    assert "no_such_library" in capfd.readouterr().err


def test_a_reply_that_nobody_waited_for_is_not_the_next_ones(impatient: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (impatient / "echoes.py").write_text("def answer(text): return text")
    assert isolated.ask("echoes", "first") == "first"

    def interrupted(_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(isolated.pickle, "load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            isolated.ask("echoes", "second")
    assert isolated.ask("echoes", "third") == "third"


def test_a_tower_of_powers_ends(impatient: Path) -> None:
    assert judge(r"\boxed{9^{9^{9^{9^9}}}}", {"verifier": "math", "answer": "1"}) == Verdict(False, "9^{9^{9^{9^9}}}")


COUNTDOWN = {
    "verifier": "reasoning_gym",
    "question": "Reach 7 with 3 and 4.",
    "answer": "3 + 4",
    "metadata": {"source_dataset": "countdown", "numbers": [3, 4], "target": 7, "expression": "3 + 4"},
}
"""reasoning-gym's scorer evaluates the answer, and gives part marks."""


def test_scorers_give_partial_marks() -> None:
    assert judge("4 + 3", COUNTDOWN) == Verdict(True, "4 + 3", 1.0)
    wrong = judge("3 * 4", COUNTDOWN)
    assert (wrong.correct, 0 < wrong.score < 1) == (False, True)
    assert (Verdict(True, "").score, Verdict(False, "").score) == (1.0, 0.0)


def test_a_scorer_that_fails_gives_no_marks_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym, "_warned", set())
    metadata = {"source_dataset": "prime_factorization", "number": 6, "factors": [2, 3]}
    entry = {"verifier": "reasoning_gym", "question": "Factors of 6?", "answer": "2 × 3", "metadata": metadata}
    with pytest.warns(UserWarning, match=r"scorer of prime_factorization failed on an answer \(ValueError: "):
        assert judge("(1,", entry) == Verdict(False, "(1,", 0.0)
    assert not judge("1/0", entry).correct  # and no warning, which would be an error
    assert judge("2 × 3", entry).correct


INSTRUCTED = [
    ("pear, fig", [{"check": "says", "value": ["pear", "fig"]}], 1.0),
    ("PEAR\n- Fig!", [{"check": "says", "value": ["pear", "fig"]}], 1.0),
    ("fig, pear", [{"check": "says", "value": ["pear", "fig"]}], 0.0),
    ("pear and fig", [{"check": "says", "value": ["pear", "fig"]}], 0.0),
    ("13", [{"check": "says", "value": ["3"]}], 0.0),
    ("Three.", [{"check": "says", "value": ["3"]}], 1.0),
    ("The answer is 3", [{"check": "says", "value": ["3"]}, {"check": "length", "count": 1}], 0.5),
    ("x a-b y", [{"check": "contains", "value": "a-b"}], 1.0),
    ("A-B", [{"check": "contains", "value": "a-b"}], 0.0),
    ("a-bx", [{"check": "contains", "value": "a-b"}], 0.0),
    ("A 1 ÉTÉ!", [{"check": "upper"}], 1.0),
    ("1!", [{"check": "upper"}], 0.0),
    ("Aa", [{"check": "upper"}], 0.0),
    ("a\n\n b ", [{"check": "lines", "count": 2}], 1.0),
    ("- a\n-b", [{"check": "bullets", "count": 2}], 1.0),
    ("- a\n* b", [{"check": "bullets", "count": 2}], 0.0),
    ("- a\n- ", [{"check": "bullets", "count": 2}], 0.0),
    ("Sure:\n- a", [{"check": "bullets", "count": 1}], 0.0),
    ("a; b", [{"check": "separated", "by": ";", "count": 2}], 1.0),
    ("a; ", [{"check": "separated", "by": ";", "count": 2}], 0.0),
    ("a;\nb", [{"check": "separated", "by": ";", "count": 2}], 0.0),
    ("<a>1</a>", [{"check": "wrapped", "left": "<a>", "right": "</a>"}], 1.0),
    ("[", [{"check": "wrapped", "left": "[", "right": "]"}], 0.0),
    ('"', [{"check": "wrapped", "left": '"', "right": '"'}], 0.0),
    ("Result: 3", [{"check": "starts_with", "value": "Result:"}], 1.0),
    ("3\nDone.\n", [{"check": "ends_with", "value": "Done."}], 1.0),
    ("3\nDone", [{"check": "ends_with", "value": "Done."}], 0.0),
    ('{"a": "3", "b": 4}', [{"check": "json_object", "value": {"b": 4, "a": 3}}], 1.0),
    ('{"a": 3, "c": 1}', [{"check": "json_object", "value": {"a": 3}}], 0.0),
    ('{"a": [3]}', [{"check": "json_object", "value": {"a": 3}}], 0.0),
    ('{"a": [3]}', [{"check": "json_keys", "keys": ["a"]}], 1.0),
    ('["a"]', [{"check": "json_keys", "keys": ["a"]}], 0.0),
    ("[1, 2]", [{"check": "json_list", "count": 2}], 1.0),
    ("[1, 2", [{"check": "json_list", "count": 2}], 0.0),
    ("[" * 100_000, [{"check": "json_list", "count": 1}], 0.0),
    ("9" * 100_000, [{"check": "json_list", "count": 1}], 0.0),
    ("", [{"check": "says", "value": ["a"]}, {"check": "length", "count": 3}, {"check": "upper"}], 0.0),
]


@pytest.mark.parametrize(("completion", "checks", "score"), INSTRUCTED)
def test_checks_of_instructions(completion: str, checks: list[dict[str, Any]], score: float) -> None:
    verdict = judge(completion, {"verifier": "instruct", "checks": checks})
    assert (verdict.correct, verdict.score) == (score == 1.0, score)
    assert verdict.answer == " ".join(completion.split())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "verifier must be one of reasoning_gym, math, choice, exact, instruct, got None"),
        ({"verifier": "maths"}, "got 'maths'"),
        ({"verifier": "choice", "answer": "A"}, "an entry of the verifier choice lacks 'options'"),
        ({"verifier": "math"}, "an entry of the verifier math lacks 'answer'"),
        ({"verifier": "instruct", "checks": [{"check": "sing"}]}, "check must be one of says, .*, got 'sing'"),
        ({"verifier": "instruct", "checks": [{"check": "lines"}]}, "the check lines missing a required argument"),
        ({"verifier": "instruct", "checks": [{"check": "upper", "n": 1}]}, "got an unexpected keyword argument 'n'"),
    ],
)
def test_entries_that_no_verifier_can_read_are_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        judge("text", entry)


ODD = st.text(st.characters(exclude_categories=[])) | st.from_regex(
    r"(\\boxed\{|\}|\{|#### |answer is |\\frac|\\sqrt|\^|[0-9]|[A-D]|\(|\)|,|\.|-|/|\$|yes|\[|\]|\"| |\n){0,30}",
    fullmatch=True,
)
GENERATED = ReasoningGym("chain_sum").rows("heldout", 1)[0].entry
ENTRIES: dict[str, Any] = {
    "reasoning_gym": GENERATED,
    "math": {"verifier": "math", "answer": r"\frac{1}{2}"},
    "choice": {"verifier": "choice", "answer": "B", "options": CAPITALS},
    "exact": {"verifier": "exact", "answer": "Oslo"},
    "instruct": {
        "verifier": "instruct",
        "checks": [check for _, checks, _ in INSTRUCTED for check in checks],
    },
}


@pytest.mark.parametrize("name", VERIFIERS)
@given(text=ODD)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_text_makes_a_verifier_raise(name: str, text: str) -> None:
    verdict = judge(text, ENTRIES[name])
    assert 0 <= verdict.score <= 1
    assert verdict.correct == (verdict.score == 1)
    assert isinstance(verdict.answer, str)
    assert judge(text, ENTRIES[name]) == verdict
