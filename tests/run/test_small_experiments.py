"""Every small experiment, from its preparations to its table, two steps on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import compose_config, conf_dir
from qtarget.config.identity import config_hash

SMALL = ["model=tiny", "trainer.max_steps=2", "data.heldout_rows=4", "eval.new_tokens=2", "trainer.precision=32-true"]
ROWS, RESERVE = ["data.rows=16"], ["data.rows=0", "data.reserve_rows=16"]
GROUPED = {
    "noisy_instruct": (["noisy_instruct_teacher"], ["target=sft,target_sft"], "target,data.noise.rate"),
    "data_efficiency": (["data_efficiency_teacher"], ["target=sft,kd", "data.rows=16,8"], "target,data.rows"),
    "prior_strength": (["prior_strength_warm", "prior_strength_strong"], ["target=sft,dft"], "target,model.name"),
    "strong_prior_noise": (
        [],
        ["model.name=tiny", "references.teacher.name=tiny", "target=sft,target_sft", "data.noise.rate=0.4,0"],
        "target,data.noise.rate",
    ),
    "noise_tokens": (
        [],
        ["model.name=tiny", "references.teacher.name=tiny", "target=sft,target_sft", "data.noise.rate=0.15,0"],
        "target,data.noise.rate",
    ),
    "prior_flaw": (
        ["prior_strength_strong"],
        ["target=one_minus_prior", "reference/flaw@references.prior.flaw=none,temperature"],
        "target,references.prior.flaw",
    ),
}
"""Experiment → what has to be run before it, a part of its grid, and the keys that its table is grouped by."""


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPED)
def test_an_experiment_runs_to_its_table(name: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, part, keys = GROUPED[name]
    for stage in before:
        assert qtarget_cli(["train", f"experiment={stage}", *SMALL, *RESERVE]) == 0
    model = ["model=tiny"] if name in ("noisy_instruct", "data_efficiency") else ["model=path"]
    starts = ["model.name=tiny,outputs/prior_strength_warm"] if name == "prior_strength" else []
    seeds = "0,1" if name == "noisy_instruct" else "0"  # what a table makes of seeds is the same for all
    command = ["train", f"experiment={name}", *ROWS, *SMALL[1:], *model, *starts, *part, f"seed={seeds}"]
    assert qtarget_cli(command) == 0
    capsys.readouterr()
    assert qtarget_cli(["compare", f"outputs/{name}", "--group-by", keys, "--format", "md"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + (2 if name == "prior_flaw" else 4)
    assert all(f"| {len(seeds.split(','))} |" in line for line in table[2:])


FAIR = {
    "fair/learning_rate": (["optim.lr=1e-4,3e-3"], ["--best-of", "optim.lr", "--by", "val/nll"]),
    "fair/update_norm": ([], []),
}
"""Experiment → a part of its grid, and what its comparison says beside the groups."""


@pytest.mark.slow
def test_fair_comparisons_run_to_their_tables(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["train", "experiment=demo_teacher", *SMALL, *RESERVE]) == 0
    small = [*ROWS, *SMALL, "data.heldout_rows=12", "eval.problems_in_training=4", "target=dft,target_sft", "seed=0,1"]
    for name, (part, comparing) in FAIR.items():
        assert qtarget_cli(["train", f"experiment={name}", *small, *part]) == 0
        capsys.readouterr()
        grouped = ["--group-by", "target", "--against", "target=dft", "--format", "md"]
        assert qtarget_cli(["compare", f"outputs/{name}", *grouped, *comparing]) == 0
        table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        assert len(table) == 2 + 2
        assert all("| 2 |" in line for line in table[2:])  # seeds
        assert ("optim.lr" in table[0]) == bool(comparing)
        results = [json.loads(path.read_text()) for path in Path(f"outputs/{name}").glob("*/result.json")]
        assert {result["rows"]["validation"] for result in results} == {4}
        assert all(0 < result["rows"]["test"] <= 8 for result in results)


FOLDER = conf_dir() / "experiment"
NAMES = sorted(
    str(path.relative_to(FOLDER).with_suffix("")) for path in [*FOLDER.glob("*.yaml"), *FOLDER.glob("fair/*.yaml")]
)


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_composes(name: str) -> None:
    cfg = compose_config("train", [f"experiment={name}"])
    assert cfg.experiment_name == name


def test_wit_is_one_run_however_it_is_written() -> None:
    """Its weights against the paper's formula: tests/data/test_weights.py. Data, model and steps are the user's."""
    own = ["data=files", "data.source.path=rows.jsonl", "model=tiny", "trainer.max_steps=7"]
    named = compose_config("train", ["experiment=wit", *own])
    weights = ["target=sft", "target.weight.value=0.8", "data.prompt_weight=0.25"]
    written = compose_config("train", [*weights, "experiment_name=wit", "name=wit", *own])
    assert config_hash(named) == config_hash(written)
    assert (named.name, named.data.prompt_weight / (1 / named.target.weight.value)) == ("wit", pytest.approx(0.2))


def test_every_fair_comparison_is_run() -> None:
    assert set(FAIR) == {name for name in NAMES if name.startswith("fair/")}
