"""Runs over several seeds: what is taken together, intervals that cover, differences that are paired."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from qtarget.cli import run as qtarget_cli
from qtarget.compare.command import CompareOptions, compare
from qtarget.compare.group_table import Grouping, grouped_rows
from qtarget.compare.groups import group_runs, rows
from qtarget.compare.pairs import compare_paired
from qtarget.errors import QTargetError
from qtarget.evaluate.row_losses import RowLoss, row_metrics, save_row_losses
from qtarget.evaluate.samples import Sample, save_samples
from qtarget.evaluate.scores import over_seeds
from qtarget.record.runs import read_runs


def write_run(root: Path, target: str, seed: int, verdicts: list[bool], rate: float = 0.4) -> None:
    folder = root / f"{target}{seed}{rate}"
    folder.mkdir(parents=True)
    metrics = {"test/accuracy": sum(verdicts) / len(verdicts), "test/nll": 1.0 + seed}
    result = {"status": "finished", "name": target, "choices": {"target": target}, "metrics": metrics, "seed": seed}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "data": {"noise": {"rate": rate}}}))
    save_samples(folder, [sample(row, correct) for row, correct in enumerate(verdicts)])


def write_losses(root: Path, target: str, seed: int, nats: list[float], tokens: list[int]) -> None:
    """A run of held-out rows that nobody judges: row i has i + 1 bytes."""
    losses = [RowLoss(f"row {i}", i, total, tokens[i], i + 1) for i, total in enumerate(nats)]
    folder = root / f"{target}{seed}"
    folder.mkdir(parents=True)
    metrics = {f"test/{name}": value for name, value in row_metrics(losses).items()}
    metrics["test/nll"] = sum(nats) / sum(tokens)
    result = {"status": "finished", "name": target, "choices": {"target": target}, "metrics": metrics, "seed": seed}
    (folder / "result.json").write_text(json.dumps(result))
    save_row_losses(folder, losses)


def sample(row: int, correct: bool, prompt: str = "") -> Sample:
    texts = {"prompt": prompt or f"problem {row}", "expected": "7", "answer": "7", "final": "7"}
    return Sample("heldout", row, 0, **texts, correct=correct, score=float(correct), tokens=1, ended=True)


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    for seed in (0, 1):
        write_run(tmp_path, "sft", seed, [True, False, False, False])
        write_run(tmp_path, "dft", seed, [True, True, False, seed == 1])
    return tmp_path


def test_pairing_answers_of_runs_that_were_not_judged_is_answered_by_the_line_that_pairs_their_rows(
    tmp_path: Path,
) -> None:
    with pytest.raises(QTargetError, match=r"row by row: qtarget compare A B --paired nll"):
        compare_paired([tmp_path, tmp_path], "accuracy")


@pytest.mark.parametrize(("metric", "a", "unit"), [("nll", 6 / 8, 1.0), ("test/bits_per_byte", 6 / 10, math.log(2))])
def test_two_runs_are_compared_row_by_row_in_nll(
    tmp_path: Path, metric: str, a: float, unit: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """b is better by 0.1 nats on each token of the four rows that both have; a has a fifth, of 20 tokens."""
    tokens = [1, 2, 3, 2]
    write_losses(tmp_path, "a", 0, [1.0, 1.0, 2.0, 2.0, 9.0], [*tokens, 20])
    write_losses(tmp_path, "b", 0, [n - 0.1 * t for n, t in zip((1.0, 1.0, 2.0, 2.0), tokens, strict=True)], tokens)
    assert compare_paired([tmp_path / "a0", tmp_path / "b0"], metric) == 0
    printed = capsys.readouterr().out
    assert f"A {a / unit:.3f}" in printed
    assert "4 shared rows, 1 others left out" in printed
    assert "the 95 % interval of B − A (below 0: B is better)" in printed
    if metric == "nll":
        assert "B − A -0.100 [-0.100, -0.100]" in printed


def test_a_folder_of_two_runs_is_the_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        write_losses(tmp_path, name, 0, [1.0, 2.0, 2.5], [1, 2, 3])
    (tmp_path / "report.html").touch()
    for paths in ([tmp_path], sorted(tmp_path.iterdir())):
        assert compare_paired(paths, "nll") == 0
        printed = capsys.readouterr().out
        assert re.search(r"^A  a  .*a0/heldout_nll\.jsonl$", printed, re.M)
        assert re.search(r"^B  b  .*b0/heldout_nll\.jsonl$", printed, re.M)
    write_losses(tmp_path, "c", 0, [1.0, 2.0, 2.5], [1, 2, 3])
    with pytest.raises(QTargetError, match=r"got 3: .*a0, .*b0, .*c0\. Name two: qtarget compare A B --paired nll"):
        compare_paired([tmp_path], "nll")


def test_two_runs_that_nobody_judged_are_followed_by_the_command_that_pairs_their_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        write_losses(tmp_path, name, 0, [1.0, 2.0, 2.5], [1, 2, 3])
    compare([tmp_path])
    command = shlex.split(next(line for line in capsys.readouterr().out.splitlines() if "--paired nll" in line))
    assert command[:2] == ["qtarget", "compare"]
    assert compare_paired(command[2:4], command[5]) == 0
    write_losses(tmp_path, "c", 0, [1.0, 2.0, 2.5], [1, 2, 3])
    compare([tmp_path])
    assert "--paired" not in capsys.readouterr().out


def test_the_command_that_follows_keeps_what_was_asked_for(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--group-by",
        "target,data.noise.rate",
        "--metric",
        "test/nll",
        "--against",
        "target=sft",
        "--format",
        "md",
    ]
    assert qtarget_cli(["compare", str(swept), *options]) == 0
    first, aside = capsys.readouterr()
    again = shlex.split(aside.splitlines()[-1])
    assert again == ["qtarget", "compare", str(swept), *options]
    assert qtarget_cli(again[1:]) == 0
    assert capsys.readouterr().out == first
    words = CompareOptions(["target"], best_of=["optim.lr", "optim.clip"], by="val/nll", failed=True).words
    assert words == ["--group-by", "target", "--best-of", "optim.lr,optim.clip", "--by", "val/nll", "--failed"]


def test_runs_without_a_row_in_common_or_that_diverged_are_not_paired(tmp_path: Path) -> None:
    write_losses(tmp_path, "a", 0, [1.0, 2.0], [2, 2])
    write_losses(tmp_path, "b", 0, [1.0, math.nan], [2, 2])
    losses = [RowLoss(f"other {place}", place, 1.0, 2, 2) for place in range(3)]
    save_row_losses(tmp_path, losses)
    with pytest.raises(QTargetError, match="share 0 held-out rows, of 2 and 3"):
        compare_paired([tmp_path / "a0", tmp_path], "nll")
    with pytest.raises(QTargetError, match="1 of 2 rows is not finite: that run has diverged"):
        compare_paired([tmp_path / "a0", tmp_path / "b0"], "nll")


def test_runs_that_differ_in_their_seed_are_one_group(swept: Path) -> None:
    groups = group_runs(read_runs([swept]), ["target"])
    assert {group.label: [run.seed for run in group.runs] for group in groups} == {"sft": [0, 1], "dft": [0, 1]}


def test_differences_are_paired_by_seed_and_problem(swept: Path) -> None:
    found = rows(group_runs(read_runs([swept]), ["target"]), "test/accuracy", {"target": "sft"})
    by_target = {row.group.label: row for row in found}
    assert by_target["sft"].difference is None
    difference = by_target["dft"].difference
    assert difference is not None
    assert difference.mean == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert difference.low >= 0  # dft answers all that sft does, in every seed
    assert (by_target["dft"].low_seed, by_target["dft"].high_seed) == (0.5, 0.75)


def test_a_baseline_agrees_in_the_other_keys(tmp_path: Path) -> None:
    for rate, right in ((0.0, 3), (0.4, 1)):
        write_run(tmp_path, "sft", 0, [row < right for row in range(4)], rate)
        write_run(tmp_path, "dft", 0, [row < 2 for row in range(4)], rate)
    found = rows(group_runs(read_runs([tmp_path]), ["target", "data.noise.rate"]), "test/accuracy", {"target": "sft"})
    apart = {tuple(row.group.key.values()): row.difference.mean for row in found if row.difference}
    assert apart == {("dft", "0.0"): pytest.approx(-1 / 4), ("dft", "0.4"): pytest.approx(1 / 4)}


def test_two_runs_of_a_seed_in_a_group_are_refused_with_what_tells_them_apart(tmp_path: Path) -> None:
    for rate in (0.0, 0.4):
        write_run(tmp_path, "sft", 0, [True, False], rate)
    with pytest.raises(QTargetError, match=r"share the seed 0; they differ in data\.noise\.rate: add that"):
        group_runs(read_runs([tmp_path]), ["target"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_by": ["nothing"]}, "has nothing under 'nothing' to group by"),
        ({"group_by": ["target"], "metric": "test/other"}, "no finished run holds the metric 'test/other'"),
        ({"group_by": ["target"], "against": ["target=kd"]}, "no group has that; target is dft, sft"),
        ({"group_by": ["target"], "against": ["seed=0"]}, "--against names seed"),
    ],
)
def test_what_cannot_be_grouped_is_refused(swept: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        compare([swept], **arguments)  # type: ignore[arg-type]


def test_the_table_in_every_format(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for format, expected in (("md", "| dft | 2 | 62.5 ["), ("csv", "dft,2,0.625,"), ("rich", "+37.5 [")):
        compare([swept], format=format, group_by=["target"], against=["target=sft"])
        assert expected in capsys.readouterr().out


@pytest.fixture
def unjudged(tmp_path: Path) -> Path:
    """Rows of unlike lengths under three seeds; dft is better by 0.1 nats on every token."""
    generator, tokens = np.random.default_rng(0), [2, 9, 4, 30, 7]
    for seed in (0, 1, 2):
        level = generator.gamma(2.0, 1.0, 5)
        for target, better in (("sft", 0.0), ("dft", 0.1)):
            nats = [float(count * (one - better)) for count, one in zip(tokens, level, strict=True)]
            write_losses(tmp_path, target, seed, nats, tokens)
    return tmp_path


def test_what_nobody_judges_is_compared_by_the_nll_of_its_rows(
    unjudged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Paired by seed and row, each row with its tokens: what tells rows and seeds apart cancels."""
    found = rows(group_runs(read_runs([unjudged]), ["target"]), "test/nll", {"target": "sft"})
    by_target = {row.group.label: row for row in found}
    dft, sft = by_target["dft"], by_target["sft"]
    assert dft.interval is not None
    assert dft.difference is not None
    assert dft.interval.mean == pytest.approx(dft.mean)
    assert dft.interval.low < dft.mean < dft.interval.high
    assert dft.mean == pytest.approx(sft.mean - 0.1)
    assert (dft.difference.mean, dft.difference.low, dft.difference.high) == pytest.approx((-0.1, -0.1, -0.1))
    compare([unjudged], format="md", group_by=["target"], against=["target=sft"])
    printed = capsys.readouterr().out
    assert "| test/nll [95 %] | by seed | difference [95 %] | p |" in printed
    assert "-0.100 [-0.100, -0.100]" in printed
    assert "paired by seed and row" in printed


@pytest.mark.parametrize(("metric", "better"), [("test/nll", "min"), ("test/accuracy", "max")])
def test_groups_stand_best_first_by_the_better_end(tmp_path: Path, metric: str, better: str) -> None:
    for target, right in (("b", 3), ("c", 1), ("a", 2)):
        write_run(tmp_path, target, 0, [row < right for row in range(4)])
        path = tmp_path / f"{target}00.4/result.json"
        result = json.loads(path.read_text())
        result["metrics"]["test/nll"] = float(right)
        path.write_text(json.dumps(result))
    grouped = grouped_rows(read_runs([tmp_path]), Grouping(["target"], metric))
    shown = [line[0] for line in grouped.table.lines]
    assert shown == (["c", "a", "b"] if better == "min" else ["b", "a", "c"])


def test_p_values_of_many_differences_are_corrected_and_the_table_says_so(tmp_path: Path) -> None:
    """Of n problems that all go one way, a sign flip gives 2/2^n exactly."""
    for target, right in (("sft", 0), ("dft", 6), ("kd", 5), ("gem", 1)):
        write_run(tmp_path, target, 0, [row < right for row in range(8)])
    grouped = grouped_rows(read_runs([tmp_path]), Grouping(["target"], "test/accuracy", ["target=sft"]))
    p_values = {row.group.label: (row.p_value, row.p_holm) for row in grouped.rows}
    assert p_values["dft"] == pytest.approx((2 / 2**6, 3 * 2 / 2**6))
    assert p_values["kd"] == pytest.approx((2 / 2**5, 2 * 2 / 2**5))
    assert p_values["gem"] == (1.0, 1.0)
    assert p_values["sft"] == (None, None)
    assert grouped.titles[-1] == "p (Holm)"
    assert "Corrected for 3 comparisons (Holm)" in grouped.note
    assert grouped.table.lines[0][-1] == f"{3 * 2 / 2**6:.2g}"


def test_one_difference_needs_no_correction(swept: Path) -> None:
    grouped = grouped_rows(read_runs([swept]), Grouping(["target"], "test/accuracy", ["target=sft"]))
    assert grouped.titles[-1] == "p"
    assert "Holm" not in grouped.note
    assert {row.p_value for row in grouped.rows} == {row.p_holm for row in grouped.rows}


def test_p_values_of_rows_are_sign_flips_of_what_each_adds(unjudged: Path) -> None:
    """Better by the same on every token of five rows: 2 of 2^5 signs are as far from 0."""
    grouped = grouped_rows(read_runs([unjudged]), Grouping(["target"], "test/nll", ["target=sft"]))
    (dft,) = [row for row in grouped.rows if row.difference]
    assert dft.p_value == pytest.approx(2 / 2**5)


def test_rows_that_only_one_side_has_are_left_out(tmp_path: Path) -> None:
    write_losses(tmp_path, "sft", 0, [1.0, 2.0, 3.0], [1, 1, 1])
    write_losses(tmp_path, "dft", 0, [2.0, 1.0], [1, 1])
    found = rows(group_runs(read_runs([tmp_path]), ["target"]), "test/nll", {"target": "sft"})
    (apart,) = [row.difference for row in found if row.difference]
    assert apart.mean == pytest.approx(0.0)


def test_bits_per_byte_stand_beside_nll_where_tokenizers_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same nats a row, of twice as many tokens: half the nll, and the same bits per byte."""
    write_losses(tmp_path, "sft", 0, [4.0, 8.0], [4, 4])
    write_losses(tmp_path, "dft", 0, [4.0, 8.0], [8, 8])
    compare([tmp_path], format="md", group_by=["target"])
    printed = capsys.readouterr().out
    per_byte = f"{12 / math.log(2) / 3:.3f}"
    assert [line.count(f"| {per_byte} |") for line in printed.splitlines() if line.startswith(("| sft", "| dft"))] == [
        1,
        1,
    ]
    assert "--metric test/bits_per_byte compares them" in printed
    (apart,) = [
        row.difference
        for row in rows(group_runs(read_runs([tmp_path]), ["target"]), "test/bits_per_byte", {"target": "sft"})
        if row.difference
    ]
    assert (apart.low, apart.high) == (0, 0)
    compare([tmp_path], format="md")
    assert "| nll [95\u00a0%] | bits/byte |" in capsys.readouterr().out


def test_bits_per_byte_stay_away_where_tokenizers_agree(unjudged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare([unjudged], format="md", group_by=["target"])
    compare([unjudged], format="md")
    assert "bits/byte" not in capsys.readouterr().out


def test_a_metric_without_problems_has_no_interval(swept: Path) -> None:
    found = rows(group_runs(read_runs([swept]), ["target"]), "test/nll", {"target": "sft"})
    assert {row.interval for row in found} == {None}
    assert {(row.mean, row.low_seed, row.high_seed) for row in found} == {(1.5, 1.0, 2.0)}


def test_intervals_cover_the_truth_where_seeds_and_problems_both_vary() -> None:
    generator, covered, repeats = np.random.default_rng(0), 0, 200
    for repeat in range(repeats):
        ability = 0.3 * generator.standard_normal((8, 1))
        difficulty = generator.standard_normal((1, 60))
        found = over_seeds(ability + difficulty + generator.standard_normal((8, 60)), -9.0, 9.0, seed=repeat)
        covered += found.low <= 0 <= found.high
    assert 0.9 <= covered / repeats <= 1


def test_where_nothing_varies_the_interval_is_not_a_point() -> None:
    """Three seeds that solve nothing, or everything: the next problem may be another."""
    none, all_of_them = over_seeds(np.zeros((3, 50))), over_seeds(np.ones((3, 50)))
    assert (none.low, none.mean) == (0, 0)
    assert 0.02 < none.high < 0.1
    assert (all_of_them.mean, all_of_them.high) == (1, 1)
    assert 0.9 < all_of_them.low < 0.98


def test_one_seed_leaves_the_luck_of_the_problems() -> None:
    values = np.random.default_rng(0).uniform(size=(1, 400))
    found = over_seeds(values)
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


def test_other_problems_are_not_paired(tmp_path: Path) -> None:
    """The same row numbers of other data are other problems."""
    write_run(tmp_path, "sft", 0, [True] * 4)
    write_run(tmp_path, "dft", 0, [False] * 4)
    save_samples(tmp_path / "dft00.4", [sample(row, False, f"other {row}") for row in range(4)])
    found = rows(group_runs(read_runs([tmp_path]), ["target"]), "test/accuracy", {"target": "sft"})
    assert {row.difference for row in found} == {None}


def test_a_seed_without_the_metric_is_counted_as_missing(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = swept / "sft10.4" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"metrics": {"test/accuracy": 0.25, "test/nll": None}}))
    compare([swept], format="md", group_by=["target"], metric="test/nll")
    assert "| sft | 1 of 2 | 1.000 |" in capsys.readouterr().out


def test_names_are_the_runs_own_not_the_configurations(swept: Path) -> None:
    for path in swept.glob("*/config.yaml"):
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "name": None}))
    assert {group.label for group in group_runs(read_runs([swept]), ["name"])} == {"sft", "dft"}


def test_a_long_reason_takes_a_line_and_stands_on_the_page(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reason = (
        "8 of 8 rows of rows.jsonl are longer than 10 tokens: set data.truncation=drop or =cut, or raise "
        "data.max_length up to"
    )
    path = next(swept.glob("dft*/result.json"))
    failed = {"status": "failed", "error": f"QTargetError: {reason} the model's context\nin the second line"}
    path.write_text(json.dumps(json.loads(path.read_text()) | failed))
    compare([swept], format="md")
    printed = capsys.readouterr()
    (line,) = [line for line in (printed.out + printed.err).splitlines() if "failed: dft" in line]
    told = line.partition("): ")[2]
    assert told == f"{reason} …"
    assert len(told) <= 120
    compare([swept])
    assert "the model&#39;s context" in (swept / "report.html").read_text()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            "no model at ./a.b: the folder holds 1.5 GB, e.g. Weights. Name another",
            "no model at ./a.b: the folder holds 1.5 GB, e.g. Weights",
        ),
        ("can't load 'x' (no network). Give a folder", "can't load 'x' (no network)"),
        ("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 is full", "CUDA out of memory"),
        ("one sentence alone", "one sentence alone"),
    ],
)
def test_of_a_reason_the_first_sentence_is_listed(
    swept: Path, error: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(swept.glob("dft*/result.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "failed", "error": f"QTargetError: {error}"}))
    compare([swept], format="md")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "failed: dft" in line]
    assert line.endswith(f"): {sentence}")


def test_a_failed_run_is_in_no_mean_and_is_listed_with_its_reason(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(swept, "dft", 2, [False] * 4)
    path = swept / "dft20.4/result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "failed", "error": "out of memory"}))
    compare([swept], group_by=["target"])
    printed = capsys.readouterr().out
    assert re.search(r"dft +2 +62\.5 \[", printed)
    assert "Not in the table: 1 failed:" in printed
    assert re.search(r"failed: dft \(.*dft20\.4\): out of memory", printed)
    compare([swept], group_by=["target"], format="md")
    assert "out of memory" in capsys.readouterr().err
