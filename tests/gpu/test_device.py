"""What has to hold on the device that trains: a CUDA device where there is one, as `make gpu` asks, else the CPU.

QTARGET_GPU_DEVICE=cpu takes the CPU on any machine: everything but the kernels is the same there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training import other_policy, tiny_policy
from worlds import load_design

import qtarget
from qtarget import Head, Reference
from qtarget.cli import run as qtarget_cli
from qtarget.math.loss import IGNORE
from qtarget.math.scoring import graphs_compiled
from qtarget.math.target import needs
from qtarget.model import draws
from qtarget.model.frozen import FrozenModel
from qtarget.model.sharding import offload

DEVICE = torch.device(os.environ.get("QTARGET_GPU_DEVICE", "cuda" if torch.cuda.is_available() else "cpu"))
ON_GPU = DEVICE.type == "cuda"
DESIGNS = ("sft", "dft", "asft", "target_sft", "kd_jsd", "gem")
N, V, D = 96, 1000, 32
compiles = pytest.mark.skipif(not ON_GPU, reason="a C++ compiler takes minutes; tests/math/test_compiled.py does it")
counts_memory = pytest.mark.skipif(not ON_GPU, reason="no allocator of a CPU counts what it hands out")
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
SMALL = ["model=tiny", f"trainer.accelerator={'gpu' if ON_GPU else 'cpu'}", "trainer.max_steps=3", "data.rows=24"]
SMALL += ["data.heldout_rows=4", "eval.problems_in_training=2", "eval.new_tokens=4", "trainer.batch_size=4"]
SMALL += ["loss.compile=off"]


def problem(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Reference]:
    """Hidden states, head, labels of which some aren't supervised, and another distribution: the same everywhere."""
    generator = torch.Generator().manual_seed(0)
    hidden, other = (torch.randn(N, D, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = 0.3 * torch.randn(V, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(V, (N,), generator=generator)
    labels[::7] = IGNORE
    moved = [tensor.to(device, dtype) for tensor in (hidden, weight, other)]
    reference = Reference.hidden(moved[2], Head(moved[1].clone()))
    return moved[0].requires_grad_(), moved[1].requires_grad_(), labels.to(device), reference


def gradients(
    design: str, dtype: torch.dtype, device: torch.device, **how: Any
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    hidden, weight, labels, other = problem(dtype, device)
    made = load_design(design)
    out = qtarget.linear_loss(hidden, weight, labels, made, references=dict.fromkeys(needs(made), other), **how)
    out.total.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return out.loss.double().cpu(), [hidden.grad.double().cpu(), weight.grad.double().cpu()]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=compiles)])
@pytest.mark.parametrize("chunk", [16, N])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("design", DESIGNS)
def test_the_loss_is_that_of_float64(
    design: str, dtype: torch.dtype, tolerance: float, chunk: int, compiled: bool
) -> None:
    """Beside the same numbers in float64 on the CPU, whole; errors relative to the largest entry."""
    loss, grads = gradients(design, dtype, DEVICE, chunk_size=chunk, compiled=compiled)
    true, exact = gradients(design, torch.float64, torch.device("cpu"), chunk_size=N)
    assert float((loss - true).abs().max() / true.abs().max()) < tolerance
    for got, expected in zip(grads, exact, strict=True):
        assert float((got - expected).norm() / expected.norm()) < tolerance


@compiles
def test_steps_of_other_lengths_make_no_new_graphs() -> None:
    design, before = load_design("dft"), graphs_compiled()
    for tokens in (90, 80, 70, 60):
        hidden, weight, labels, _ = problem(torch.float32, DEVICE)
        qtarget.linear_loss(hidden[:tokens], weight, labels[:tokens], design, compiled=True).total.backward()
    assert graphs_compiled() - before <= 2


@counts_memory
def test_the_chunked_head_takes_an_eighth_of_the_dense_one() -> None:
    def peak(work: Any) -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before

    hidden = torch.randn(8192, 256, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(49152, 256, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(49152, (8192,), device=DEVICE)

    def dense() -> None:
        torch.nn.functional.cross_entropy((hidden @ weight.T).float(), labels, reduction="sum").backward()

    def ours() -> None:
        qtarget.linear_loss(hidden, weight, labels, load_design("sft")).total.backward()

    chunked = peak(ours)
    assert chunked < peak(dense) / 8


def test_draws_on_the_device_are_those_of_the_cpu() -> None:
    logp = torch.randn(50, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(-1)
    at = draws.uniform(50, 64, 0, 0)
    assert torch.equal(draws.drawn(logp.to(DEVICE), at).cpu(), draws.drawn(logp, at))


def test_an_offloaded_reference_says_on_the_device_what_a_whole_one_says() -> None:
    ids = torch.arange(24, device=DEVICE).view(2, 12)
    whole, apart = FrozenModel(other_policy()).to(DEVICE), FrozenModel(other_policy())
    offload(apart.policy, DEVICE)
    with torch.no_grad():
        torch.testing.assert_close(apart.policy(ids), whole.policy(ids), rtol=0, atol=0)
    assert all(weight.is_meta for layer in apart.policy.decoder.layers for weight in layer.parameters())


def trained(*overrides: str) -> tuple[Path, dict[str, float]]:
    """A run in the folder worked in: where it is, and its closing metrics."""
    before = set(Path("outputs").glob("*/*"))
    assert qtarget_cli(["train", *SMALL, *overrides]) == 0
    (run,) = set(Path("outputs").glob("*/*")) - before
    metrics: dict[str, float] = json.loads((run / "result.json").read_text())["metrics"]
    return run, metrics


WAYS = {
    "live prior": ["target=asft"],
    "cached prior": ["target=asft", "reference@references.prior=cached"],
    "offloaded prior": ["target=asft", "references.prior.offload=true"],
    "gradient checkpointing": ["target=asft", "model.gradient_checkpointing=true"],
}


def test_ways_to_hold_a_prior_and_activations_train_alike(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTARGET_CACHE", str(workdir / "cache"))
    found = {
        name: trained(*how, "trainer.precision=32-true", f"experiment_name={name.replace(' ', '_')}")[1]
        for name, how in WAYS.items()
    }
    for name, metrics in found.items():
        for key in ("train/loss", "train/nll", "test/nll", "test/kl_prior"):
            assert metrics[key] == pytest.approx(found["live prior"][key], rel=1e-4, abs=1e-6), (name, key)


def test_lora_trains_and_its_checkpoint_is_judged_as_the_run_was(workdir: Path) -> None:
    run, metrics = trained("model/adapter=lora", "reference@references.prior=adapter_off", "target=asft")
    assert qtarget_cli(["evaluate", f"checkpoint={run}", SMALL[1]]) == 0
    (judged,) = set(Path("outputs").glob("*/*/result.json")) - {run / "result.json"}
    again = json.loads(judged.read_text())["metrics"]
    assert again["test/nll"] == pytest.approx(metrics["test/nll"], rel=1e-2)


KILLING = """
import os, signal, sys
from qtarget.cli import run
from qtarget.train.resume_callback import ResumeCallback

save, saved = ResumeCallback._save, []

def save_and_die(self, *given):
    save(self, *given)
    saved.append(1)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

ResumeCallback._save = save_and_die
run(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_run_that_was_killed_ends_where_an_unbroken_one_does(workdir: Path) -> None:
    """SIGKILL behind the second state; on a GPU sums of atomics differ by rounding, so that it isn't bit for bit."""
    command = [*SMALL, "trainer.max_steps=6", "checkpoint.every=1", "trainer.log_every=1"]
    run, metrics = trained(*command, "experiment_name=unbroken")
    arguments = ["train", *command, "experiment_name=killed"]
    assert subprocess.run([sys.executable, "-c", KILLING, *arguments], check=False).returncode == -9
    assert qtarget_cli(["train", *command, "experiment_name=killed"]) == 0
    (again,) = Path("outputs/killed").glob("*/result.json")
    other = json.loads(again.read_text())["metrics"]
    assert run.parent.name == "unbroken"
    for key in ("train/nll", "test/nll"):
        assert other[key] == pytest.approx(metrics[key], rel=1e-5 if ON_GPU else 1e-9)


@pytest.mark.slow
def test_two_runs_share_one_device(workdir: Path) -> None:
    jobs = ["hydra/launcher=slots", "hydra.launcher.slots=2", *(["hydra.launcher.devices=[0]"] if ON_GPU else [])]
    assert qtarget_cli(["train", "-m", *SMALL, "target=sft,dft", *jobs]) == 0
    results = [json.loads(path.read_text()) for path in Path("outputs").glob("*/*/result.json")]
    assert [result["status"] for result in results] == ["finished"] * 2


def test_the_tiny_model_gives_the_same_logits_on_the_device() -> None:
    ids = torch.arange(60).view(2, 30)
    with torch.no_grad():
        here, there = tiny_policy().lm(ids).logits, tiny_policy().lm.to(DEVICE)(ids.to(DEVICE)).logits.cpu()
    torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-4)
