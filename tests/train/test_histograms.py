"""Histograms of the tokens trained on, and the table of those that are trusted least and most."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training import batches, eight_rows, module

from qtarget.cli import run as qtarget_cli
from qtarget.data.batch import Batch
from qtarget.math.loss import IGNORE, LossOutput
from qtarget.model.builtin import tiny_tokenizer
from qtarget.train.histograms import BINS, RANGES, TokenHistograms
from qtarget.train.trust import AFTER, BEFORE, EACH, trust_table

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees


def spread(count: int = 500) -> LossOutput:
    """Statistics as no design would make them: γ and w beyond their ranges too, and some that are no number."""
    random = torch.Generator().manual_seed(0)
    empty = torch.zeros(count)
    names = ("loss", "mass", "trust", "entropy", "gap", "kl_to_target", "kl_prior", "prior_nll")
    reliance = torch.rand(count, generator=random) * 1.4 - 0.2
    reliance[:7] = torch.nan
    return LossOutput(
        reliance=reliance,
        weight=torch.rand(count, generator=random) * 6,
        nll=torch.rand(count, generator=random) * 3,
        total=empty.sum(),
        **dict.fromkeys(names, empty),
    )


def test_counts_are_numpys_and_what_lies_outside_is_in_the_outermost_bins() -> None:
    out, counted = spread(), TokenHistograms()
    for half in (slice(0, 200), slice(200, None)):
        part = replace(out, reliance=out.reliance[half], weight=out.weight[half], nll=out.nll[half])
        counted.update(part, torch.zeros(len(part.nll), dtype=torch.bool))
    found = counted.compute_until_next()
    values = (out.reliance[7:], out.weight, (-out.nll).exp())
    for (name, (low, high)), held in zip(RANGES.items(), values, strict=True):
        expected, _ = np.histogram(held.clamp(low, high).numpy(), bins=BINS, range=(low, high))
        assert (found[name].low, found[name].high, found[name].counts) == (low, high, expected.tolist())
    assert counted.compute_until_next() == found  # nothing has come since
    counted.update(out, torch.zeros(len(out.nll), dtype=torch.bool))
    assert counted.compute_until_next() == found


def test_counts_go_on_from_a_saved_state() -> None:
    out, whole, before, after = spread(), TokenHistograms(), TokenHistograms(), TokenHistograms()
    wrong = torch.zeros(len(out.nll), dtype=torch.bool)
    before.update(out, wrong)
    before.compute_until_next()
    after.load_states([before.state_dict()])
    after.update(out, wrong)
    whole.update(out, wrong)
    whole.update(out, wrong)
    assert after.compute_until_next() == whole.compute_until_next()


def test_a_run_counts_every_token_once_and_keeps_the_counts(workdir: Path) -> None:
    """Three steps, evaluated after the first two and after the last: each line has the tokens since the one before."""
    small = ["model=tiny", "data.rows=16", "data.heldout_rows=4", "trainer.precision=32-true", "eval.new_tokens=2"]
    steps = ["trainer.max_steps=3", "trainer.eval_every=2", "trainer.log_every=1", "checkpoint.save=false"]
    assert qtarget_cli(["train", "target=dft", *small, *steps]) == 0
    (folder,) = workdir.glob("outputs/runs/*")
    lines = [json.loads(line) for line in (folder / "histograms.jsonl").read_text().splitlines()]
    measured = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3]
    totals = [{name: sum(one["counts"]) for name, one in line.items() if "/" in name} for line in lines]
    tokens = totals[1]["histogram/p"]
    assert totals == [dict.fromkeys(RANGES, 2 * tokens), dict.fromkeys(RANGES, tokens)]
    # DFT: γ = p(y), so both are counted alike, and their mean is the logged one up to the bins' width
    assert lines[1]["histogram/reliance"] == lines[1]["histogram/p"]
    (gamma,) = (line["target/reliance"] for line in measured if line["step"] == 3 and "target/reliance" in line)
    middles = [(place + 0.5) / BINS for place in range(BINS)]
    mean = np.average(middles, weights=lines[1]["histogram/reliance"]["counts"])
    assert mean == pytest.approx(gamma, abs=0.5 / BINS)


def decode(ids: list[int]) -> str:
    return " ".join(map(str, ids))


def read(design: str) -> tuple[list[dict[str, object]], list[Batch], LossOutput]:
    """The table, the batches it is of, and what the design says of them when they are read at once."""
    trained, read = module(design), batches(eight_rows(), batch_size=3)
    table = trust_table(trained, read, decode)
    (whole,) = batches(eight_rows(), batch_size=8)
    with torch.no_grad():
        trained.policy.eval()
        return table, [whole], trained.token_loss(whole)


def test_the_table_holds_the_least_and_the_most_trusted_tokens() -> None:
    table, (batch,), out = read("dft")
    trust = out.trust.sort().values.tolist()
    assert [row["trusted"] for row in table] == ["least"] * EACH + ["most"] * EACH
    assert [row["trust"] for row in table] == pytest.approx(trust[:EACH] + trust[::-1][:EACH], rel=1e-4)
    ids = batch.input_ids.tolist()
    for row in table:
        assert row["reliance"] == pytest.approx(row["p"], rel=1e-4)
        assert row["weight"] == 1.0
        before, token, after = str(row["before"]).split(), str(row["token"]).split(), str(row["after"]).split()
        assert (len(token), len(before) <= BEFORE, len(after) <= AFTER) == (1, True, True)
        written = ["", *before, *token, *after, ""]
        assert any(" ".join(written) in f" {decode(line)} " for line in ids)


def test_wrong_tokens_are_told() -> None:
    """By their text and what stands before it, against the truth that the batch carries."""
    table, (batch,), _ = read("sft")
    assert len(table) == 2 * EACH
    spots = (batch.labels != IGNORE).nonzero().tolist()
    known = {
        (
            decode(batch.input_ids[row, max(0, column + 1 - BEFORE) : column + 1].tolist()),
            str(int(batch.labels[row, column])),
        ): bool(batch.columns["wrong"][row, column])
        for row, column in spots
    }
    assert all(known[str(row["before"]), str(row["token"])] == row["wrong"] for row in table)
    assert {row["wrong"] for row in table} == {True, False}


def test_training_goes_on_as_if_nobody_had_looked() -> None:
    trained = module("dft")
    before = torch.get_rng_state()
    trust_table(trained, batches(eight_rows(), batch_size=8), tiny_tokenizer().decode)
    assert trained.policy.training
    assert torch.equal(torch.get_rng_state(), before)
    assert trained.histograms.compute_until_next() == {}
