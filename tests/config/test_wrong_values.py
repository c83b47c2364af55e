"""Wrong values are answered before torch is imported, which takes seconds; parts whose yaml names no class, by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import compose_config
from qtarget.config.run_config import RunConfig
from qtarget.errors import QTargetError

WRONG: dict[str, list[str]] = {
    "trainer.clip must lie in": ["trainer.clip=-1"],
    "trainer.max_steps and trainer.epochs": ["trainer.epochs=1"],
    "trainer.strategy=ddp spreads a run over devices": ["trainer.strategy=ddp"],
    "eval.top_p must lie in": ["eval.top_p=0"],
    "eval.batch_size must be a whole number": ["eval.batch_size=0"],
    "eval.retention needs a source": ["+eval.retention.source=arithmetic"],
    "data.rows must be a whole number": ["data.rows=-1"],
    "data.truncation must be one of": ["data.truncation=x"],
    "data.source.seed must be a whole number": ["data=reasoning_gym", "data.source.seed=-1"],
    "data.source.path must be set": ["data=jsonl"],
    "data.noise.rate must lie in": ["data.noise.rate=2"],
    "unknown key 'data.noise.rates'": ["+data.noise.rates=0.1"],
    "optim.lr must lie in": ["optim.lr=fast"],
    "optim.betas[1] must lie in": ["optim.betas=[0.9,2]"],
    "exactly one of optim.lr and optim.update_norm": ["optim.lr=null"],
    "checkpoint.dtype must be one of": ["checkpoint.dtype=float16"],
    "checkpoint.every must be a whole number": ["checkpoint.every=0"],
    "tracker.mode must be one of": ["tracker=wandb", "tracker.mode=ofline"],
    "loss.chunk_size must be a whole number": ["loss.chunk_size=-1"],
    "model.dtype must be one of": ["model.dtype=int4"],
    "model.attention must be one of": ["model.attention=fast"],
    "model.chat_template=nofile is no shipped template": ["model.chat_template=nofile"],
    "model.adapter.rank must be a whole number": ["model/adapter=lora", "model.adapter.rank=0"],
    "model.adapter.options.r is none of": ["model/adapter=lora", "+model.adapter.options.r=1"],
    "references.prior.dtype must be one of": ["references.prior.dtype=int4"],
    "references.old.every must be a whole number": ["references.old.every=0"],
    "references.prior=adapter_off is the policy with": ["reference@references.prior=adapter_off"],
    "references.prior.flaw.temperature must lie in": [
        "reference/flaw@references.prior.flaw=temperature",
        "references.prior.flaw.temperature=-1",
    ],
    "seed must be a whole number": ["seed=abc"],
    "unknown model 'tinny'": ["model=tinny"],
}
WITHOUT_TORCH = f"""
import json, sys
from importlib.machinery import ModuleSpec

class Refuses:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name in ("torch", "transformers", "lightning") else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        raise AssertionError(f"{{module.__name__}} was imported")

sys.meta_path.insert(0, Refuses())
from qtarget.config.run_config import RunConfig
from qtarget.errors import QTargetError
told = {{}}
for message, overrides in {WRONG!r}.items():
    try:
        RunConfig.compose(["model=tiny", *overrides])
        told[message] = "nothing"
    except QTargetError as error:
        told[message] = str(error)
    except AssertionError as error:
        told[message] = str(error)
print(json.dumps(told))
"""


def test_wrong_values_of_all_keys_but_a_targets_are_found_without_torch(workdir: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert {message: text for message, text in told.items() if message not in text} == {}


@pytest.mark.parametrize("command", ["train"])
def test_the_command_ends_before_torch_is_imported(command: str, workdir: Path) -> None:
    """The record of the job says why, as of any other that failed."""
    script = f"""
import sys
from qtarget.cli import run
code = run(["{command}", "model=tiny", "trainer.clip=-1"])
assert code == 2, code
assert not {{"torch", "transformers", "lightning"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == "qtarget: trainer.clip must lie in [0, ∞), got -1\n"
    (result,) = Path("outputs").glob("runs/*/result.json")
    assert json.loads(result.read_text())["status"] == "failed"


# Parts whose yaml forgets _target_

FORGETFUL: dict[str, tuple[str, list[str]]] = {
    "optim": ("optim=mine: conf/optim/mine.yaml", ["optim=mine"]),
    "tracker": ("tracker=mine: conf/tracker/mine.yaml", ["tracker=mine"]),
    "data": ("data=mine: conf/data/mine.yaml", ["data=mine"]),
    "data/source": ("data/source=mine: conf/data/source/mine.yaml", ["data/source=mine"]),
    "data/noise": ("data/noise=mine: conf/data/noise/mine.yaml", ["data/noise=mine"]),
    "model/adapter": ("model/adapter=mine: conf/model/adapter/mine.yaml", ["model/adapter=mine"]),
    "reference/flaw": (
        "reference/flaw@references.prior.flaw=mine: conf/reference/flaw/mine.yaml",
        ["reference/flaw@references.prior.flaw=mine"],
    ),
}
ALSO: dict[str, list[str]] = {
    "data.source.parts.a": ["data=mix", "+data/source@data.source.parts.a=mine"],
    "data.noise.parts.a": ["data/noise=several", "+data/noise@data.noise.parts.a=mine"],
    "data.heldout_source": ["+data/source@data.heldout_source=mine"],
    "eval.benchmarks.b.source": ["+data/source@eval.benchmarks.b.source=mine"],
    "eval.retention.source": ["+data/source@eval.retention.source=mine"],
}


def write_yaml(group: str) -> None:
    folder = Path("conf") / group
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("rate: 0.5\n")


@pytest.mark.parametrize("group", FORGETFUL)
def test_a_part_whose_yaml_names_no_class_is_refused_with_the_yaml_and_classes(
    group: str, workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_yaml(group)
    place, overrides = FORGETFUL[group]
    assert qtarget_cli(["train", "model=tiny", *overrides]) == 2
    error = capfd.readouterr().err
    assert f"qtarget: {place} has no _target_; write _target_: MODULE.CLASS, yours or one of qtarget." in error


@pytest.mark.parametrize("dotted", ALSO)
def test_so_is_one_within_another_part(dotted: str, workdir: Path) -> None:
    group = "data/noise" if "noise" in dotted else "data/source"
    write_yaml(group)
    with pytest.raises(QTargetError, match=rf"{dotted}.*conf/{group}/NAME\.yaml, has no _target_"):
        RunConfig.read(compose_config("train", ["model=tiny", *ALSO[dotted]]))


def test_so_is_a_launcher(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_yaml("hydra/launcher")
    assert qtarget_cli(["train", "-m", "hydra/launcher=mine", "model=tiny", "seed=1,2"]) == 2
    assert "hydra.launcher names no class: write _target_: MODULE.CLASS into its yaml" in capfd.readouterr().err
