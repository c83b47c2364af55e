"""Run folders are read as they were written, also the broken ones, and land in the right row of the table."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from qtarget.compare.columns import COLUMNS, reading_note, subject
from qtarget.compare.command import compare
from qtarget.compare.next_step import next_command
from qtarget.errors import QTargetError
from qtarget.record.runs import differing_keys, finished, read_runs, unfinished, without_absolute_paths

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def write_run(root: Path, name: str, digest: str, accuracy: float = 0.5, history: str = "", **changes) -> Path:
    """A run folder as a training run leaves it; `changes` replace keys of result.json, `config` the config."""
    folder = root / digest
    folder.mkdir(parents=True)
    metrics = {"test/accuracy": accuracy, "test/accuracy_low": accuracy - 0.04, "test/accuracy_high": accuracy + 0.05}
    metrics |= {
        "test/nll": 0.63,
        "target/trust_clean": 0.72,
        "target/trust_noisy": 0.18,
        "train/tokens_per_second": 1234,
    }
    config = {"seed": 0, "data": {"noise": {"rate": 0.4}}, "target": {"alpha": 1.0}} | changes.pop("config", {})
    result = {
        "status": "finished",
        "name": name,
        "experiment": "demo",
        "choices": {"target": name, "data": "arithmetic", "model": "tiny"},
        "overrides": ["experiment=demo", f"target={name}"],
        "design": {"reliance": "p^0.5", "residual": "self", "weight": "1+λ", "repr": "Mixture(...)"},
        "rows": {"train": 960, "noisy": 384, "reserve": 0, "heldout": 400},
        "metrics": metrics,
        "error": None,
        "started": NOW.isoformat(),
        "heartbeat": NOW.isoformat(),
        "versions": {"torch": "2.13.0"},
        "git": "abc1234",
        "seed": 0,
        "role": "design",
    }
    (folder / "result.json").write_text(json.dumps(result | changes), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "metrics.jsonl").write_text(history, encoding="utf-8")
    return folder


def cells(run) -> dict[str, str]:
    return {column.key: column.text(run) for column in COLUMNS}


def test_the_numbers_of_a_run_stand_in_its_own_row(tmp_path):
    write_run(tmp_path / "demo", "sft", "a" * 12, accuracy=0.385)
    write_run(tmp_path / "demo", "dft", "b" * 12, accuracy=0.412, rows={"train": 1200, "noisy": 7, "heldout": 400})
    dft, sft = map(cells, read_runs([tmp_path], NOW))
    assert (dft["name"], dft["test/accuracy"], dft["rows/train"]) == ("dft", "41.2 [37.2, 46.2]", "1,200 (7)")
    assert (sft["name"], sft["test/accuracy"], sft["rows/train"]) == ("sft", "38.5 [34.5, 43.5]", "960 (384)")
    assert (sft["reliance"], sft["residual"], sft["weight"]) == ("p^0.5", "self", "1+λ")
    assert (sft["test/nll"], sft["target/trust_noisy"], sft["train/tokens_per_second"]) == ("0.630", "0.18", "1,234")


def test_a_missing_number_is_a_dash_and_a_broken_one_is_shown(tmp_path):
    write_run(tmp_path / "demo", "sft", "a" * 12, metrics={"test/nll": float("nan"), "test/accuracy": 0.25})
    (run,) = read_runs([tmp_path], NOW)
    assert cells(run)["test/kl_prior"] == "–"
    assert cells(run)["test/nll"] == "nan"
    assert cells(run)["test/accuracy"] == "25.0"
    values = {column.key: column.value(run) for column in COLUMNS}
    assert values["test/nll"] is values["test/kl_prior"] is None


def test_base_then_teacher_then_by_accuracy(tmp_path):
    roles = {"low": "design", "teacher": "teacher", "clean": "control", "high": "design", "base": "base"}
    accuracies = (0.2, 0.9, 0.6, 0.7, 0.05)
    for digest, (name, role) in enumerate(roles.items()):
        write_run(tmp_path / "demo", name, f"{digest:012x}", accuracies[digest], role=role)
    write_run(tmp_path / "demo", "unscored", "f" * 12, metrics={})
    assert [run.name for run in read_runs([tmp_path], NOW)] == ["base", "teacher", "high", "clean", "low", "unscored"]


def test_history_merges_lines_by_step_and_survives_half_a_line(tmp_path):
    lines = [
        {"step": 10, "train/nll": 1.5},
        {"step": 20, "train/nll": 9.0},
        {"step": 20, "train/nll": 1.2},  # written again after a resume
        {"step": 10, "val/accuracy": 0.3},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 30, "train/n'
    write_run(tmp_path / "demo", "sft", "a" * 12, history=text)
    (run,) = read_runs([tmp_path], NOW)
    assert run.history == ({"step": 10, "train/nll": 1.5, "val/accuracy": 0.3}, {"step": 20, "train/nll": 1.2})


def test_a_running_run_whose_heartbeat_stopped_is_interrupted(tmp_path):
    old = (NOW - timedelta(minutes=11)).isoformat()
    write_run(tmp_path / "demo", "alive", "a" * 12, status="running", metrics={})
    write_run(tmp_path / "demo", "dead", "b" * 12, status="running", heartbeat=old, history='{"step": 70}\n')
    write_run(tmp_path / "demo", "done", "c" * 12, heartbeat=old)
    write_run(tmp_path / "demo", "saved", "d" * 12, status="running", heartbeat=old, history='{"step": 70}\n')
    for run, step in (("a", 20), ("d", 40), ("d", 60), ("c", 70)):
        (state := tmp_path / "demo" / (run * 12) / f"state/step-{step}").mkdir(parents=True)
        (state / "state.json").write_text("{}")
    (tmp_path / "demo" / ("d" * 12) / "state/step-80").mkdir()  # half taken away
    runs = read_runs([tmp_path], NOW)
    assert {run.name: run.status_text for run in unfinished(runs)} == {
        "alive": "running",
        "dead": "interrupted after step 70",
        "saved": "interrupted after step 70, the same command goes on from step 60",
    }
    assert [run.name for run in finished(runs)] == ["done"]


def test_failed_and_unreadable_runs_are_listed_not_fatal(tmp_path, capsys):
    write_run(tmp_path / "demo", "sft", "a" * 12)
    write_run(tmp_path / "demo", "gem", "b" * 12, status="failed", error="kd needs teacher: topk or full")
    (write_run(tmp_path / "demo", "cut", "c" * 12) / "result.json").write_text('{"status": "fin')
    assert compare([tmp_path / "demo"]) == 0
    printed = capsys.readouterr().out
    assert "failed: gem (demo/bbbbbbbbbbbb): kd needs teacher: topk or full" in printed
    assert "failed: cccccccccccc (demo/cccccccccccc): result.json cannot be read" in printed


def test_runs_of_one_name_are_told_apart(tmp_path):
    write_run(tmp_path / "demo", "sft", "a" * 12, config={"seed": 0})
    write_run(tmp_path / "demo", "sft", "b" * 12, config={"seed": 1}, accuracy=0.4)
    write_run(tmp_path / "demo", "dft", "c" * 12, accuracy=0.1)
    assert [run.label for run in read_runs([tmp_path], NOW)] == ["sft (seed=0)", "sft (seed=1)", "dft"]


def test_what_differs_names_keys_outside_the_design_first(tmp_path):
    write_run(tmp_path / "demo", "sft", "a" * 12, config={"target": {"alpha": 1.0, "about": {"year": 2020}}})
    write_run(tmp_path / "demo", "dft", "b" * 12, config={"target": {"alpha": 2.0}, "trainer": {"lr": 0.1}})
    assert differing_keys(read_runs([tmp_path], NOW)) == ["trainer.lr", "target.alpha"]


def test_overlapping_paths_and_a_run_folder_itself_count_once(tmp_path):
    folder = write_run(tmp_path / "demo", "sft", "a" * 12)
    assert len(read_runs([tmp_path, tmp_path / "demo", folder, folder / "result.json"], NOW)) == 1


@pytest.mark.parametrize("make", [True, False])
def test_no_runs_says_where_it_looked_and_what_to_do(tmp_path, make):
    empty = tmp_path / "empty"
    if make:
        empty.mkdir()
    with pytest.raises(QTargetError, match="empty") as caught:
        compare([empty])
    assert ("qtarget train" in str(caught.value)) == make


def test_sentences_about_the_runs(tmp_path):
    write_run(tmp_path / "demo", "sft", "a" * 12)
    write_run(tmp_path / "demo", "dft", "b" * 12, accuracy=0.6, seed=3)
    runs = read_runs([tmp_path], NOW)
    assert subject(runs) == "2 runs of tiny on arithmetic, with 40 % of the training rows made wrong."
    assert "400 held-out problems" in reading_note(runs)
    assert "seeds 0, 3" in reading_note(runs)
    assert next_command(runs) == "qtarget train experiment=demo target=dft seed=0"


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ({"path": "a.csv"}, {"path": "b.csv"}, "data.source.path"),
        ({"path": "a.csv", "heldout": "v.csv"}, {"path": "b.csv", "heldout": "w.csv"}, "data.source.heldout"),
        ({"path": "a.csv", "heldout": "v.csv"}, {"path": "b.csv", "heldout": "v.csv"}, None),
        ({"path": "a.csv", "heldout_share": 0.1}, {"path": "b.csv", "heldout_share": 0.1}, "data.source.path"),
        ({"path": "a.csv", "hint": "solution"}, {"path": "a.csv", "weight": "w"}, None),
    ],
)
def test_a_table_of_runs_that_were_measured_on_other_rows_says_so(tmp_path, first, second, named):
    for hash_, source in (("a" * 12, first), ("b" * 12, second)):
        folder = write_run(tmp_path / "demo", "sft", hash_)
        config = {"data": {"heldout_rows": None, "heldout_source": None, "source": {"heldout": None, **source}}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    note = reading_note(read_runs([tmp_path], NOW))
    assert (f"not all were measured on the same held-out rows ({named})" in note.lower()) == (named is not None)


def test_what_to_try_next_fills_the_design_with_the_fewest_seeds(tmp_path):
    """Of dft, the better one, seeds 0 to 2; of sft 0 and 2, and 1 has failed."""
    for name, seed in [("dft", 0), ("dft", 1), ("dft", 2), ("sft", 0), ("sft", 1), ("sft", 2)]:
        status = "failed" if (name, seed) == ("sft", 1) else "finished"
        accuracy = {"dft": 0.6, "sft": 0.5}[name]
        config = {"seed": seed, "target": name}
        write_run(tmp_path, name, f"{name}{seed}", status=status, accuracy=accuracy, seed=seed, config=config)
    runs = read_runs([tmp_path], NOW)
    assert next_command(runs) == "qtarget train experiment=demo target=sft seed=1"
    whole = [run for run in runs if run.name == "dft"]
    assert next_command(whole) == "qtarget train experiment=demo target=dft seed=3"


def test_configurations_with_the_same_seeds_get_another_one_together(tmp_path):
    for name in ("sft", "dft"):
        for rate in (1e-4, 3e-4):
            overrides = ["experiment=demo", f"target={name}", f"optim.lr={rate}", "seed=0"]
            config = {"target": name, "optim": {"lr": rate}}
            write_run(tmp_path, name, f"{name}{rate}", overrides=overrides, config=config)
    runs = read_runs([tmp_path], NOW)
    command = next_command(runs)
    assert command == "qtarget train -m experiment=demo target=dft,sft optim.lr=0.0001,0.0003 seed=1"
    assert "-m" not in next_command(runs[1:])  # no grid has three of four jobs


def test_values_with_commas_are_no_list_of_a_multirun(tmp_path):
    for name in ("sft", "dft"):
        overrides = [f"target={name}", "optim.betas=[0.9,0.95]"]
        write_run(tmp_path, name, name, overrides=overrides, config={"target": name})
    assert next_command(read_runs([tmp_path], NOW)) == "qtarget train target=dft 'optim.betas=[0.9,0.95]' seed=1"


def test_what_a_shell_finds_beside_runs_is_passed_by_and_other_files_are_refused(tmp_path, capsys):
    runs = [write_run(tmp_path / "demo", name, name * 4) for name in ("sft", "dft")]
    compare([tmp_path / "demo"])
    (tmp_path / "demo/multirun.yaml").touch()
    capsys.readouterr()
    everything = sorted((tmp_path / "demo").iterdir())
    assert {"report.html", "comparison.png", "multirun.yaml"} < {path.name for path in everything}
    compare(everything, out=tmp_path / "new")
    again = capsys.readouterr().out.splitlines()[-1]
    assert [word for word in again.split() if "demo" in word] == [str(path) for path in sorted(runs)]
    (notes := tmp_path / "demo/notes.txt").touch()
    with pytest.raises(QTargetError, match=r"notes\.txt is no run"):
        compare([*everything, notes])


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("no /home/ada/data/rows.jsonl here", "no …/rows.jsonl here"),
        ("data.path=/srv/sets/a.csv", "data.path=…/a.csv"),
        ("at C:\\Users\\ada\\run", "at …/run"),
        ("file:///home/ada/x", "file://…/x"),
        ("~/runs/demo", "…/demo"),
        ("clean / wrong, 1/(1+λ), outputs/demo/abc", "clean / wrong, 1/(1+λ), outputs/demo/abc"),
        ("https://example.org/a/b", "https://example.org/a/b"),
    ],
)
def test_places_of_the_machine_are_cut(text, short):
    assert without_absolute_paths(text) == short
    assert without_absolute_paths(short) == short
