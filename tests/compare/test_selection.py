"""Each design at its best learning rate: chosen on validation rows alone, all seeds of it, and paired as ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_groups import sample

from qtarget.cli import run as qtarget_cli
from qtarget.compare.command import compare
from qtarget.compare.groups import rows
from qtarget.compare.selection import choose, usual_validation
from qtarget.data.example import Demonstration
from qtarget.data.overlap import unseen
from qtarget.errors import QTargetError
from qtarget.evaluate.samples import save_samples
from qtarget.launch.multirun import launch
from qtarget.record.runs import read_runs

Named = tuple[str, str, int]
Curve = list[float | None]
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
BY = "val/accuracy"


def write_run(root: Path, named: Named, curve: Curve, right: list[int], **more: Any) -> None:
    """named: target, rate, seed; curve: val/accuracy over training; right: the test problems solved, of four."""
    target, rate, seed = named
    folder = root / f"{target}-{rate}-{seed}"
    folder.mkdir(parents=True)
    metrics = {"test/accuracy": len(right) / 4, "bench/accuracy": 0.5}
    result = {"status": "finished", "name": target, "choices": {"target": target}, "metrics": metrics, "seed": seed}
    (folder / "result.json").write_text(json.dumps(result | more))
    config = {"seed": seed, "optim": {"lr": float(rate)}, "eval": {"test_on": more.get("test_on", "rest")}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [{"step": 10 * at, BY: value, "val/nll": value} for at, value in enumerate(curve)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    save_samples(folder, [sample(row, row in right) for row in range(4)])


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    """sft is best at 1e-4 and dft at 1e-3, by validation; on the test rows both would look better at the other rate."""
    for seed in (0, 1):
        write_run(tmp_path, ("sft", "1e-4", seed), [0.0, 0.5], [0])
        write_run(tmp_path, ("sft", "1e-3", seed), [0.9, 0.4], [0, 1, 2, 3])
        write_run(tmp_path, ("dft", "1e-4", seed), [0.0, 0.1], [0, 1, 2, 3])
        write_run(tmp_path, ("dft", "1e-3", seed), [0.0, 0.3 * seed], [0, 1 + seed])
        write_run(tmp_path, ("dft", "1e-2", seed), [0.9, 0.05], [])
    return tmp_path


def chosen(root: Path, by: str = BY, metric: str = "test/accuracy") -> dict[str, str]:
    choice = choose(read_runs([root]), ["target"], ["optim.lr"], by, metric)
    return {group.key["target"]: group.chosen["optim.lr"] for group in choice.groups}


def test_validation_chooses_and_not_the_test(swept: Path) -> None:
    """By the mean over seeds at the end of training: not the best on the way, nor a value for each seed."""
    assert chosen(swept) == {"sft": "0.0001", "dft": "0.001"}


def test_what_is_better_when_smaller_is_minimised(swept: Path) -> None:
    assert chosen(swept, "val/nll") == {"sft": "0.001", "dft": "0.01"}


def test_designs_at_unlike_rates_are_paired_by_seed_and_problem(swept: Path) -> None:
    choice = choose(read_runs([swept]), ["target"], ["optim.lr"], BY, "test/accuracy")
    found = {row.group.key["target"]: row for row in rows(choice.groups, "test/accuracy", {"target": "sft"})}
    assert [run.seed for run in found["dft"].group.runs] == [0, 1]
    difference = found["dft"].difference
    assert difference is not None
    assert difference.mean == pytest.approx(1 / 4)  # problem 1 in seed 0, problem 2 in seed 1
    assert difference.low >= 0  # where both are asked the same, dft solves all that sft does
    assert found["sft"].mean == 1 / 4


def test_the_end_of_what_was_tried_is_pointed_out(swept: Path) -> None:
    remarks = choose(read_runs([swept]), ["target"], ["optim.lr"], BY, "test/accuracy").remarks
    assert remarks[1:] == ("target=sft: optim.lr=0.0001 is the end of what was tried, try beyond",)


def test_equals_go_to_the_smaller_number(tmp_path: Path) -> None:
    for rate in ("1e-2", "5e-3", "1e-1"):
        write_run(tmp_path, ("sft", rate, 0), [0.5], [0])
    assert chosen(tmp_path) == {"sft": "0.005"}


def test_a_tie_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rate, value in (("1e-2", 0.5), ("5e-3", 0.5), ("1e-1", 0.25)):
        write_run(tmp_path, ("sft", rate, 0), [value], [0])
        write_run(tmp_path, ("dft", rate, 0), [value + float(rate)], [0])
    compare([tmp_path], format="md", group_by=["target"], best_of=["optim.lr"])
    printed = capsys.readouterr().out
    assert f"target=sft: optim.lr=0.005 ties with optim.lr=0.01 at {BY} 0.5; the first is shown" in printed
    assert "target=dft: optim.lr=0.01 ties" not in printed


def test_what_nobody_judges_is_chosen_by_its_validation_nll(tmp_path: Path) -> None:
    assert usual_validation(read_runs([written(tmp_path / "judged", {"val/accuracy": 0.5, "val/nll": 1.0})])) == BY
    assert usual_validation(read_runs([written(tmp_path / "not", {"val/nll": 1.0})])) == "val/nll"


def written(folder: Path, point: dict[str, float]) -> Path:
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"status": "finished", "name": folder.name}))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, **point}))
    return folder


@pytest.mark.parametrize("lost", ["run", "number"])
def test_a_value_that_lacks_a_seed_is_passed_over_and_named(swept: Path, lost: str) -> None:
    folder = swept / "sft-1e-4-1"
    if lost == "run":
        (folder / "result.json").write_text(json.dumps({"status": "failed", "seed": 1}))
    else:
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, BY: 0.5}) + '\n{"step": 10, "train/nll": 1.0}')
    choice = choose(read_runs([swept]), ["target"], ["optim.lr"], BY, "test/accuracy")
    assert {group.chosen["optim.lr"] for group in choice.groups if group.key["target"] == "sft"} == {"0.001"}
    assert "target=sft: optim.lr=0.0001 passed over" in choice.remarks


def test_without_a_last_validation_nothing_can_be_chosen(tmp_path: Path) -> None:
    write_run(tmp_path, ("sft", "1e-3", 0), [None], [0])
    with pytest.raises(QTargetError, match=r"target=sft: of no optim\.lr have all .* \(trainer\.eval_every above 0\)"):
        chosen(tmp_path)


def test_rows_that_chose_do_not_judge(tmp_path: Path) -> None:
    write_run(tmp_path, ("sft", "1e-3", 0), [0.5], [0], test_on="all")
    with pytest.raises(QTargetError, match=r"may test on its validation rows too.* train with eval\.test_on=rest"):
        chosen(tmp_path)
    with pytest.raises(QTargetError, match=r"bench/accuracy is no fair judge"):
        chosen(tmp_path, metric="bench/accuracy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "test/accuracy"}, "what is compared must not choose"),
        ({"by": "val/length"}, "what is compared must not choose"),
        ({"best_of": ["target"]}, "leave it out of --group-by"),
        ({"best_of": ["optim.rate"]}, r"has nothing under 'optim\.rate'"),
        ({"group_by": []}, "--best-of chooses within groups: add --group-by"),
    ],
)
def test_what_cannot_be_chosen_is_refused(swept: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        compare([swept], **{"group_by": ["target"], "best_of": ["optim.lr"]} | arguments)


def test_the_table_names_what_was_chosen(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", str(swept), "--group-by", "target", "--best-of", "optim.lr", "--against", "target=sft"]
    assert qtarget_cli([*command, "--format", "md"]) == 0
    told = capsys.readouterr().out
    assert "| dft | 0.001 | 2 | 50.0 [" in told
    assert "optim.lr: for each group the best by the mean of val/accuracy at the end of training." in told
    assert qtarget_cli([*command, "--format", "csv"]) == 0
    assert "target,optim.lr,seeds,test/accuracy" in capsys.readouterr().out
    assert qtarget_cli(["compare", str(swept), "--by", BY]) == 2
    assert "give that too" in capsys.readouterr().err


# Rows that choose, and rows that judge

SMALL = ["model=tiny", "trainer.max_steps=2", "data.rows=16", "eval.new_tokens=2", "trainer.eval_every=2"]
SPLIT = ["data.heldout_rows=9", "eval.problems_in_training=4"]


def demonstration(row: int, prompt: str, system: str = "") -> Demonstration:
    asked = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": prompt}]
    return Demonstration([*asked, {"role": "assistant", "content": str(row)}], row=row)


def test_rows_that_ask_what_a_validation_row_asks_are_in_neither() -> None:
    texts = ["one", "two", "TWO ", "three", "three", "one", "four"]
    held = [demonstration(row, text, "Be brief." if row == 5 else "") for row, text in enumerate(texts)]
    assert unseen(held, 2) == (3, 4, 6)
    assert unseen(held, 0) == tuple(range(7))


def finished_run(root: Path, *overrides: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    assert qtarget_cli(["train", *SMALL, *SPLIT, f"output_dir={root}", *overrides]) == 0
    (path,) = root.glob("runs/*/result.json")
    samples = [json.loads(line) for line in (path.parent / "samples.jsonl").read_text().splitlines()]
    return json.loads(path.read_text()), samples


def test_the_test_is_on_rows_that_validation_never_saw(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, everything = finished_run(workdir / "all")
    result, judged = finished_run(workdir / "rest", "eval.test_on=rest")
    assert [sample["row"] for sample in judged] == [sample["row"] for sample in everything[4:]]
    assert judged == everything[4:]  # the same answers, on fewer rows
    assert {sample["prompt"] for sample in judged}.isdisjoint(sample["prompt"] for sample in everything[:4])
    assert {name: result["rows"][name] for name in ("heldout", "validation", "test", "like_validation")} == {
        "heldout": 9,
        "validation": 4,
        "test": 5,
        "like_validation": 0,
    }
    assert "test" not in whole["rows"]
    assert result["metrics"]["test/nll"] != whole["metrics"]["test/nll"]
    assert "9 rows held out, 4 of them for validation and 5 for the test" in capsys.readouterr().out
    (run,) = (workdir / "rest").glob("runs/*")
    assert qtarget_cli(["evaluate", f"checkpoint={run}", f"output_dir={workdir / 'again'}"]) == 0
    (again,) = (workdir / "again").glob("evaluations/*/result.json")
    told = json.loads(again.read_text())
    assert told["metrics"]["test/nll"] == pytest.approx(result["metrics"]["test/nll"], rel=1e-3)
    assert told["rows"] == {"heldout": 9, "validation": 4, "test": 5, "like_validation": 0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["eval.test_on=some"], r"eval\.test_on must be one of all, rest"),
        (["eval.test_on=rest", "eval.problems_in_training=null"], "it sees them all: say how many"),
        (["eval.test_on=rest", "eval.problems_in_training=9"], r"leaves nothing to test on: of 9 held-out rows"),
        (["eval.test_on=rest", "eval=small"], r"eval\.benchmarks\.arithmetic asks some of them"),
    ],
)
def test_a_split_that_can_not_be_is_refused(workdir: Path, given: list[str], message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        launch([*SMALL, *SPLIT, *given])
