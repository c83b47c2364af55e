"""Two processes do what one would: under Lightning's own trainer, and from the command to the checkpoint."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from resuming import lines
from warm import fork_ranks

import qtarget
from qtarget.cli import run as qtarget_cli
from qtarget.config.run_config import RunConfig
from qtarget.data.batch import Batch
from qtarget.data.example import Example
from qtarget.data.lightning_data import SFTData
from qtarget.data.module import DataConfig, prepare
from qtarget.data.noise import WrongAnswer
from qtarget.data.sources.reasoning_gym import ReasoningGym
from qtarget.model.builtin import tiny_config, tiny_model, tiny_tokenizer
from qtarget.model.frozen import FrozenModel, Snapshot
from qtarget.model.policy import Policy
from qtarget.model.sharding import whole
from qtarget.run import fit, ranks
from qtarget.train.lightning_module import QTargetModule
from qtarget.train.optim import AdamW

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
STEPS, ROWS = 2, 8  # rows of one optimizer step
RANKING = 1e-2  # two tokens that are all but equally trusted may change places


@dataclass(frozen=True)
class Case:
    """A design, and what is special about the step."""

    design: str
    changes: dict[str, Any] = field(default_factory=dict)
    clip: float = 0.0
    weighted: bool = False  # the data gives tokens weights other than 1
    masked: bool = False  # rank 1's last micro-batch of the first step has nothing supervised
    cuts: tuple[tuple[str, int], ...] = (("ddp", 2), ("fsdp2", 2))  # strategy, micro-batches a step
    optim: dict[str, Any] = field(default_factory=lambda: {"lr": 1e-2})


CUTS = (("ddp", 1), ("ddp", 2), ("fsdp2", 1), ("fsdp2", 2))
CASES = {
    "teacher": Case("target_sft", cuts=CUTS),
    "step values, kept tokens": Case("rho1", {"reliance.source": "prior"}, cuts=CUTS),
    "sequence values, weight sum": Case("iw_sft", {"normalize": "weight_sum"}, cuts=CUTS),
    "sequences": Case("talr", {"normalize": "sequences"}),
    "the policy as it was": Case("psft"),
    "clipped": Case("sft", clip=0.05),
    "steps of a given length": Case("dft", optim={"lr": None, "update_norm": 1e-2}),
    "weights of the data": Case("dft", {"normalize": "weight_sum"}, weighted=True, cuts=(("ddp", 2),)),
    "weights of the data, sequences": Case("talr", {"normalize": "sequences"}, weighted=True, cuts=(("fsdp2", 2),)),
    "masked": Case("dft", masked=True),
    "masked, step values": Case("rho1", {"reliance.source": "prior"}, masked=True),
}
RUNS = [(name, *cut) for name, case in CASES.items() for cut in case.cuts]


# One run of Lightning's trainer, on one process or as one of two


def examples(case: Case) -> list[Example]:
    """Two steps of rows of unequal length."""
    source = ReasoningGym("chain_sum", {"min_terms": 2, "max_terms": 4}, system="")
    config = DataConfig(source, rows=STEPS * ROWS, heldout_rows=2, noise=WrongAnswer(0.5))
    rows = list(prepare(config, tiny_tokenizer(), 1024).train)
    if case.weighted:
        rows = [replace(row, weights=[0.25 * (row.row % 3 + 1) * on for on in row.supervised]) for row in rows]
    if case.masked:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()  # the sampler's
        for index in order[1:ROWS:2][ROWS // 4 :]:
            rows[index] = replace(rows[index], supervised=(False,) * len(rows[index]))
    return rows


def policy(offset: float = 0.0) -> Policy:
    made = Policy(tiny_model(tiny_config(len(tiny_tokenizer()))), len(tiny_tokenizer()))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(offset * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return made


class Seen(L.Callback):
    """The micro-batches of a rank, and the whole gradients before each optimizer step."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.gradients: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.gradients.append(flat(parameter.grad for parameter in pl_module.policy.parameters()))


def flat(tensors: Iterable[Any]) -> torch.Tensor:
    return torch.cat([whole(tensor.detach()).flatten() for tensor in tensors])


def trained(case: Case, strategy: str, devices: int, accumulate: int) -> dict[str, Any]:
    """What two optimizer steps leave behind; a large ε keeps the size of Adam's steps, so that a wrong scale shows."""
    settings = {"devices": devices, "strategy": strategy, "accumulate": accumulate, "clip": case.clip}
    settings |= {"max_steps": STEPS, "accelerator": "cpu", "precision": "32-true"}
    cfg = RunConfig.compose(["model=tiny", *(f"trainer.{key}={value}" for key, value in settings.items())])
    frozen = FrozenModel(policy(offset=0.05))
    references = {"prior": frozen, "teacher": frozen, "old": Snapshot(policy(), every=1)}
    module = QTargetModule(
        policy().train(),
        qtarget.load_design(case.design, **case.changes),
        references,
        AdamW(**case.optim, warmup=0.0, weight_decay=0.0, eps=1.0),
        total_steps=STEPS,
    )
    seen, size = Seen(), ROWS // devices // accumulate
    data = SFTData(examples(case), 256, batch_size=size, accumulate=accumulate, seed=0)
    fit.lightning_fit(fit.make_trainer(cfg, [seen]), module, data)
    return {
        "gradients": seen.gradients,
        "weights": flat(module.policy.parameters()),
        "metrics": module.whole_run.compute(),
        "detection": module.whole_detection.compute(),
        "rows": [len(batch.labels) for batch in seen.batches],
        "supervised": [batch.supervised for batch in seen.batches],
        "tokens": [batch.window.tokens for batch in seen.batches if batch.window],
    }


def train_every_case(folder: str) -> None:
    """All of them in one pair of processes: starting one takes longer than what it has to do."""
    fit.prepare_process(0)
    found = {(name, *cut): trained(CASES[name], cut[0], 2, cut[1]) for name, *cut in RUNS}
    torch.save(found, f"{folder}/{dist.get_rank()}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, dict[str, Any]]]:
    """What each of two ranks found, by (case, strategy, accumulate)."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        fork_ranks(patch)
        ranks.start(2, train_every_case, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


Found = list[dict[Any, dict[str, Any]]]
one_worker = pytest.mark.xdist_group("ranks")  # the ranks of `two` take a minute
each_run = pytest.mark.parametrize(("name", "strategy", "accumulate"), RUNS)


@one_worker
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_take_the_steps_of_one(two: Found, name: str) -> None:
    """Gradients, weights after two steps and logged means; the window's count is that of all ranks."""
    one = trained(CASES[name], "auto", 1, 1)
    for strategy, accumulate in CASES[name].cuts:
        for rank in (0, 1):
            found = two[rank][name, strategy, accumulate]
            assert found["rows"] == [ROWS // 2 // accumulate] * STEPS * accumulate
            assert set(found["tokens"][:accumulate]) == {one["supervised"][0]}
            for got, expected in zip(found["gradients"], one["gradients"], strict=True):
                torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(found["weights"], one["weights"], atol=1e-7, rtol=1e-5)
            assert found["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
            assert found["detection"] == pytest.approx(one["detection"], abs=RANKING)
    assert not torch.equal(one["weights"], flat(policy().parameters()))
    assert {"detection/auroc", "detection/gradient_share"} <= set(one["detection"])


@one_worker
@pytest.mark.slow
@each_run
def test_gradients_are_the_same_on_every_rank_after_a_step(
    two: Found, name: str, strategy: str, accumulate: int
) -> None:
    mine, theirs = (found[name, strategy, accumulate] for found in two)
    assert len(mine["gradients"]) == STEPS
    assert mine["supervised"] != theirs["supervised"]  # each read rows of its own
    for got, expected in zip(mine["gradients"], theirs["gradients"], strict=True):
        assert torch.equal(got, expected)
    assert torch.equal(mine["weights"], theirs["weights"])


@one_worker
@pytest.mark.slow
@pytest.mark.parametrize(("name", "strategy", "accumulate"), [run for run in RUNS if CASES[run[0]].masked])
def test_an_all_masked_micro_batch_on_one_rank(two: Found, name: str, strategy: str, accumulate: int) -> None:
    """It waits for nobody, and adds nothing: that the step is right nonetheless is tested above."""
    first, second = (found[name, strategy, accumulate] for found in two)
    assert [count > 0 for count in first["supervised"]] == [True] * 4
    assert [count > 0 for count in second["supervised"]] == [True, False, True, True]
    assert all(torch.isfinite(gradient).all() for gradient in second["gradients"])


# Processes of a run


def killed_in_rank_1() -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()  # waits for a rank that won't come


@pytest.mark.slow
@pytest.mark.usefixtures("warm_ranks")
def test_a_rank_that_is_killed_is_named() -> None:
    """And not what its end did to the others."""
    with pytest.raises(ranks.RankError, match="rank 1 of 2 was ended by SIGKILL: was memory short"):
        ranks.start(2, killed_in_rank_1)


def test_the_first_to_fail_is_raised() -> None:
    reports: queue.SimpleQueue[ranks.Report] = queue.SimpleQueue()
    with pytest.raises(ranks.RankError, match="rank 1 of 2 was ended by exit code 3"):
        ranks._raise([None, 3], reports)
    reports.put(ranks.Report(1, "ValueError: out of luck", False, "line 7, in unlucky"))
    reports.put(ranks.Report(0, "RuntimeError: connection closed", False, ""))
    with pytest.raises(ranks.RankError, match=r"^rank 1 of 2: ValueError: out of luck$") as raised:
        ranks._raise([1, 1], reports)
    assert "line 7, in unlucky" in str(raised.value.__cause__)


def test_processes_that_somebody_else_started_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = RunConfig.compose(["trainer.devices=4", "trainer.num_nodes=2"]).trainer
    with pytest.raises(qtarget.QTargetError, match="start the same command on every node with torchrun or srun"):
        ranks.check_started(trainer)
    for name, value in {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    ranks.check_started(trainer)
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(qtarget.QTargetError, match=r"6 processes were started, and .* is 8"):
        ranks.check_started(trainer)


def test_an_allocation_is_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a batch script SLURM tells of all tasks there may be; only a step of srun's is made of them."""
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert ranks.environment() is None
    for name, value in {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(qtarget.QTargetError, match="Use `--ntasks-per-node=2` instead"):
        ranks.environment()
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    found = ranks.environment()
    assert found is not None
    assert (found.global_rank(), found.world_size()) == (1, 2)


# The command

SMALL = ["model=tiny", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_steps=3", "data.rows=48"]
SMALL += ["data.heldout_rows=8", "eval.problems_in_training=4", "trainer.eval_every=2", "trainer.log_every=1"]
TWO = ["trainer.devices=2", "trainer.batch_size=8"]


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Every finished run below a folder, by its strategy."""
    found = {}
    for path in folder.glob("*/result.json"):
        result = json.loads(path.read_text())
        if result["status"] != "finished":
            continue
        lines = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        cfg = (path.parent / "config.yaml").read_text()
        (strategy,) = (name for name in ("auto", "ddp", "fsdp2") if f"strategy: {name}" in cfg)
        found[strategy] = {"folder": path.parent, "lines": lines, **result}
    return found


def assert_same_numbers(lines: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Line by line, but for what a clock or the memory says."""
    measured = {"time", "train/tokens_per_second", "train/seconds", "train/peak_memory_gb"}
    for got, wanted in zip(lines, expected, strict=True):
        same = {name: value for name, value in wanted.items() if name not in measured}
        assert set(same) <= set(got)
        for name, value in same.items():
            tolerance = RANKING if name.startswith("detection/") else 1e-7
            assert got[name] == pytest.approx(value, rel=1e-4, abs=tolerance), name


def assert_optimizer_loads(path: Path, model: torch.nn.Module) -> None:
    state = torch.load(path, weights_only=True)
    assert state["step"] == 3
    optimizer = AdamW().configure(model.parameters(), 3)["optimizer"]
    optimizer.load_state_dict(state["optimizer"])
    for parameter in model.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


@pytest.mark.slow
def test_two_devices_end_where_one_does(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Records, checkpoints and the optimizer's state of a multirun of ddp and fsdp2, against a run of one process.

    The ranks are started as they are for users, by interpreters of their own.
    """
    from transformers import AutoModelForCausalLM

    small = [*SMALL, "checkpoint.optimizer=true"]
    several = ["train", "-m", "target=sft,kd", *small, *TWO]
    for strategy in ("ddp", "fsdp2"):
        # kd has no teacher, which is said before a process is started
        assert qtarget_cli([*several, f"trainer.strategy={strategy}", f"output_dir={strategy}"]) == 2
        said = capfd.readouterr()
        assert said.err.count("FAILED    target=kd") == 1
        assert said.err.count("this target needs the teacher") == 2  # before the first job starts, and at the end
        assert "Traceback" not in said.err
        assert said.out.count("sft: 3 steps × 16 rows = 1 epochs of 48 rows") == 1  # one of the two ranks speaks
        assert "Warning" not in said.err
    assert qtarget_cli(["train", *small, "trainer.batch_size=16"]) == 0
    runs = {name: run for top in ("ddp", "fsdp2", "outputs") for name, run in records(workdir / top / "runs").items()}
    one = runs.pop("auto")
    expected = AutoModelForCausalLM.from_pretrained(one["folder"] / "checkpoint").state_dict()
    files = {path.name for path in one["folder"].rglob("*")}
    for run in runs.values():
        assert {path.name for path in run["folder"].rglob("*")} == files
        assert_same_numbers([*run["lines"], run["metrics"]], [*one["lines"], one["metrics"]])
        assert lines(run["folder"], "histograms.jsonl") == lines(one["folder"], "histograms.jsonl")
        assert len(run["trust"]) == 20
        model = AutoModelForCausalLM.from_pretrained(run["folder"] / "checkpoint")
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)
        sizes = [(each["folder"] / "checkpoint/model.safetensors").stat().st_size for each in (run, one)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.01)  # tied weights are saved once
        assert (run["folder"] / "samples.jsonl").read_text() == (one["folder"] / "samples.jsonl").read_text()
        assert_optimizer_loads(run["folder"] / "optimizer.pt", model)
    monkeypatch.setattr(ranks, "start", None)  # what is finished is returned without a process
    half = ["trainer.batch_size=8", "trainer.accumulate=2", "trainer.devices=1"]
    for strategy, run in runs.items():  # also on another number of devices
        for given in (f"trainer.strategy={strategy}", *TWO), half:
            assert qtarget_cli(["train", *small, *given, f"output_dir={strategy}"]) == 0
            assert str(run["folder"].relative_to(workdir)) in capfd.readouterr().out
    assert qtarget_cli(["compare", "ddp/runs"]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("warm_ranks")
def test_bad_input_under_two_devices_is_one_plain_message(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Found by every rank, said once."""
    assert qtarget_cli(["train", *SMALL, *TWO, "data.max_length=4"]) == 2
    error = capfd.readouterr().err
    assert error.startswith("qtarget: 48 of 48 rows are longer than 4 tokens")
    assert len(error.strip().splitlines()) == 1
    (folder,) = workdir.glob("outputs/runs/*")
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "failed"
    assert "rows are longer than 4 tokens" in result["error"]
    assert "in limited" in (folder / "traceback.txt").read_text()  # of the rank


@pytest.mark.slow
def test_ranks_that_torchrun_started_are_used(workdir: Path) -> None:
    """One record, written by rank 0; what is finished, every rank leaves alone."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "qtarget", "train", "-m", "seed=0,0", *SMALL, *TWO]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for said in ("sft: 3 steps × 16 rows", "sft: finished already, not trained again", "next: qtarget compare"):
        assert done.stdout.count(said) == 1
    (path,) = workdir.glob("outputs/runs/*/result.json")
    assert json.loads(path.read_text())["status"] == "finished"


BAD = {
    "devices": (["trainer.devices=0"], "trainer.devices must be a whole number of at least 1, got 0"),
    "strategy": (["trainer.strategy=fsdp"], "trainer.strategy must be one of auto, ddp, fsdp2, got 'fsdp'"),
    "one device": (["trainer.strategy=ddp"], "spreads a run over devices, and this one has one: set trainer.devices=N"),
    "nodes": (["trainer.num_nodes=2"], "start the same command on every node with torchrun or srun"),
}


@pytest.mark.parametrize("case", BAD)
def test_devices_are_checked_before_a_process_is_started(
    case: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ranks, "start", None)
    overrides, message = BAD[case]
    assert qtarget_cli(["train", *SMALL, *overrides]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
