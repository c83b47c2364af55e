"""What a run leaves on disk: the model that was tested, as it was trained unless another dtype is asked for."""

from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import only_run, result
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from qtarget import QTargetError
from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import instantiate_design
from qtarget.config.run_config import RunConfig
from qtarget.evaluate.heldout import Evaluator
from qtarget.model.builtin import tiny_tokenizer
from qtarget.run.closing import size_of
from qtarget.run.disk import DiskUse, check_room, disk_use, safetensors_bytes, total_in_words
from qtarget.sweep.command import sweep
from qtarget.sweep.scheduler import SweepScheduler
from qtarget.units import in_bytes

SMALL = ["model=tiny", "trainer.precision=32-true", "trainer.accelerator=cpu", "data.rows=16", "data.heldout_rows=8"]
SMALL += ["trainer.max_steps=2", "trainer.batch_size=8", "trainer.eval_every=0", "eval.new_tokens=2", "optim.lr=1e-2"]


def trained(folder: str, *options: str) -> Path:
    assert qtarget_cli(["train", *SMALL, *options, f"output_dir={folder}"]) == 0
    return only_run(Path(folder))


def dtypes(run: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in load_file(run / "checkpoint/model.safetensors").values()}


def evaluated(run: Path) -> dict[str, Any]:
    """What `qtarget evaluate` measures of a run's checkpoint."""
    assert qtarget_cli(["evaluate", f"checkpoint={run}", "output_dir=again"]) == 0
    (path,) = Path("again").glob("evaluations/*/result.json")
    metrics: dict[str, Any] = json.loads(path.read_text())["metrics"]
    return metrics


def test_by_itself_a_run_leaves_the_weights_as_trained_and_what_transformers_needs(workdir: Path) -> None:
    run = trained("outputs")
    files = {"config.json", "generation_config.json", "model.safetensors"}
    files |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {path.name for path in (run / "checkpoint").iterdir()} == files
    assert not (run / "optimizer.pt").exists()
    assert dtypes(run) == {torch.float32}
    kept = trained("other", "checkpoint.optimizer=true")
    assert kept.name == run.name  # the same run
    assert {path.name for path in (kept / "checkpoint").iterdir()} == files
    assert torch.load(kept / "optimizer.pt", weights_only=True)["step"] == 2


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        (["model.dtype=bfloat16", "optim.allow_bf16_rounding=true"], torch.bfloat16),
        (["model.dtype=bfloat16", "model/adapter=lora"], torch.float32),  # what fp32 matrices add, bf16 would lose
    ],
)
def test_weights_are_saved_as_they_were_trained(options: list[str], dtype: torch.dtype, workdir: Path) -> None:
    assert dtypes(trained("outputs", "trainer.precision=bf16-mixed", *options)) == {dtype}


@pytest.mark.parametrize("adapter", [[], ["model/adapter=lora"]], ids=["all weights", "an adapter"])
def test_a_rounded_checkpoint_is_the_model_that_the_closing_metrics_are_of(adapter: list[str], workdir: Path) -> None:
    exact, rounded = trained("exact", *adapter), trained("rounded", *adapter, "checkpoint.dtype=bfloat16")
    assert dtypes(rounded) == {torch.bfloat16}
    metrics, unrounded, again = result(rounded)["metrics"], result(exact)["metrics"], evaluated(rounded)
    for name in ("test/nll", "test/kl_prior"):
        assert metrics[name] == pytest.approx(again[name], rel=1e-6)
        assert metrics[name] != pytest.approx(unrounded[name], rel=1e-5)
    for line, unrounded_line in zip(
        *((run / "metrics.jsonl").read_text().splitlines() for run in (rounded, exact)), strict=True
    ):
        ours, theirs = json.loads(line), json.loads(unrounded_line)
        assert ours.get("train/nll") == theirs.get("train/nll")  # training is not rounded


@pytest.mark.slow
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.parametrize("adapter", [[], ["model/adapter=lora"]], ids=["all weights", "an adapter"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_several_devices_test_the_rounded_model_too(strategy: str, adapter: list[str], workdir: Path) -> None:
    two = ["trainer.devices=2", f"trainer.strategy={strategy}", "trainer.batch_size=4"]
    rounded = trained("rounded", *adapter, *two, "checkpoint.dtype=bfloat16")
    assert dtypes(rounded) == {torch.bfloat16}
    metrics, again = result(rounded)["metrics"], evaluated(rounded)
    for name in ("test/nll", "test/kl_prior"):
        assert metrics[name] == pytest.approx(again[name], rel=1e-5)


# What is said before


@pytest.fixture
def model(workdir: Path) -> list[str]:
    """A random Llama of 1.1 million weights, beside which headers and random numbers count little."""
    words = tiny_tokenizer()
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 5, "num_attention_heads": 4}
    lm = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), tie_word_embeddings=True, **sizes))
    lm.save_pretrained("base")
    words.save_pretrained("base")
    return ["model=path", "model.name=base"]


def announced(*options: str) -> DiskUse:
    cfg = RunConfig.compose([*SMALL, *options])
    return disk_use(cfg, instantiate_design(cfg.target))


CASES = {
    "all weights": [],
    "a rounded checkpoint": ["checkpoint.dtype=bfloat16"],
    "bf16 weights": ["model.dtype=bfloat16", "optim.allow_bf16_rounding=true", "trainer.precision=bf16-mixed"],
    "an adapter": ["model/adapter=lora"],
    "an adapter and whole embeddings": ["model/adapter=lora", "+model.adapter.options.modules_to_save=[embed_tokens]"],
    "an old policy": ["target=psft"],
    "no weights": ["checkpoint.save=false"],
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_writes_what_is_said_before(
    case: str, model: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within 3 %: the sizes of files, and of the state that a run goes on from while it is evaluated."""
    states: list[int] = []
    original = Evaluator.__call__

    def measured(self: Evaluator, policy: Any, limit: int | None = None, *, closing: bool = True) -> Any:
        states.extend([size_of(only_run(Path("outputs")) / "state")] * closing)
        return original(self, policy, limit, closing=closing)

    monkeypatch.setattr(Evaluator, "__call__", measured)
    options = [*model, *CASES[case], "checkpoint.optimizer=true", "checkpoint.every=2"]
    use, run = announced(*options), trained("outputs", *options)
    for name, size in (("checkpoint", use.checkpoint), ("adapter", use.adapter), ("optimizer.pt", use.optimizer)):
        assert size == pytest.approx(size_of(run / name) if (run / name).exists() else 0, rel=0.03)
    assert [use.state] == pytest.approx(states, rel=0.03)
    assert f"; {use.in_words}\n" in capsys.readouterr().out


def test_what_is_left_for_an_evaluation_to_be_done_again_is_said(
    model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, "__call__", lambda *_, **__: 1 / 0)
    assert qtarget_cli(["train", *SMALL, *model]) == 1
    left = size_of(only_run(Path("outputs")) / "state")
    use = announced(*model)
    assert use.last_state == pytest.approx(left, rel=0.03)
    assert use.meanwhile == use.checkpoint + use.last_state
    assert use.most == use.state


def test_caches_that_a_run_builds_are_said_by_it_and_named_by_a_multirun(
    model: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within 3 %, as the files are; the prior's over the rows of training and over those that drift is measured on."""
    monkeypatch.setenv("QTARGET_CACHE", "cache")
    cached = ["target=asft", "reference@references.prior=cached"]
    trained("outputs", *model, *cached)
    size = sum(path.stat().st_size for path in Path("cache/references").rglob("*.safetensors"))
    (said,) = re.findall(r"; builds (\S+) kB of caches in cache/references\n", capsys.readouterr().out)
    assert float(said) == pytest.approx(size / 1e3, rel=0.03)
    trained("again", *model, *cached)
    assert "of caches" not in capsys.readouterr().out
    assert "caches of references come on top, once for all" in total_in_words([announced(*cached)] * 2, Path())
    assert "caches" not in total_in_words([announced()] * 2, Path())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_size_of_a_safetensors_file_is_exact(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3, 5), "a.b": torch.zeros(7), "count": torch.zeros((), dtype=torch.int64)}
    saved = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_file(saved, tmp_path / "file", metadata={"format": "pt"})
    size = (tmp_path / "file").stat().st_size
    assert safetensors_bytes({name: tensor.to("meta") for name, tensor in tensors.items()}, dtype) == size


def test_a_dry_run_says_what_is_written_and_a_multirun_the_total(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*SMALL, "checkpoint.optimizer=true", "trainer=dry"]
    assert qtarget_cli(["train", "-m", *options, "target=sft,dft"]) == 0
    said, use = capsys.readouterr().out, announced("checkpoint.optimizer=true")
    assert said.count(f"  disk        {use.in_words}\n") == 2
    more = in_bytes(use.meanwhile - use.kept)
    assert f"2 jobs keep {in_bytes(2 * use.kept)} on disk, each takes up to {more} more while it runs; " in said


SWEEP = """
program: qtarget
method: {method}
name: swept
metric: {{name: test/nll, goal: minimize}}
command: [qtarget, train, model=tiny, "${{args_no_hyphens}}"]
parameters: {{target: {{values: [sft, dft]}}, checkpoint.dtype: {{values: [trained, bfloat16]}}}}
"""


@pytest.mark.parametrize(("method", "jobs"), [("grid", 4), ("bayes", 9)])
def test_a_sweep_says_the_total_before_its_first_job(
    method: str, jobs: int, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a grid that of its points; of a search, which has none yet, the most that it may be."""
    Path("sweep.yaml").write_text(SWEEP.format(method=method))
    monkeypatch.setattr(SweepScheduler, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sweep(Path("sweep.yaml"), SMALL, max_points=None if method == "grid" else jobs)
    whole, rounded = (announced(f"checkpoint.dtype={dtype}").kept for dtype in ("trained", "bfloat16"))
    total = in_bytes(2 * whole + 2 * rounded if method == "grid" else jobs * whole)
    assert f"swept: {jobs} jobs keep {total} on disk, each takes up to " in capsys.readouterr().err


# Room


USE = DiskUse(checkpoint=100, optimizer=200, state=310, last_state=110)


def has_free(patch: pytest.MonkeyPatch, free: int, total: int = 10**12) -> None:
    usage = namedtuple("usage", "total used free")
    patch.setattr(shutil, "disk_usage", lambda path: usage(total, total - free, free))


def test_a_run_that_cannot_be_finished_is_refused_before_it_trains(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    has_free(monkeypatch, 200_000)
    assert qtarget_cli(["train", *SMALL, "checkpoint.optimizer=true"]) == 2
    said = capfd.readouterr().err
    assert "and 200.0 kB are free in outputs/runs/" in said
    assert "Set output_dir=FOLDER to a larger disk, make room (qtarget clean), or write less" in said
    assert (only_run(Path("outputs")) / "metrics.jsonl").read_text() == ""
    assert qtarget_cli(["train", *SMALL, "checkpoint.optimizer=true", "trainer=dry"]) == 2


def test_a_run_that_only_its_stop_may_find_no_room_is_warned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tight = DiskUse(checkpoint=100, state=310, last_state=110)
    has_free(monkeypatch, 209)
    with pytest.raises(QTargetError, match=r"up to 210 bytes while it runs, 310 bytes where it is stopped, and 209"):
        check_room(tight, tmp_path)
    has_free(monkeypatch, 210)
    assert "310 bytes where it is stopped, and 210 bytes are free" in check_room(tight, tmp_path)
    has_free(monkeypatch, 310)
    assert check_room(tight, tmp_path) == ""


def test_states_of_a_run_lie_side_by_side_while_one_takes_the_place_of_another() -> None:
    assert announced("checkpoint.every=1").states == 2
    assert announced("checkpoint.every=2").states == 1  # of two steps
    assert DiskUse(state=310, states=2).needed == 620
    assert DiskUse(checkpoint=400, state=310, states=1).needed == 710


def test_what_an_earlier_attempt_has_left_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_free(monkeypatch, 300)
    with pytest.raises(QTargetError):
        check_room(USE, tmp_path)
    (tmp_path / "state" / "step-4").mkdir(parents=True)
    (tmp_path / "state" / "step-4" / "weights").write_bytes(b"x" * 110)
    check_room(USE, tmp_path)


def test_caches_that_are_built_on_the_same_disk_take_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_free(monkeypatch, 500)
    check_room(USE, tmp_path / "run")
    with pytest.raises(QTargetError, match=r"400 bytes are free in .* beside 100 bytes of caches"):
        check_room(USE, tmp_path / "run", [(tmp_path / "cache" / "new", 100)])
    check_room(USE, tmp_path / "run", [(Path("/proc/cache"), 100)])  # another disk


def test_a_disk_that_does_not_say_its_size_refuses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_free(monkeypatch, 0, total=0)
    assert check_room(USE, tmp_path) == ""
    assert "free" not in total_in_words([USE, USE], tmp_path)


def test_jobs_that_have_no_room_together_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_free(monkeypatch, 709)
    assert "They don't all fit" in total_in_words([USE, USE], tmp_path)
    has_free(monkeypatch, 710)  # 300 + 300, and 110 of the one that runs
    assert total_in_words([USE, USE], tmp_path).endswith(f"; 710 bytes are free in {tmp_path}")


def test_an_adapter_of_the_users_own_is_not_asked_for_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = RunConfig.compose([*SMALL, "model/adapter=lora"])
    monkeypatch.setitem(cfg.model.adapter, "_target_", "mine.Adapter")
    assert disk_use(cfg, instantiate_design(cfg.target)) == DiskUse(is_known=False)
