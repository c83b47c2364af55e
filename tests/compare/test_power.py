"""The power that is promised is had by what `qtarget compare` then computes; what a pilot says, and what it can't."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, chi2, nct, t
from test_groups import write_losses, write_run

from qtarget.cli import run as qtarget_cli
from qtarget.compare.detectable import MeanSquares, PlannedExperiment, fewest, power, smallest_difference, variances
from qtarget.compare.pilot import read_pilot
from qtarget.compare.power import PowerOptions, power_command
from qtarget.errors import QTargetError
from qtarget.evaluate.ratios import Ratios, ratio_difference
from qtarget.evaluate.row_losses import FILE as ROWS_FILE
from qtarget.evaluate.scores import PairedDifference, difference_over_seeds


def detected(difference: PairedDifference | None, alpha: float = 0.05) -> bool:
    assert difference is not None
    return difference.p_value < alpha and not difference.score.low <= 0 <= difference.score.high


def test_rows_of_one_seed_have_the_power_of_the_paired_t_test() -> None:
    """50 pairs, d_z 0.421637, two-sided: 0.832114 (G*Power 3 manual, difference between two dependent means)."""
    plan = PlannedExperiment(1, 50, ratio=True)
    assert power(variances(0, 0, 1), plan, 0.421637)[0] == pytest.approx(0.832114, abs=2e-3)
    for rows, difference in ((12, 0.9), (40, 0.3), (400, 0.2)):
        bound, ncp = t.ppf(0.975, rows - 1), difference * rows**0.5
        wanted = nct.sf(bound, rows - 1, ncp) + nct.cdf(-bound, rows - 1, ncp)
        assert power(variances(0, 0, 1), PlannedExperiment(1, rows, ratio=True), difference)[0] == pytest.approx(
            wanted, abs=3e-3
        )


def test_half_a_deviation_takes_34_pairs() -> None:
    """α 0.05, power 0.8, d_z 0.5: 34 pairs (Cohen 1988, by every program since)."""
    count = fewest(
        lambda rows: power(variances(0, 0, 1), PlannedExperiment(1, rows, ratio=True), 0.5)[0] >= 0.8, 10, 1000
    )
    assert count == 34


def test_correction_is_a_smaller_alpha() -> None:
    """Of one seed's rows p decides: 0.05 over four comparisons is 0.0125."""
    bound, ncp = t.ppf(1 - 0.0125 / 2, 59), 0.4 * 60**0.5
    plan = PlannedExperiment(1, 60, comparisons=4, ratio=True)
    assert power(variances(0, 0, 1), plan, 0.4)[0] == pytest.approx(nct.sf(bound, 59, ncp), abs=3e-3)


def test_seeds_alone_are_a_t_test_of_seeds() -> None:
    bound, ncp = t.ppf(0.975, 4), 2.0 * 5**0.5
    wanted = nct.sf(bound, 4, ncp) + nct.cdf(-bound, 4, ncp)
    assert power(variances(1, 1e-9, 1e-9), PlannedExperiment(5, 100, ratio=True), 2.0)[0] == pytest.approx(
        wanted, abs=5e-3
    )


def test_answers_of_one_seed_have_the_power_of_the_exact_test_of_their_disagreements() -> None:
    """McNemar's test, summed over how many of 200 rows disagree."""
    rows, share, difference = 200, 0.2, 0.1
    wanted = 0.0
    for disagree in range(1, rows + 1):
        better = np.arange(disagree + 1)
        rejected = 2 * binom.cdf(np.minimum(better, disagree - better), disagree, 0.5) < 0.05
        chances = binom.pmf(better, disagree, (1 + difference / share) / 2)
        wanted += binom.pmf(disagree, rows, share) * chances[rejected].sum()
    components = variances(0, 0, share - difference**2)
    assert power(components, PlannedExperiment(1, rows, step=1.0), difference)[0] == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize(("seeds", "of_seeds"), [(3, 0.5), (5, 0.02)])
def test_nll_is_detected_as_often_as_promised(seeds: int, of_seeds: float) -> None:
    plan, repeats, generator = PlannedExperiment(seeds, 40, ratio=True), 100, np.random.default_rng(1)
    change = smallest_difference(variances(of_seeds, 1.0, 1.0), plan, 0.8)[0]
    shape = (seeds, plan.rows)
    hits = 0
    for _ in range(repeats):
        noise = generator.normal(0, of_seeds**0.5, (seeds, 1)) + generator.normal(0, 1, (1, plan.rows))
        ours = 9 + change + noise + generator.normal(0, 1, shape)
        hits += detected(ratio_difference(Ratios(ours, np.ones(shape)), Ratios(np.full(shape, 9.0), np.ones(shape))))
    assert hits / repeats == pytest.approx(0.8, abs=3 * (0.16 / repeats) ** 0.5)


@pytest.mark.parametrize(("seeds", "of_seeds"), [(1, 0.0), (3, 0.01)])
def test_accuracy_is_detected_as_often_as_promised(seeds: int, of_seeds: float) -> None:
    """Three rows in ten disagree, anew under each seed."""
    share, rows, repeats, generator = 0.3, 100, 100, np.random.default_rng(2)
    plan = PlannedExperiment(seeds, rows, step=1.0)
    change = smallest_difference(variances(of_seeds, 0.0, share - 0.02), plan, 0.8)[0]
    hits = 0
    for _ in range(repeats):
        tilt = change + generator.normal(0, of_seeds**0.5, (seeds, 1))
        places, better = generator.random((seeds, rows)), np.clip((share + tilt) / 2, 0, share)
        values = np.where(places < better, 1.0, np.where(places < share, -1.0, 0.0))
        hits += detected(difference_over_seeds(values))
    assert hits / repeats == pytest.approx(0.8, abs=3 * (0.16 / repeats) ** 0.5)


@pytest.mark.parametrize("ratio", [True, False])
def test_more_rows_seeds_and_alpha_detect_smaller_differences(ratio: bool) -> None:
    def smallest(seeds: int = 5, rows: int = 100, wanted: float = 0.8, of_seeds: float = 0.01, **more: float) -> float:
        plan = PlannedExperiment(seeds, rows, ratio=ratio, **more)  # type: ignore[arg-type]
        return float(smallest_difference(variances(of_seeds, 0.3, 1.0), plan, wanted)[0])

    assert smallest(rows=400) < smallest(rows=200) < smallest()
    assert smallest(seeds=20) < smallest(seeds=10) < smallest() < smallest(seeds=3)
    assert smallest(wanted=0.5) < smallest() < smallest(wanted=0.95)
    assert smallest() < smallest(comparisons=10)
    assert smallest() < smallest(alpha=0.001)
    assert smallest(of_seeds=0.0) < smallest() < smallest(of_seeds=0.1)


@pytest.mark.parametrize("seeds", [1, 4])
def test_power_and_smallest_difference_are_inverse_and_scale_with_the_metric(seeds: int) -> None:
    plan = PlannedExperiment(seeds, 80, ratio=True)
    smallest = smallest_difference(variances(0.02, 0.3, 1.0), plan, 0.7)[0]
    assert power(variances(0.02, 0.3, 1.0), plan, smallest)[0] == pytest.approx(0.7)
    assert power(variances(0.02, 0.3, 1.0), plan, -smallest)[0] == pytest.approx(0.7)
    assert smallest_difference(variances(2, 30, 100), plan, 0.7)[0] == pytest.approx(10 * smallest)


def test_what_three_seeds_leave_open_is_a_chi_square_of_two_degrees_of_freedom() -> None:
    drawn = MeanSquares(3, 10_000, 1.0, 1e-12, 1e-12).draws.seed
    wanted = 2 / chi2.ppf([0.75, 0.5, 0.25], 2)
    assert np.quantile(drawn, [0.25, 0.5, 0.75]) == pytest.approx(wanted, rel=0.02)
    assert (MeanSquares(1, 10_000, 0.0, 1.0, 0.0).draws.seed == 0).all()


@pytest.fixture
def pilot(tmp_path: Path) -> Path:
    """Three designs under three seeds: right or wrong on 60 rows."""
    generator = np.random.default_rng(0)
    level = generator.normal(0, 1, 60)
    for target, better in (("sft", 0.0), ("dft", 0.3), ("kd", 0.4)):
        own = level + better + generator.normal(0, 0.4, 60)
        for seed in (0, 1, 2):
            write_run(tmp_path, target, seed, [bool(one > 0) for one in own + generator.normal(0, 0.7, 60)])
    return tmp_path


def test_the_variance_of_a_pilot_is_split_as_the_analysis_of_variance_splits_it(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sft, dft = generator.gamma(4, 1, (2, 3, 30))
    for seed in range(3):
        write_losses(tmp_path, "sft", seed, list(map(float, sft[seed])), [2] * 30)
        write_losses(tmp_path, "dft", seed, list(map(float, dft[seed])), [2] * 30)
    squares = read_pilot([str(tmp_path)], "nll", against=["target=sft"]).squares
    change = (dft - sft) / 2
    seeds, rows, mean = change.mean(1), change.mean(0), change.mean()
    rest = change - seeds[:, None] - rows + mean
    assert squares.of_seeds == pytest.approx(((seeds - mean) ** 2).sum() / 2)
    assert squares.of_rows == pytest.approx(((rows - mean) ** 2).sum() / 29)
    assert squares.rest == pytest.approx((rest**2).sum() / (2 * 29))
    assert squares.freedom == (2, 29, 58)
    estimate = squares.estimate
    assert estimate.row[0] == pytest.approx(max(0.0, squares.of_rows - squares.rest / 3))
    assert estimate.seed[0] == pytest.approx(max(0.0, squares.of_seeds - squares.rest / 30))


def test_every_two_designs_are_a_pair_and_have_the_degrees_of_freedom_of_one_less(pilot: Path) -> None:
    """As the interaction of K designs and S seeds: (K − 1)(S − 1); of pairs with a baseline, Satterthwaite's."""
    every, two = read_pilot([str(pilot)]), read_pilot([str(pilot)], against=["target=sft"])
    assert {pair.label for pair in two.pairs} == {"dft − sft", "kd − sft"}
    assert len(every.pairs) == 3
    assert every.squares.freedom[0] == pytest.approx(4)
    assert two.squares.freedom[0] == pytest.approx(2 * 2 / 1.25)


def test_a_table_names_the_runs_the_split_and_the_test(pilot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["power", str(pilot), "--against", "target=sft", "--rows", "60,240", "--seeds", "3,5"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "dft − sft: +",
        "seeds 0, 1, 2, 60 shared rows",
        "between seeds (3 degrees of freedom)",
        "detected with power 0.8",
        "false alarms",
        "p by sign flips of rows is below 0.05",
        "--group-by target --against target=sft",
    ):
        assert text in shown


def test_a_difference_has_a_power_in_each_cell_and_the_rows_and_seeds_that_suffice(
    pilot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--difference", "12", "--seeds", "5", "--rows", "60,4000"]
    assert qtarget_cli(["power", str(pilot), *options, "--format", "csv"]) == 0
    few, many = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert 0 <= float(few["power_low"]) <= float(few["power"]) < float(many["power"]) <= 1
    assert qtarget_cli(["power", str(pilot), *options]) == 0
    shown = capsys.readouterr().out
    assert "Fewest seeds for power 0.8: " in shown
    assert "fewest rows" in shown


def test_one_seed_says_that_its_luck_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target, right in (("sft", 20), ("dft", 30)):
        write_run(tmp_path, target, 0, [row < right for row in range(60)])
    assert qtarget_cli(["power", str(tmp_path), "--seeds", "1,3"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("≥ ") == 6
    assert "The luck of seeds is not in these numbers" in shown
    assert "next qtarget train seed=1" in shown


def test_without_a_pilot_the_share_that_disagrees_is_the_variance(capsys: pytest.CaptureFixture[str]) -> None:
    """400 rows, 20 % of them: (1.96 + 0.84)·√(0.2/400) is 6.3 %, the exact test's steps beside it 0.25 %."""
    words = ["--accuracy", "0.6", "--rows", "400", "--discordant", "0.2", "--format", "csv"]
    assert qtarget_cli(["power", *words]) == 0
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert pytest.approx(float(line["difference_bound"]), abs=0.1) == 100 * 2.80 * (0.2 / 400) ** 0.5 + 0.25
    assert qtarget_cli(["power", *words[:-2]]) == 0
    assert "The luck of seeds is not in these numbers" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "test/other"], "no finished run holds the metric 'test/other'"),
        (["--metric", "test/nll"], "test/nll is not kept row by row.*there is test/accuracy"),
        (["--against", "target=gem"], "no group has that; target is dft, kd, sft"),
        (["--group-by", "target,data.noise.rate"], "say which groups are compared"),
        (["--rows", "5"], "--rows must be a whole number of at least 10"),
        (["--rows", "many"], "write 200 or 200,400"),
        (["--seeds", "0"], "--seeds must be a whole number of at least 1"),
        (["--power", "1"], "--power must lie between --alpha 0.05 and 1"),
        (["--alpha", "0.9"], "--alpha must lie in"),
        (["--designs", "1"], "--designs must be a whole number of at least 2"),
        (["--designs", "200"], "the smallest p that 2000 sign flips give"),
        (["--difference", "0"], "--difference must be a number other than 0"),
        (["--discordant", "0.2"], "--discordant goes with --accuracy"),
        (["--accuracy", "0.5"], "name the folder of a pilot"),
    ],
)
def test_what_cannot_be_reckoned_is_refused(
    pilot: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert qtarget_cli(["power", str(pilot), *words]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PowerOptions(accuracy=0.6, discordant=0.2), "without a pilot --rows says"),
        (PowerOptions(accuracy=0.6, discordant=0.0, rows=[100]), "never disagree"),
        (PowerOptions(accuracy=0.9, discordant=0.5, rows=[100]), "--discordant"),
        (PowerOptions(accuracy=0.6, discordant=0.1, difference=20, rows=[100]), "--discordant"),
        (PowerOptions(accuracy=1.6, rows=[100]), "--accuracy must lie in"),
    ],
)
def test_assumptions_that_contradict_each_other_are_refused(options: PowerOptions, message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        power_command([], options)


def test_a_pilot_that_has_no_pair_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    write_losses(tmp_path, "sft", 0, [1.0, 2.0, 3.0], [1, 1, 1])
    record = tmp_path / "sft0" / "result.json"
    made = record.read_text()
    record.write_text(json.dumps(json.loads(made) | {"role": "base"}))
    with pytest.raises(QTargetError, match=r"no finished run of a design below .*two designs"):
        read_pilot([str(tmp_path)])
    record.write_text(made)
    with pytest.raises(QTargetError, match="holds one design, target=sft"):
        read_pilot([str(tmp_path)])
    write_losses(tmp_path, "dft", 1, [1.5, 2.0, 3.0], [1, 1, 1])
    with pytest.raises(QTargetError, match=r"dft has the seeds 1, sft 0|sft has the seeds 0, dft 1"):
        read_pilot([str(tmp_path)])
    write_losses(tmp_path, "dft", 0, [float("nan"), 2.0, 3.0], [1, 1, 1])
    with pytest.raises(QTargetError, match="keeps no finite test/nll row by row"):
        read_pilot([str(tmp_path)])
    lines = [json.loads(line) for line in (tmp_path / "sft0" / ROWS_FILE).read_text().splitlines()]
    others = "\n".join(json.dumps(line | {"id": f"other {line['row']}"}) for line in lines)
    (tmp_path / "dft0" / ROWS_FILE).write_text(f"{others}\n")
    with pytest.raises(QTargetError, match=r"share 0 rows of up to 3.*Evaluate all on the same held-out rows"):
        read_pilot([str(tmp_path)])
    (tmp_path / "dft0" / ROWS_FILE).write_text((tmp_path / "sft0" / ROWS_FILE).read_text())
    with pytest.raises(QTargetError, match="nothing varies"):
        read_pilot([str(tmp_path)])


def offered(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str | None:
    """The line of `qtarget compare` that reckons power."""
    grouped = ["--group-by", "target", "--against", "target=sft", *words]
    assert qtarget_cli(["compare", str(folder), *grouped, "--format", "md"]) == 0
    lines = capsys.readouterr().err.splitlines()
    return next((line.strip() for line in lines if line.strip().startswith("qtarget power")), None)


def test_a_comparison_offers_the_power_of_more_seeds_by_its_own_variance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Corrected for as many comparisons as the table is: three designs, two comparisons."""
    for seed in (0, 1):
        write_run(tmp_path, "sft", seed, [True, False, False, False] * 10)
        write_run(tmp_path, "dft", seed, [True, True, False, seed == 1] * 10)
        write_run(tmp_path, "eaft", seed, [False, True, False, seed == 1] * 10)
    command = offered(tmp_path, capsys)
    assert command == f"qtarget power {tmp_path} --group-by target --against target=sft --designs 3"
    assert qtarget_cli(command.split()[1:]) == 0
    assert "Holm over 2 comparisons" in " ".join(capsys.readouterr().out.split())


def test_no_power_is_offered_where_nothing_varies_or_one_seed_ran(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, seeds, solved in (("alike", (0, 1), True), ("once", (0,), False)):
        for seed in seeds:
            write_run(tmp_path / folder, "sft", seed, [True, True, True, True])
            write_run(tmp_path / folder, "dft", seed, [True, True, solved, True])
        assert offered(tmp_path / folder, capsys) is None
