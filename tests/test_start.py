"""What a command imports before it does its work: a library that takes long to import waits until it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qtarget.cli import run

HEAVY = {
    *("torch", "transformers", "accelerate", "lightning", "torchmetrics", "scipy", "numpy", "matplotlib", "sympy"),
    *("hydra", "wandb", "datasets", "peft", "pyarrow", "pandas", "reasoning_gym", "math_verify", "sklearn", "trl"),
}
TINY = ["train", "model=tiny", "trainer.max_steps=2", "data.rows=16", "data.heldout_rows=0"]
BY_LIGHTNING = {"torch", "transformers", "lightning", "torchmetrics", "scipy", "numpy", "matplotlib", "sympy"}
"""`import lightning` (2.6) imports torchmetrics (1.9), which imports scipy.signal, matplotlib and transformers, and
torch's compiler, which imports sympy; transformers' Llama imports accelerate."""


def imported(words: list[str], folder: Path) -> set[str]:
    """Of `HEAVY`, what is there after `qtarget WORDS`, in a process of its own."""
    probe = (
        "import json, sys; from qtarget.cli import run; code = run(sys.argv[1:]); "
        f"print(json.dumps([code, *(name for name in {HEAVY} if name in sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", probe, *words], cwd=folder, capture_output=True, text=True, check=True)
    code, *names = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return set(names)


@pytest.mark.parametrize("words", [[*TINY, "--cfg", "job"], ["show"], ["clean", "."]], ids=" ".join)
def test_commands_that_compute_nothing_import_no_library_that_does(words: list[str], tmp_path: Path) -> None:
    assert imported(words, tmp_path) <= {"hydra"}


def test_runs_are_compared_without_what_made_them(workdir: Path) -> None:
    assert run([*TINY, "output_dir=runs"]) == 0
    assert imported(["compare", "runs"], workdir) <= {"numpy", "matplotlib"}


def test_a_short_job_imports_what_lightning_and_the_model_import(tmp_path: Path) -> None:
    assert imported(TINY, tmp_path) <= BY_LIGHTNING | {"accelerate", "hydra"}
