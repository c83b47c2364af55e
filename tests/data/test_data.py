"""Sources, splits, noise and its truth, lengths, step windows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtarget.data.example import Demonstration
from qtarget.data.lightning_data import SFTData
from qtarget.data.module import DataConfig, prepare
from qtarget.data.noise import WrongAnswer
from qtarget.data.sources.jsonl import Jsonl
from qtarget.data.sources.reasoning_gym import ReasoningGym
from qtarget.data.verify import final_answer, judge
from qtarget.errors import QTargetError
from qtarget.model.builtin import tiny_tokenizer

ARITHMETIC = ReasoningGym("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}, system="")


def question(row: Demonstration) -> str:
    return row.prompt[-1]["content"]


def answer_rows(*answers: str) -> list[Demonstration]:
    return [
        Demonstration([{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}], row=index)
        for index, answer in enumerate(answers)
    ]


def test_splits_are_disjoint_and_stable() -> None:
    train, reserve, heldout = (ARITHMETIC.rows(split, 60) for split in ("train", "reserve", "heldout"))
    questions = [question(row) for row in (*train, *reserve, *heldout)]
    assert len(set(questions)) == 180
    assert [question(row) for row in ARITHMETIC.rows("heldout", 20)] == [question(row) for row in heldout[:20]]


def test_worked_solutions_are_completions_that_verify() -> None:
    rows = ReasoningGym("gsm_symbolic", answer="answer_cot").rows("heldout", 5)
    assert all(len(row.completion) > 40 and row.entry is not None for row in rows)
    assert all(judge(row.completion, row.entry).correct for row in rows if row.entry)


def test_answers_are_judged_by_the_tasks_own_scorer() -> None:
    row = ARITHMETIC.rows("heldout", 1)[0]
    assert row.entry is not None
    truth = int(row.completion)
    assert judge(str(truth), row.entry).correct
    assert judge(f" {truth}.0 ", row.entry).correct
    assert judge(f"reasoning 17 #### {truth}", row.entry).correct
    assert not judge(str(truth + 1), row.entry).correct
    assert not judge("", row.entry).correct
    assert final_answer("a #### b #### 3 ") == "3"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ReasoningGym("chain_sun"), "refuses task 'chain_sun'"),
        (ReasoningGym("chain_sum", {"min_terms": 9, "max_terms": 2}), "refuses task"),
        (ReasoningGym("graph_color"), "graph_color gives no answer to its problems, only a scorer"),
        (ReasoningGym("chain_sum", answer="answer_cot"), "no worked solution 'answer_cot'"),
        (ReasoningGym("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}), "yields only"),
    ],
)
def test_what_a_task_cannot_give_is_said(source: ReasoningGym, message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        source.rows("heldout", 300)


@given(
    answers=st.lists(st.integers(-99, 999), min_size=1, max_size=40),
    rate=st.floats(0, 1),
    spread=st.integers(1, 30),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_noise_changes_its_share_and_keeps_the_truth(answers: list[int], rate: float, spread: int, seed: int) -> None:
    rows = answer_rows(*(f"that is {answer}." for answer in answers))
    noise = WrongAnswer(rate, spread, seed)
    noisy = noise(rows)
    changed = [(old, new) for old, new in zip(rows, noisy, strict=True) if old != new]
    assert len(changed) == round(rate * len(rows))
    for old, new in changed:
        truth, wrong = old.completion[8:-1], new.completion[8:-1]
        assert 1 <= abs(int(truth) - int(wrong)) <= spread
        ((low, high),) = new.wrong
        assert (new.completion[:8], new.completion[high:]) == ("that is ", ".")
        assert 8 <= low < high
        assert truth.startswith(new.completion[8:low])  # what stands before the blamed characters is true
        assert not truth.startswith(new.completion[8 : low + 1]) or truth.startswith(wrong)
    assert all(row.wrong == () for old, row in zip(rows, noisy, strict=True) if old == row)
    assert noisy == noise(rows)


def test_noise_spoils_only_the_final_number_of_a_worked_solution() -> None:
    (row,) = WrongAnswer(1.0, spread=1)(answer_rows("7 + 5 = 12\n#### 12"))
    assert row.completion in ("7 + 5 = 12\n#### 11", "7 + 5 = 12\n#### 13")
    ((low, high),) = row.wrong
    assert row.completion[low:high] in ("1", "3")


def test_noise_takes_decimals() -> None:
    (row,) = WrongAnswer(1.0, spread=1)(answer_rows("it costs 2.50 dollars"))
    assert row.completion in ("it costs 1.50 dollars", "it costs 3.50 dollars")


@pytest.mark.parametrize("rate", [-0.1, 1.1, "hot", True])
def test_noise_rate_is_checked(rate: Any) -> None:
    with pytest.raises(QTargetError, match=r"data.noise.rate must lie in \[0, 1\]"):
        WrongAnswer(rate)


def test_noise_without_a_number_names_the_row() -> None:
    with pytest.raises(QTargetError, match="row 1: wrong_answer noise found no number"):
        WrongAnswer(1.0)(answer_rows("12", "twelve"))


def config(**changes: Any) -> DataConfig:
    return replace(DataConfig(source=ARITHMETIC, rows=12, heldout_rows=6), **changes)


def test_reserve_rows_are_clean_and_counted() -> None:
    prepared = prepare(config(reserve_rows=5, noise=WrongAnswer(0.5)), tiny_tokenizer(), 1024)
    marked = sum(sum(example.wrong) for example in prepared.train)
    assert {name: count for name, count in prepared.counts.items() if count} == {
        "asked": 17,
        "train": 17,
        "noisy": 6,
        "noisy_tokens": marked,
        "reserve": 5,
        "heldout_asked": 6,
        "heldout": 6,
        "heldout_share_of": 6,
    }
    assert prepared.dropped_in_words == ""
    assert 6 <= marked <= 3 * 6
    assert sum(any(example.wrong) for example in prepared.train) == 6
    assert not any(any(example.wrong) for example in prepared.heldout)


def test_long_rows_are_refused_dropped_or_cut() -> None:
    lengths = [len(example) for example in prepare(config(), tiny_tokenizer(), 1024).train]
    limit = sorted(lengths)[6]
    too_long = sum(length > limit for length in lengths)
    with pytest.raises(QTargetError, match=f"{too_long} of 12 rows are longer than {limit} tokens"):
        prepare(config(max_length=limit), tiny_tokenizer(), 1024)
    dropped = prepare(config(max_length=limit, truncation="drop"), tiny_tokenizer(), 1024)
    assert (dropped.counts["dropped_too_long"], dropped.counts["asked"]) == (too_long, 12)
    assert dropped.dropped_in_words.startswith(f"; {too_long} left out as too long")
    assert max(map(len, dropped.train)) <= limit
    cut = prepare(config(truncation="cut"), tiny_tokenizer(), max(lengths) - 1)
    assert len(cut.train) == 12
    assert cut.counts["cut"] == sum(length == max(lengths) for length in lengths)
    nothing = prepare(config(max_length=5, truncation="cut"), tiny_tokenizer(), 1024)
    assert (len(nothing.train), nothing.counts["dropped_too_long"], nothing.counts["cut"]) == (0, 12, 0)
    with pytest.raises(QTargetError, match="truncation must be one of error, drop, cut"):
        config(truncation="shorten")


@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_micro_batches_know_the_tokens_of_their_step(accumulate: int) -> None:
    """12 rows in batches of 2, so the last window of 5 is ragged."""
    prepared = prepare(config(), tiny_tokenizer(), 1024)
    loader = SFTData(prepared.train, 0, batch_size=2, accumulate=accumulate, seed=0).train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 6
    for start in range(0, 6, accumulate):
        step = batches[start : start + accumulate]
        tokens = sum(batch.supervised for batch in step)
        for batch in step:
            assert batch.window is not None
            assert batch.window.tokens == tokens
            assert batch.window.per_token_scale == pytest.approx(accumulate / tokens)


def test_order_follows_seed_and_epoch() -> None:
    prepared = prepare(config(), tiny_tokenizer(), 1024)

    def order(seed: int, epoch: int) -> list[Any]:
        loader = SFTData(prepared.train, 0, batch_size=4, accumulate=1, seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return [batch.input_ids.tolist() for batch in loader]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_spans_of_a_row_become_a_column_that_noise_moves_along(tmp_path: Path) -> None:
    """The tokens of "42" are critical; a wrong answer of another length keeps them where the answer is."""
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": f"{n}?", "completion": f"so 42, row {n + 100}", "critical": [[3, 5], [11, 14]]} for n in range(6)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    source = Jsonl(str(path), heldout_share=0.0, columns=["critical"])
    tokenizer = tiny_tokenizer()
    config = DataConfig(source, rows=6, heldout_rows=0, noise=WrongAnswer(1.0, spread=2000))
    for example in prepare(config, tokenizer, 1024).train:
        marked = [token for token, flag in zip(example.input_ids, example.columns["critical"], strict=True) if flag]
        answer = tokenizer.decode(example.input_ids).split("row ")[1]
        assert tokenizer.decode(marked) == "42" + re.match(r"-?\d+", answer).group()  # type: ignore[union-attr]
        assert any(example.wrong)


def test_the_final_answer_of_a_generated_problem_is_its_critical_column() -> None:
    prepared = prepare(DataConfig(ReasoningGym("chain_sum"), rows=4, heldout_rows=0), tiny_tokenizer(), 1024)
    for example in prepared.train:
        supervised = [flag for flag, on in zip(example.columns["critical"], example.supervised, strict=True) if on]
        assert supervised == [True] * (len(supervised) - 1) + [False]  # the answer, and not its end of turn


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        ("critical", {}, "columns must be a list"),
        (["wrong"], {}, "wrong is the noise's own"),
        (["critical"], {}, "'critical' must hold character spans"),
        (["critical"], {"critical": [[0, 3]]}, "which has 2 characters"),
        (["critical"], {"critical": [[1, 1]]}, "must hold character spans"),
    ],
)
def test_columns_that_are_none_are_refused(columns: Any, row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "42"} | row))
    with pytest.raises(QTargetError, match=message):
        Jsonl(str(path), heldout_share=0.0, columns=columns).rows("train", None)


QUESTIONS = """
import json, sys
from qtarget.data.sources.reasoning_gym import ReasoningGym
print(json.dumps([row.prompt[-1]["content"] for task in sys.argv[1:] for row in ReasoningGym(task).rows("train", 4)]))
"""


@pytest.mark.slow
def test_a_seed_gives_the_same_problems_in_every_process() -> None:
    """reasoning-gym 0.1.25 draws five tasks' problems from sets of texts, whose order Python varies by process.

    Every rank, every resumed run and every second start of one command would train on other rows.
    """
    command = [sys.executable, "-c", QUESTIONS, "isomorphic_strings", "ransom_note"]
    first, second = (
        subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("1", "2")
    )
    assert json.loads(first) == json.loads(second)


def test_another_seed_makes_other_problems() -> None:
    """reasoning-gym 0.1.25 draws problem i of a seed from seed + i: seed 1 is seed 0 from its second problem on.

    Held-out rows of another seed would have been those that were trained on, and runs over seeds the same run.
    """
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 3, "max_digits": 3}
    drawn = [
        [row.prompt[-1]["content"] for row in ReasoningGym("chain_sum", options, seed=seed).rows("train", 50)]
        for seed in (0, 1, 2)
    ]
    assert all(len(set(one) & set(other)) < 3 for one in drawn for other in drawn if one is not other)
