"""The tables of docs/results whose runs are kept beside them are what those runs say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtarget.cli import run as qtarget_cli

RESULTS = Path(__file__).parent.parent / "docs/results"
TABLES = {"strong_prior_noise": ["--group-by", "data.noise.rate,name", "--against", "name=sft"]}
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


def test_the_measures_beside_the_table_are_means_over_the_seeds() -> None:
    page = (RESULTS / "README.md").read_text()
    lines = page.split("| name | nll of held-out answers |")[1].split("\n\n")[0].splitlines()[2:]
    written = {
        line.split("|")[1].split(",")[0].strip(): [cell.strip() for cell in line.split("|")[2:5]] for line in lines
    }
    assert len(written) == 6
    for name, cells in written.items():
        metrics = [run["metrics"] for run in kept("strong_prior_noise") if run["name"] == name]
        nll, auroc, share = (sum(run[key] for run in metrics) / 3 for key in MEASURES.values())  # type: ignore[index]
        assert cells == [f"{nll:.3f}", f"{auroc:.2f}", f"{share:.0%}".replace("%", " %")]


def test_kept_runs_are_finished_and_name_no_place_of_a_machine() -> None:
    for name in TABLES:
        assert {run["status"] for run in kept(name)} == {"finished"}
        folders = sorted(RESULTS.glob(f"runs/{name}/*"))
        assert all(json.loads((folder / "result.json").read_text())["config_hash"] == folder.name for folder in folders)
        texts = [path.read_text() for folder in folders for path in folder.iterdir()]
        assert not any(place in text for text in texts for place in ("/root", "/home", "/tmp", "/work"))
