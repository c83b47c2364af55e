"""The tables of docs/results whose runs are kept beside them are what those runs say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtarget.cli import run as qtarget_cli

RESULTS = Path(__file__).parent.parent / "docs/results"
BY_RATE = ["--group-by", "data.noise.rate,name", "--against", "name=sft"]
TABLES = {"strong_prior_noise": BY_RATE, "noise_tokens": [*BY_RATE, "--metric", "test/score"]}
"""Folder of kept runs → how its table is made."""
MEASURES = {"nll": "test/nll", "AUROC": "detection/auroc", "gradient": "detection/gradient_share"}


def kept(name: str) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"runs/{name}/*/result.json"))]


def test_every_folder_of_kept_runs_has_a_table() -> None:
    assert {path.name for path in (RESULTS / "runs").iterdir()} == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_that_of_the_kept_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", str(RESULTS / "runs" / name), *TABLES[name], "--format", "md", "--out", str(tmp_path)]
    assert qtarget_cli(command) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert "\n".join(table) in (RESULTS / "README.md").read_text()


def noisy(name: str, experiment: str = "strong_prior_noise", rate: str = "0.4") -> list[dict[str, object]]:
    """The kept runs of a design on noisy rows, by seed."""
    runs = [run for run in kept(experiment) if run["name"] == name]
    return [run for run in runs if f"data.noise.rate={rate}" in run["overrides"]]  # type: ignore[operator]


def cells(heading: str) -> dict[str, list[str]]:
    """Name → the other cells, of the table of the page whose heading begins like this."""
    page = (RESULTS / "README.md").read_text()
    lines = page.split(heading)[1].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].split(",")[0]: row[1:] for row in rows}


def test_the_measures_beside_the_table_are_means_over_the_seeds() -> None:
    written = cells("| name, at 40 % | nll of held-out answers |")
    assert len(written) == 6
    for name, row in written.items():
        metrics = [run["metrics"] for run in noisy(name)]
        assert len(metrics) == 3
        nll, auroc, share = (sum(run[key] for run in metrics) / 3 for key in MEASURES.values())  # type: ignore[index]
        assert row == [f"{nll:.3f}", f"{auroc:.2f}", f"{share:.0%}".replace("%", " %")]


def test_what_trust_finds_is_the_mean_over_the_seeds_at_each_step() -> None:
    written = cells("| name | trust, steps 1–5 |")
    assert len(written) == 6
    for name, row in written.items():
        folders = [RESULTS / "runs/strong_prior_noise" / str(run["config_hash"]) for run in noisy(name)]
        lines = [json.loads(line) for folder in folders for line in (folder / "metrics.jsonl").read_text().splitlines()]
        keys = [(key, step) for key in ("detection/auroc", "detection/auroc_policy") for step in (5, 10, 15, 20)]
        values = [[line[key] for line in lines if line["step"] == step and key in line] for key, step in keys]
        assert row == [f"{sum(of_seeds) / 3:.2f}" for of_seeds in values]


def test_the_measures_of_noise_tokens_are_means_over_the_seeds() -> None:
    written = cells("| name, at 15 % | all of it right |")
    assert len(written) == 5
    for name, row in written.items():
        metrics = [run["metrics"] for run in noisy(name, "noise_tokens", "0.15")]
        assert len(metrics) == 3
        keys = ("test/accuracy", *MEASURES.values())
        right, nll, auroc, share = (sum(run[key] for run in metrics) / 3 for key in keys)  # type: ignore[index]
        assert row == [f"{100 * right:.1f} %", f"{nll:.3f}", f"{auroc:.3f}", f"{100 * share:.0f} %"]


def test_kept_runs_are_finished_and_name_no_place_of_a_machine() -> None:
    for name in TABLES:
        assert {run["status"] for run in kept(name)} == {"finished"}
        folders = sorted(RESULTS.glob(f"runs/{name}/*"))
        assert all(json.loads((folder / "result.json").read_text())["config_hash"] == folder.name for folder in folders)
        texts = [path.read_text() for folder in folders for path in folder.iterdir()]
        assert not any(place in text for text in texts for place in ("/root", "/home", "/tmp", "/work"))
