"""`qtarget evaluate`, benchmarks and retention in a run, and pairs of runs: as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import compose_config, options
from qtarget.data.sources.data_files import Files
from qtarget.data.sources.jsonl import Jsonl
from qtarget.run.evaluate import evaluation_config, judged_in_words
from qtarget.run.plan import make_plan

SMALL = ["model=tiny", "data.rows=16", "data.heldout_rows=6", "trainer.batch_size=4", "eval.new_tokens=6"]
TRAIN = ["train", *SMALL, "trainer.max_steps=2", "eval.problems_in_training=3", "trainer.precision=32-true"]
LITTLE = ["eval.benchmarks.arithmetic.rows=3", "eval.benchmarks.gsm_symbolic.rows=2"]


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", options("eval"))
def test_every_evaluation_composes(name: str) -> None:
    cfg = compose_config("train", [f"eval={name}"])
    assert cfg.eval.samples >= 1
    assert all("_target_" in benchmark.source for benchmark in cfg.eval.benchmarks.values())


def test_a_run_is_judged_on_benchmarks_and_on_what_it_kept(workdir: Path) -> None:
    outside = ["+data/source@eval.retention.source=gsm_symbolic", "eval.retention.rows=3"]
    drawn = ["eval.samples=2", "eval.temperature=1"]
    assert qtarget_cli([*TRAIN, "eval=small", *LITTLE, *outside, *drawn, "name=judged"]) == 0
    (result,) = results(workdir / "outputs/runs")
    metrics = result["metrics"]
    for name in ("test/accuracy", "test/avg@2", "test/maj@2_low", "test/ece", "test/perplexity", "test/length"):
        assert name in metrics
    for name in ("arithmetic/accuracy", "gsm_symbolic/pass@2", "retention/nll", "retention/kl_prior"):
        assert name in metrics
    assert metrics["retention/nll_drift"] != 0
    assert sum(one["tokens"] for one in result["calibration"]) > 0
    (folder,) = workdir.glob("outputs/runs/*/")
    sources = [line["source"] for line in lines(folder / "samples.jsonl")]
    assert sources == ["heldout"] * 12 + ["arithmetic"] * 6 + ["gsm_symbolic"] * 4
    first, *_, last = (line for line in lines(folder / "metrics.jsonl") if "val/nll" in line)
    assert first["retention/nll_drift"] == pytest.approx(0, abs=1e-6)
    assert "arithmetic/accuracy" not in last  # benchmarks wait for the end
    assert qtarget_cli(["compare", "outputs/runs"]) == 0


def test_cached_priors_watch_what_is_kept(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTARGET_CACHE", str(workdir / "cache"))
    outside = ["eval=retention", "eval.retention.rows=3", "eval.new_tokens=4"]
    for kind in ("frozen", "cached"):
        assert qtarget_cli([*TRAIN, *outside, f"reference@references.prior={kind}", f"name={kind}"]) == 0
    live, cached = (
        {name: value for name, value in result["metrics"].items() if name.startswith(("retention", "test/kl"))}
        for result in sorted(results(workdir / "outputs/runs"), key=lambda result: result["name"] == "cached")
    )
    assert live["retention/kl_prior"] > 0
    assert cached == pytest.approx(live, rel=1e-3, abs=1e-7)


def test_a_checkpoint_is_evaluated_as_it_was_at_the_end_of_its_run(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert qtarget_cli([*TRAIN, "target=dft"]) == 0
    (run,) = workdir.glob("outputs/runs/*/")
    (trained,) = results(workdir / "outputs/runs")
    assert qtarget_cli(["evaluate", f"checkpoint={run}"]) == 0
    (result,) = results(workdir / "outputs/evaluations")
    expected = {name: value for name, value in trained["metrics"].items() if name.startswith("test/")}
    assert result["metrics"] == pytest.approx(expected, rel=1e-6)
    assert (result["name"], result["task"], result["design"]) == ("dft", "evaluate", trained["design"])
    (folder,) = workdir.glob("outputs/evaluations/*/")
    assert (folder / "samples.jsonl").read_text() == (run / "samples.jsonl").read_text()
    shown = capsys.readouterr().out
    for text in ("test/accuracy", "95 % interval", f"{folder.name}/samples.jsonl", "eval.samples=8 eval.temperature=1"):
        assert text in shown

    beat = (folder / "result.json").stat().st_mtime_ns
    assert qtarget_cli(["evaluate", f"checkpoint={run}"]) == 0
    assert "not evaluated again" in capsys.readouterr().out
    assert (folder / "result.json").stat().st_mtime_ns == beat

    drawn = ["evaluate", f"checkpoint={run / 'checkpoint'}", "eval.samples=3", "eval.temperature=1", "eval=small"]
    assert qtarget_cli([*drawn, *LITTLE]) == 0
    assert len(results(workdir / "outputs/evaluations")) == 2
    assert "OTHER --paired accuracy" in capsys.readouterr().out
    assert qtarget_cli(["compare", "outputs/evaluations", "outputs/runs"]) == 0
    shown = capsys.readouterr().out
    assert "qtarget train" in shown.splitlines()[-2]


def test_a_model_that_was_not_trained_here_is_evaluated_too(workdir: Path) -> None:
    assert qtarget_cli(["evaluate", "checkpoint=tiny", "data=gsm_symbolic", "data.heldout_rows=2", *SMALL[-1:]]) == 0
    (result,) = results(workdir / "outputs/evaluations")
    assert (result["role"], result["name"]) == ("base", "tiny")
    assert "test/kl_prior" not in result["metrics"]
    assert qtarget_cli(["compare", "outputs/evaluations", "--format", "csv"]) == 0


@pytest.mark.parametrize(("data", "name"), [("files", "val.csv"), ("jsonl", "val.jsonl")])
def test_rows_of_a_shared_file_are_counted_while_they_are_read(
    data: str, name: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workdir / "val.csv").write_text("prompt,completion\n" + "".join(f"{n}+1,{n + 1}\n" for n in range(20)))
    lines = (json.dumps({"prompt": f"{n}+1", "completion": str(n + 1)}) for n in range(20))
    (workdir / "val.jsonl").write_text("\n".join(lines))
    own = [f"data={data}", f"data.source.path={name}", "data.source.heldout_share=0.3"]
    plan = make_plan(evaluation_config("tiny", own))
    monkeypatch.setattr(Files, "_table", lambda *_: pytest.fail("the file is read again"))
    monkeypatch.setattr(Jsonl, "_lines", lambda *_: pytest.fail("the file is read again"))
    assert judged_in_words(plan).startswith(f"judging {len(plan.prepared.heldout_rows)} of 20 rows, of which the share")


def test_an_evaluation_says_how_many_rows_it_judges_and_of_how_many_a_share_is(workdir: Path) -> None:
    (workdir / "val.csv").write_text("prompt,completion\n" + "".join(f"{n}+1,{n + 1}\n" for n in range(20)))
    own = ["data=files", "data.source.path=val.csv"]

    def judged(*overrides: str) -> str:
        return judged_in_words(make_plan(evaluation_config("tiny", [*own, *overrides])))

    shared = judged()
    count = len(make_plan(evaluation_config("tiny", own)).prepared.heldout_rows)
    assert 0 < count < 20
    assert shared.startswith(
        f"judging {count} of 20 rows, of which the share data.source.heldout_share=0.1 is held out; "
    )
    assert f"{count} held-out rows are few" in shared
    assert judged("data.source.heldout=val.csv") == "judging 20 held-out rows"
    assert judged("data.source.heldout=val.csv", "data.heldout_rows=5").startswith("judging 5 held-out rows; 5 held-")


def test_rows_that_nobody_judges_lead_to_a_comparison_of_their_nll(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "val.csv").write_text("prompt,completion\n" + "".join(f"{n}+1,{n + 1}\n" for n in range(20)))
    own = ["data=files", "data.source.path=val.csv", "data.source.heldout=val.csv"]
    for name in "ab":
        assert qtarget_cli(["evaluate", "checkpoint=tiny", f"name={name}", f"seed={ord(name)}", *own]) == 0
    printed = capsys.readouterr().out
    assert "judged   nothing: that takes rows with a verifier (data.source.verifier)" in printed
    command = printed.splitlines()[-1].removeprefix("next     qtarget ").split()
    first, *_ = sorted(str(path) for path in workdir.glob("outputs/evaluations/*/"))
    assert qtarget_cli([first if word == "OTHER" else word for word in command]) == 0
    assert "20 shared rows" in capsys.readouterr().out


def test_two_runs_are_compared_prompt_by_prompt(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for count in (4, 6):
        rows = [f"data.heldout_rows={count}", "data.source.seed=1", "output_dir=outputs", "eval.new_tokens=4"]
        drawn = ["eval.samples=2", "eval.temperature=1", f"eval.seed={count}"]
        assert qtarget_cli(["evaluate", "checkpoint=tiny", f"name=e{count}", *rows, *drawn]) == 0
    capsys.readouterr()
    a, b = sorted(workdir.glob("outputs/evaluations/*/"), key=lambda path: len(lines(path / "samples.jsonl")))
    assert qtarget_cli(["compare", str(a), str(b / "samples.jsonl"), "--paired", "pass@2"]) == 0
    shown = capsys.readouterr().out
    assert "4 shared prompts, 2 others left out" in shown
    assert "B − A +0.000" in shown
    for arguments, message in (
        ([str(a), "--paired", "accuracy"], "--paired compares two runs, got 1"),
        ([str(a), str(b), "--paired", "pass@9"], "no metric 'pass@9': they have accuracy, score, avg@2, pass@2"),
        ([str(a), str(workdir / "outputs"), "--paired", "accuracy"], "has no samples.jsonl: name a run whose answers"),
        ([str(a), str(a.parent), "--paired", "accuracy"], "holds 2 evaluations; name one"),
    ):
        assert qtarget_cli(["compare", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval.samples=4"], "eval.temperature=0 takes the likeliest one"),
        (["eval.benchmarks=small"], "eval.benchmarks=small sets a value, not a source"),
        (["eval.retention=gsm_symbolic"], "write +data/source@eval.retention.source=OPTION"),
        (["+eval.benchmarks.mine.rows=3"], "eval.benchmarks.mine needs a source"),
        (["+data/source@eval.benchmarks.test.source=arithmetic"], "can't be one of train, val, test"),
        (["eval=small", "eval.benchmarks.arithmetic.rows=0"], "eval.benchmarks.arithmetic.rows must be a whole number"),
    ],
    ids=str,
)
def test_what_an_evaluation_can_be_wrong_about(
    workdir: Path, overrides: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert qtarget_cli([*TRAIN, *overrides]) == 2
    assert message in capfd.readouterr().err


def test_benchmarks_need_rows_that_can_be_judged(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("mine.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    source = ["+data/source@eval.benchmarks.mine.source=jsonl", "eval.benchmarks.mine.source.path=mine.jsonl"]
    share = ["eval.benchmarks.mine.source.heldout_share=0.99"]
    assert qtarget_cli([*TRAIN, *source, *share]) == 2
    assert "eval.benchmarks.mine: 1 of 1 rows name no verifier" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["checkpoint="], ["tiny"], ["checkpoint=tiny", "dft"]], ids=str)
def test_evaluate_says_what_it_takes(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["evaluate", *arguments]) == 2
    assert "evaluate takes checkpoint=WHERE" in capfd.readouterr().err
    assert qtarget_cli(["evaluate", "--help"]) == 0
