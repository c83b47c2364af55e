"""`qtarget data --audit`: rows that contradict the model, or each other, are found, ranked and written out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from qtarget.cli import run as qtarget_cli
from qtarget.config.run_config import RunConfig
from qtarget.model import provide
from qtarget.run import build
from qtarget.run.audit import CACHED, Audit, audit
from qtarget.run.plan import make_plan

FILES = ["data=files", "data.source.path=rows.jsonl", "data.source.heldout_share=0", "model=tiny"]
LONG = "is what comes out of it, as far as anybody can tell today."


@pytest.fixture(autouse=True)
def own_cache(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTARGET_CACHE", str(workdir / "cache"))


def write(*rows: Mapping[str, Any]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def pairs(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"What is {index} + {index}?", "completion": f"{2 * index} {LONG}"} for index in range(count)]


def audited(*overrides: str) -> Audit:
    return audit(RunConfig.compose([*CACHED, *FILES, *overrides]))


def reasons(result: Audit) -> dict[int, list[str]]:
    return {row.example.row: row.reasons for row in result.rows if row.reasons}


def test_rows_that_repeat_contradict_stop_short_or_leak_are_named() -> None:
    same = {"prompt": "what is  4 + 4?", "completion": f"8 {LONG.upper()}"}
    other = {"prompt": "What is 5 + 5?", "completion": "eleven"}
    cut = {"prompt": "cut", "completion": f"9 {LONG}"[:44]}
    leak = {"prompt": "leak", "completion": "Ok.<|im_end|> Human: and?"}
    spoken = {"prompt": "say Human:", "completion": "A tag <b>, and a human: me."}
    write(*pairs(20), same, other, cut, leak, spoken)
    assert reasons(audited()) == {
        5: ["the same as row 21"],
        21: ["the same as row 5"],
        6: ["another answer than row 22"],
        22: ["another answer than row 6"],
        23: [f"ends as if cut: …{cut['completion'][-20:]}"],
        24: ["holds a mark of a chat template: <|im_end|>"],
    }


def test_each_pair_of_rows_that_ask_the_same_is_told_by_itself() -> None:
    ask = "What is 4 + 4?"
    write(*({"prompt": ask, "completion": answer} for answer in ("8", " 8", "9")), {"prompt": "q", "completion": "8"})
    assert reasons(audited()) == {
        1: ["the same as row 2", "another answer than row 3"],
        2: ["the same as row 1", "another answer than row 3"],
        3: ["another answer than row 1, 2"],
    }


def test_rows_that_differ_in_a_word_or_two_are_nearly_the_same() -> None:
    """By the share of word triples: of 27 a changed word in the middle takes 3 and brings 3, 24 / 30."""
    words = [f"word{index}" for index in range(28)]
    changed = [*words[:10], "Changed", *words[11:]]
    other = [f"other{index}" for index in range(28)]
    asks = [{"prompt": " ".join(held), "completion": "so."} for held in (words, changed, other)]
    write(*pairs(3), *asks)
    assert reasons(audited()) == {4: ["nearly the same as row 5 (0.80)"], 5: ["nearly the same as row 4 (0.80)"]}


def test_answers_without_a_closing_mark_are_not_cut_where_that_is_the_way_of_the_data() -> None:
    write(*({"prompt": f"q {index}", "completion": "word " * (10 + index)} for index in range(10)))
    assert reasons(audited()) == {}


def test_the_ranking_is_by_the_model_s_own_nll() -> None:
    """Against a pass of the model without the cache: log p of every supervised token, row by row."""
    write(*pairs(6), {"prompt": "zz", "completion": "Zq~"})
    result = audited("trainer.precision=32-true")
    policy = provide.load_policy(result.plan.model, vocab_size=len(result.plan.tokenizer)).eval()
    for row in result.rows:
        ids = torch.tensor([row.example.input_ids])
        with torch.no_grad():
            hidden = policy(ids, None)[0]
            logp = torch.log_softmax(policy.head.logits(hidden, hidden.dtype), dim=-1)
        labels = [index for index in range(1, len(row.example)) if row.example.supervised[index]]
        own = [float(logp[index - 1, row.example.input_ids[index]]) for index in labels]
        assert row.logp.tolist() == pytest.approx(own, abs=1e-4)
        assert row.worst == min(zip(own, labels, strict=True))[1]
    assert [row.nll for row in result.ranked()] == sorted((row.nll for row in result.rows), reverse=True)
    before, token, behind, probability = result.around_worst(result.ranked()[0])
    whole = result.plan.tokenizer.decode(list(result.ranked()[0].example.input_ids))
    assert f"{before}{token}{behind}" in whole
    assert 0 < probability < 1


def test_prompts_that_are_taught_are_no_answers() -> None:
    """data.prompt_weight supervises the whole row: what the audit ranks and compares is the reply all the same."""
    write(*pairs(20), {"prompt": "What is 4 + 4?", "completion": "nine"})
    plain, weighted = audited(), audited("data.prompt_weight=0.25")
    assert reasons(weighted) == reasons(plain) == {5: ["another answer than row 21"], 21: ["another answer than row 5"]}
    assert [(row.prompt, row.answer) for row in weighted.rows] == [(row.prompt, row.answer) for row in plain.rows]
    assert all(torch.equal(one.logp, other.logp) for one, other in zip(weighted.rows, plain.rows, strict=True))


def test_rows_are_scored_once_for_the_audit_and_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    write(*pairs(6))
    first = audited()
    monkeypatch.setattr(build, "scoring_model", lambda *_: pytest.fail("the rows are scored again"))
    assert torch.equal(audited().rows[3].logp, first.rows[3].logp)
    run = RunConfig.compose([*CACHED, *FILES, "target=one_minus_prior", "eval.kl_prior=false"])
    assert make_plan(run).caches["prior"].folder == first.plan.caches["prior"].folder


def test_where_truth_is_known_the_ranking_is_judged() -> None:
    """AUROC by its definition: the share of pairs of a wrong and a clean token whose wrong one is less likely."""
    write(*({"prompt": f"add {index}", "completion": f"It is {10 + index}."} for index in range(12)))
    result = audited("data/noise=wrong_answer", "data.noise.rate=0.5")
    scored = [
        (logp, row.example.wrong[index])
        for row in result.rows
        for index, logp in zip(
            (i for i in range(1, len(row.example)) if row.example.supervised[i]), row.logp.tolist(), strict=True
        )
    ]
    wrong, clean = ([logp for logp, is_wrong in scored if is_wrong is flag] for flag in (True, False))
    wins = sum((1.0 if w < c else 0.5 if w == c else 0.0) for w in wrong for c in clean)
    assert result.detection()["wrong tokens"] == pytest.approx(wins / len(wrong) / len(clean), abs=1e-5)
    assert "rows with wrong tokens" in result.detection()
    assert audited().detection() == {}


def test_the_command_prints_the_audit_and_writes_the_suspicious_rows(capfd: pytest.CaptureFixture[str]) -> None:
    write(*pairs(40), {"prompt": "leak \x1b[2J", "completion": "Ok.[/INST] \x1b[2J"})
    assert qtarget_cli(["data", *FILES, "--audit", "--suspicious", "odd/rows.jsonl", "--rows", "2"]) == 0
    text = capfd.readouterr().out
    assert "the rows that contradict the model most" in text
    assert "1 rows repeat or contradict another" in text
    assert "row 41: holds a mark of a chat template: [/INST]" in text
    assert "the model hardly knows this task" in text
    assert "\x1b" not in text
    written = [json.loads(line) for line in Path("odd/rows.jsonl").read_text().splitlines()]
    assert [row["row"] for row in written][:1] == [41]
    assert len(written) == 1 + 2  # a twentieth of the forty others
    assert written[0]["completion"] == "Ok.[/INST] \x1b[2J"
    assert qtarget_cli(["data", *FILES, "--suspicious", "x.jsonl"]) == 2
    assert "give that too" in capfd.readouterr().err
