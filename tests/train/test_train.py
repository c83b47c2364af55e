"""Training, from a composed configuration to a record, on the tiny model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from safetensors.torch import save_file
from training import fit, module, tiny_policy, weights
from worlds import FEW_DESIGNS, NEEDS_TOP_K, few_at_once, load_design

import qtarget
from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import compose_config, options
from qtarget.config.identity import config_hash
from qtarget.config.run_config import RunConfig
from qtarget.data.batch import Batch
from qtarget.data.lightning_data import SFTData
from qtarget.data.module import DataConfig, prepare
from qtarget.data.sources.reasoning_gym import ReasoningGym
from qtarget.errors import QTargetError
from qtarget.evaluate.calibration import token_metrics
from qtarget.math.loss import IGNORE
from qtarget.model import provide
from qtarget.model.builtin import tiny_config, tiny_model, tiny_tokenizer
from qtarget.model.frozen import FrozenModel, Snapshot
from qtarget.model.policy import Policy
from qtarget.run.train import run_job
from qtarget.train.lightning_module import QTargetModule
from qtarget.train.metrics import TokenMeans
from qtarget.train.optim import AdamW

TOP_K_TEACHER = "references.teacher.topk=5"
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
SMALL = ["model=tiny", "trainer.max_steps=3", "data.rows=48", "data.heldout_rows=8", "eval.problems_in_training=4"]
TEACHER = ["reference@references.teacher=frozen", "references.teacher.name=tiny"]


CUTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in options("target")} | {
    # a random model gives no label a tenth
    "profit": ("profit", {"reliance.threshold": 0.004}),
    "beyond_log_threshold": ("beyond_log_threshold", {"reliance.threshold": 0.004}),
    # the official scope depends on the cut: below
    "cayley_trans": ("cayley_trans", {"reliance.scope": "step"}),
    "kept": ("profit", {"reliance.threshold": 0.004, "normalize": "kept"}),
    "weight_sum": ("iw_sft", {"normalize": "weight_sum"}),
    "sequences": ("dft", {"normalize": "sequences"}),
    "rho1 per sequence": ("rho1", {"reliance.scope": "sequence"}),
}


@pytest.mark.parametrize("case", few_at_once(CUTS, (*FEW_DESIGNS, "kept", "weight_sum", "sequences")))
def test_the_answer_does_not_depend_on_how_the_step_is_cut(case: str) -> None:
    """8 rows of unequal length in one optimizer step: 1×8 = 2×4 = 8×1 = 3+3+2, weights and logged means alike."""

    design, changes = CUTS[case]

    def trained(batch_size: int, accumulate: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        frozen = FrozenModel(tiny_policy())
        with torch.no_grad():  # a teacher that differs from the policy
            for parameter in frozen.policy.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        teacher = FrozenModel(frozen.policy, topk=5) if design in NEEDS_TOP_K else frozen
        fitted = module(design, changes, prior=frozen, teacher=teacher, old=frozen)
        # Adam's first step is the gradient's sign; a large ε keeps its size, so that a wrong scale shows.
        fitted.optim = AdamW(lr=1e-2, warmup=0.0, weight_decay=0.0, eps=1.0)
        fit(fitted, batch_size=batch_size, accumulate=accumulate)
        return weights(fitted), fitted.whole_run.compute()

    expected, expected_means = trained(8, 1)
    start = weights(module())
    for batch_size, accumulate in ((4, 2), (1, 8), (3, 3)):
        got, means = trained(batch_size, accumulate)
        assert means == pytest.approx(expected_means, rel=1e-4), (batch_size, accumulate)
        for name, tensor in expected.items():
            moved = tensor - start[name]
            torch.testing.assert_close(got[name] - start[name], moved, atol=1e-7, rtol=1e-2)
    assert any(not torch.equal(tensor, start[name]) for name, tensor in expected.items())


def one_step_loss(design: str, changes: dict[str, Any], batch_size: int, accumulate: int) -> float:
    """What the optimizer is given to minimise in the first step: Σ over micro-batches of loss·share."""
    trained, total = module(design, changes, prior=FrozenModel(tiny_policy())), 0.0
    source = ReasoningGym("chain_sum", {"min_terms": 2, "max_terms": 4}, system="")
    prepared = prepare(DataConfig(source, rows=8, heldout_rows=2), tiny_tokenizer(), 1024)
    for batch in SFTData(prepared.train, 256, batch_size=batch_size, accumulate=accumulate, seed=0).train_dataloader():
        scale = trained.normalizer.for_batch(batch)
        total += float(trained.token_loss(batch, scale.scope_values, scale.token_scale).total.detach()) / accumulate
    return total


@pytest.mark.parametrize("cut", [(8, 1), (2, 4)])
def test_each_way_of_dividing_divides_by_what_it_says(cut: tuple[int, int]) -> None:
    source = ReasoningGym("chain_sum", {"min_terms": 2, "max_terms": 4}, system="")
    prepared = prepare(DataConfig(source, rows=8, heldout_rows=2), tiny_tokenizer(), 1024)
    (whole,) = SFTData(prepared.train, 256, batch_size=8, accumulate=1, seed=0).train_dataloader()
    trained = module("profit", {"reliance.threshold": 0.004})
    with torch.no_grad():
        out = trained.token_loss(whole)
    rows = (whole.labels != IGNORE).nonzero()[:, 0]
    kept = out.reliance > 0
    assert 0 < int(kept.sum()) < len(kept)
    expected = {
        "tokens": out.loss.mean(),
        "kept": out.loss.sum() / kept.sum(),
        "weight_sum": out.loss.sum() / (out.weight * out.reliance).sum(),
        "sequences": torch.stack([out.loss[rows == row].mean() for row in range(8)]).mean(),
    }
    for normalize, value in expected.items():
        got = one_step_loss("profit", {"reliance.threshold": 0.004, "normalize": normalize}, *cut)
        assert got == pytest.approx(float(value), rel=1e-5), normalize


def test_a_scoring_pass_leaves_mixed_precision_its_gradients() -> None:
    """Casts that autocast keeps from a pass without gradients must not serve the pass with them."""
    means = {}
    for name, changes in (("plain", {}), ("kept", {"normalize": "kept"})):  # the same: sft keeps every token
        trained = module("sft", changes)
        before = weights(trained)
        fit(trained, batch_size=4, accumulate=2, precision="bf16-mixed")
        moved = {key: (tensor - before[key]).norm().item() for key, tensor in weights(trained).items()}
        assert all(distance > 0 for key, distance in moved.items() if "weight" in key)
        means[name] = moved
    assert means["kept"] == pytest.approx(means["plain"], rel=1e-3)


def test_the_old_policy_is_renewed_every_few_steps() -> None:
    """Between renewals it stays, at one it is the policy; so PSFT with every=1 takes SFT's steps."""
    old = Snapshot(tiny_policy(), every=2)
    seen: list[bool] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
            pairs = zip(old.policy.parameters(), trained.policy.parameters(), strict=True)
            seen.append(all(torch.equal(mine, theirs) for mine, theirs in pairs))

    trained = module("psft", old=old)
    snapshots = []
    original = old.renew
    old.renew = lambda policy, step: (original(policy, step), snapshots.append(step))[0]  # type: ignore[method-assign]
    fit(trained, batch_size=4, accumulate=2, steps=4, callbacks=[Watch()])
    assert not seen[-1]  # the last renewal was two steps ago
    assert set(snapshots) == {0, 1, 2, 3}
    always, plain = module("psft", old=Snapshot(tiny_policy(), every=1)), module("sft")
    for one in (always, plain):
        fit(one, batch_size=4, accumulate=2, steps=3)
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(always)[name], tensor)


def test_a_scheduled_field_is_logged_as_it_goes(workdir: Path) -> None:
    schedule = "target.residual.eta=linear:0:1"
    assert qtarget_cli(["train", "target=target_sft", schedule, *SMALL, *TEACHER, "trainer.log_every=1"]) == 0
    (path,) = workdir.glob("outputs/runs/*/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["target/residual.eta"] for line in lines if "target/residual.eta" in line] == [0.0, 0.5, 1.0]


def test_references_stay_out_of_training() -> None:
    frozen = FrozenModel(tiny_policy())
    before = {name: tensor.clone() for name, tensor in frozen.policy.state_dict().items()}
    trained = module("target_sft", teacher=frozen)
    trainer = fit(trained, batch_size=4, accumulate=1, steps=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.policy.state_dict().items())
    assert not frozen.policy.training
    assert not any(parameter.requires_grad for parameter in frozen.policy.parameters())
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in trained.policy.parameters()}
    assert all(name.startswith("policy.") for name in trained.state_dict())


def test_a_prior_with_dropout_says_the_same_at_every_step() -> None:
    config = tiny_config(len(tiny_tokenizer()))
    config.attention_dropout = 0.5
    frozen = FrozenModel(Policy(tiny_model(config), len(tiny_tokenizer())))
    batch = Batch(torch.arange(12)[None], torch.arange(1, 13)[None], {}, torch.arange(12)[None])
    first = frozen.reference(batch).rows
    trained = module("one_minus_prior", prior=frozen)
    fit(trained, batch_size=4, accumulate=1, steps=2)
    trained.train()
    again = frozen.reference(batch).rows
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)


def test_a_teacher_that_is_the_policy_has_no_divergence() -> None:
    policy = tiny_policy().eval()
    prepared = prepare(DataConfig(ReasoningGym("chain_sum"), rows=8, heldout_rows=4), tiny_tokenizer(), 1024)
    batches = list(SFTData(prepared.train, 256, batch_size=4, accumulate=1, seed=0).train_dataloader())
    metrics = token_metrics(policy, FrozenModel(tiny_policy()), batches)
    assert metrics["kl_prior"] == 0.0
    labels = torch.cat([batch.labels[batch.labels != IGNORE] for batch in batches])
    expected = torch.cat(
        [
            torch.nn.functional.cross_entropy(
                policy.lm(input_ids=batch.input_ids).logits.flatten(0, 1), batch.labels.flatten(), reduction="none"
            )[batch.labels.flatten() != IGNORE]
            for batch in batches
        ]
    )
    assert len(labels) == len(expected)
    assert metrics["nll"] == pytest.approx(float(expected.detach().mean()), rel=1e-5)


def test_token_means_weigh_tokens_not_batches() -> None:
    world_logits = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(9) % 5
    wrong = torch.tensor([True, False, False, False, True, False, False, False, False])
    design, means = load_design("dft"), TokenMeans()
    whole = qtarget.dense_loss(world_logits, labels, design)
    for rows in (slice(0, 1), slice(1, 9)):
        means.update(qtarget.dense_loss(world_logits[rows], labels[rows], design), wrong[rows])
    got = means.pop()
    assert got["train/nll"] == pytest.approx(float(whole.nll.mean()))
    assert got["target/trust_noisy"] == pytest.approx(float(whole.trust[wrong].mean()))
    assert got["target/trust_clean"] == pytest.approx(float(whole.trust[~wrong].mean()))
    assert means.compute() == {}


def test_the_learning_rate_warms_up_and_falls_to_its_floor() -> None:
    optim = AdamW(warmup=0.1, floor=0.1)
    factors = [optim.lr_factor(step, 100) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0
    assert all(later <= earlier for earlier, later in pairwise(factors[10:]))
    assert factors[100] == pytest.approx(0.1)


# The command, as a user runs it


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each design's run, by its name, from the multirun of the guide; some need a top-k teacher."""
    folder, few = tmp_path_factory.mktemp("designs"), ",".join(NEEDS_TOP_K)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert qtarget_cli(["train", "-m", f"target=glob(*,exclude=[{few}])", *SMALL, *TEACHER]) == 0
        assert qtarget_cli(["train", "-m", f"target={few}", *SMALL, *TEACHER, TOP_K_TEACHER]) == 0
    folders = folder.glob("outputs/runs/*")
    return {json.loads((run / "result.json").read_text())["name"]: run for run in folders if run.is_dir()}


one_worker = pytest.mark.xdist_group("designs")  # one multirun for all


@one_worker
@pytest.mark.slow
def test_a_multirun_takes_every_design_under_conf_target(run_of: dict[str, Path]) -> None:
    assert set(run_of) == set(options("target"))


@one_worker
@pytest.mark.slow
@pytest.mark.parametrize("design", options("target"))
def test_every_design_trains_and_evaluates(design: str, run_of: dict[str, Path]) -> None:
    folder = run_of[design]
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["design"]["repr"] == repr(load_design(design))
    metrics = result["metrics"]
    for name in ("test/nll", "test/kl_prior", "test/accuracy", "train/nll", "target/reliance_noisy"):
        assert metrics[name] >= -1e-6, name  # a drift of nothing is a sum that rounds to either side of 0
    assert {"target/trust_noisy", "target/trust_clean"} <= set(metrics)  # trust may be negative: a teacher disagrees
    assert metrics["train/tokens_per_second"] > 0
    said = {name: count for name, count in result["rows"].items() if count}
    assert said.pop("noisy_tokens") >= 19
    assert said == {"asked": 48, "train": 48, "noisy": 19, "heldout_asked": 8, "heldout": 8, "heldout_share_of": 8}
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 8
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"val/nll", "val/accuracy"} <= set(steps[0])
    assert steps[-2]["step"] == steps[-1]["step"] == 3


def test_a_finished_job_is_returned_and_an_unfinished_one_runs_again(workdir: Path) -> None:
    arguments = ["train", *SMALL]
    assert qtarget_cli(arguments) == 0
    (path,) = workdir.glob("outputs/runs/*/result.json")
    first = path.read_text()
    assert qtarget_cli(arguments) == 0
    assert path.read_text() == first
    path.write_text(json.dumps(json.loads(first) | {"status": "running"}))  # what a kill leaves behind
    assert qtarget_cli(arguments) == 0
    again = json.loads(path.read_text())
    assert again["status"] == "finished"
    assert again["started"] >= json.loads(first)["started"]
    assert again["metrics"]["train/nll"] == json.loads(first)["metrics"]["train/nll"]


def test_the_hash_follows_contents_not_places(workdir: Path) -> None:
    """A file or a model that is copied elsewhere is the same; one that changed is another."""
    weights = torch.randn(1000)
    for name, tensor in (("one", weights), ("copy", weights), ("other", weights + 1e-3)):
        Path(name).mkdir()
        (Path(name) / "config.json").write_text("{}")
        save_file({"weight": tensor}, Path(name) / "model.safetensors")
    hashes = {
        name: config_hash(compose_config("train", ["model=path", f"model.name=./{name}"]))
        for name in ("one", "copy", "other")
    }
    assert hashes["one"] == hashes["copy"] != hashes["other"]


def test_the_hash_ignores_places_and_nothing_else(workdir: Path) -> None:
    plain = config_hash(compose_config("train", SMALL))
    assert config_hash(compose_config("train", [*SMALL, "output_dir=/elsewhere", "tracker=wandb"])) == plain
    assert config_hash(compose_config("train", [*SMALL, "seed=1"])) != plain
    assert config_hash(compose_config("train", [*SMALL, "optim.lr=1e-5"])) != plain


def test_a_multirun_keeps_what_worked_and_names_what_failed(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """kd has no teacher here: it fails, before and after it the others run."""
    assert qtarget_cli(["train", "-m", "target=sft,kd,dft", *SMALL]) == 2
    statuses = {}
    for path in workdir.glob("outputs/runs/*/result.json"):
        result = json.loads(path.read_text())
        statuses[result["name"]] = result["status"]
    assert statuses == {"sft": "finished", "kd": "failed", "dft": "finished"}
    captured = capfd.readouterr()
    assert captured.out.count("finished  target=") == 2
    assert "FAILED    target=kd" in captured.err
    assert "this target needs the teacher" in captured.err
    assert "1 of 3 jobs failed" in captured.err
    assert "Traceback" not in captured.err
    assert qtarget_cli(["compare", "outputs/runs"]) == 0
    assert (workdir / "outputs/runs/report.html").stat().st_size > 1e4


def test_the_record_says_whether_padding_was_read(workdir: Path) -> None:
    assert qtarget_cli(["train", "-m", "model.gradient_checkpointing=false,true", *SMALL]) == 0
    results = [json.loads(path.read_text()) for path in workdir.glob("outputs/runs/*/result.json")]
    read = {result["overrides"][0]: result["padding"] for result in results}
    assert read == {"model.gradient_checkpointing=False": "not read", "model.gradient_checkpointing=True": "read"}


def test_a_crash_in_one_job_does_not_stop_the_next(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not bad input but a failure inside: the exit code is 1, and the traceback lies in the job's folder."""
    original = provide.load_policy

    def broken(source: Any, vocab_size: int, **options: Any) -> Policy:
        if options["attention"] == "eager":
            raise RuntimeError("out of luck")
        return original(source, vocab_size, **options)

    monkeypatch.setattr(provide, "load_policy", broken)
    assert qtarget_cli(["train", "-m", "model.attention=eager,sdpa", *SMALL]) == 1
    assert "RuntimeError: out of luck" in capfd.readouterr().err
    (trace,) = workdir.glob("outputs/runs/*/traceback.txt")
    assert "out of luck" in trace.read_text()
    results = [json.loads(path.read_text()) for path in workdir.glob("outputs/runs/*/result.json")]
    assert sorted(result["status"] for result in results) == ["failed", "finished"]


def test_a_checkpoint_is_an_ordinary_model_and_can_teach(workdir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert qtarget_cli(["train", *SMALL, "experiment_name=teacher", "checkpoint.optimizer=true"]) == 0
    (folder,) = workdir.glob("outputs/teacher/*/checkpoint")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    start = tiny_model(tiny_config(len(tokenizer)))
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, start.model.layers[0].mlp.up_proj.weight)
    state = torch.load(folder.parent / "optimizer.pt", weights_only=True)
    assert state["step"] == 3
    optimizer = AdamW().configure(model.parameters(), 3)["optimizer"]
    optimizer.load_state_dict(state["optimizer"])
    teach = ["reference@references.teacher=frozen", "references.teacher.name=outputs/teacher"]
    assert qtarget_cli(["train", "target=kd", *SMALL, *teach]) == 0


def test_a_bf16_checkpoint_is_half_the_size(workdir: Path) -> None:
    assert qtarget_cli(["train", "-m", "checkpoint.dtype=trained,bfloat16", *SMALL]) == 0
    sizes = sorted(path.stat().st_size for path in workdir.glob("outputs/runs/*/checkpoint/model.safetensors"))
    assert sizes[0] < 0.55 * sizes[1]
    assert not list(workdir.rglob("optimizer.pt"))


def wandb_run(folder: Path) -> Any:
    """What W&B's own reader finds in the offline run of a job folder."""
    (run,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--summary", "--json", str(run)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_wandb_gets_the_same_values_offline(workdir: Path) -> None:
    """Configuration in dotted keys, each group's choice, and the closing metrics."""
    assert qtarget_cli(["train", *SMALL, "tracker=wandb"]) == 0
    (folder,) = workdir.glob("outputs/runs/*")
    shown = wandb_run(folder)
    assert shown["config"]["target"] == "sft"
    assert shown["config"]["data.noise.rate"] == 0.4
    ours = json.loads((folder / "result.json").read_text())["metrics"]
    assert {name: shown["summary"][name] for name in ours} == pytest.approx(ours)
    assert {"samples", "calibration"} <= shown["summary"].keys()


def test_a_failing_job_does_not_swallow_the_next_in_wandb(workdir: Path) -> None:
    assert qtarget_cli(["train", "-m", "target=kd,dft", *SMALL, "tracker=wandb"]) == 2
    shown = {}
    for path in workdir.glob("outputs/runs/*/result.json"):
        shown[json.loads(path.read_text())["name"]] = wandb_run(path.parent)
    assert {name: run["config"]["target"] for name, run in shown.items()} == {"kd": "kd", "dft": "dft"}
    assert "test/nll" in shown["dft"]["summary"]
    assert "test/nll" not in shown["kd"].get("summary", {})


def test_your_own_rows(workdir: Path) -> None:
    rows = [{"prompt": f"say {index}", "completion": str(index)} for index in range(40)]
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert qtarget_cli(["train", "model=tiny", "data=jsonl", "data.source.path=mine.jsonl", "trainer.max_steps=2"]) == 0
    (path,) = workdir.glob("outputs/runs/*/result.json")
    result = json.loads(path.read_text())
    assert result["rows"]["train"] + result["rows"]["heldout"] == 40
    assert result["metrics"]["test/nll"] > 0
    assert "test/accuracy" not in result["metrics"]


def test_worked_solutions_run_by_the_same_path(workdir: Path) -> None:
    small = ["data.rows=8", "data.heldout_rows=4", "trainer.max_steps=1", "trainer.batch_size=4", "eval.new_tokens=8"]
    assert qtarget_cli(["train", "model=tiny", "data=gsm_symbolic", "data.truncation=cut", *small]) == 0
    (path,) = workdir.glob("outputs/runs/*/result.json")
    assert json.loads(path.read_text())["rows"]["train"] == 8


def test_no_training_steps_only_evaluates(workdir: Path) -> None:
    assert qtarget_cli(["train", *SMALL, "trainer.max_steps=0", "checkpoint.save=false"]) == 0
    (path,) = workdir.glob("outputs/runs/*/result.json")
    metrics = json.loads(path.read_text())["metrics"]
    assert metrics["test/kl_prior"] == 0.0
    assert "train/nll" not in metrics


def test_rows_that_changed_make_another_run(workdir: Path) -> None:
    """The name of the file is the same; a stored result of the old rows would be the wrong one."""
    arguments = ["train", "model=tiny", "data=jsonl", "data.source.path=mine.jsonl", "trainer.max_steps=1"]
    for last in ("one", "two"):
        rows = [{"prompt": f"say {index}", "completion": str(index)} for index in range(20)]
        Path("mine.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"prompt": "p", "completion": last}])))
        assert qtarget_cli(arguments) == 0
    assert len(list(workdir.glob("outputs/runs/*/result.json"))) == 2


def test_no_held_out_rows_means_no_held_out_metrics(workdir: Path) -> None:
    rows = [{"prompt": f"say {index}", "completion": str(index)} for index in range(3)]
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["data=jsonl", "data.source.path=mine.jsonl", "data.source.heldout_share=0", "trainer.accumulate=5"]
    assert qtarget_cli(["train", "model=tiny", "trainer.max_steps=2", *options]) == 0
    assert qtarget_cli(["compare", "outputs/runs"]) == 0


def test_a_folder_of_another_configuration_is_refused(workdir: Path) -> None:
    first, second = RunConfig.compose(SMALL), RunConfig.compose([*SMALL, "seed=5"])
    run_job(first, Path("here"), {"target": "sft"}, [])
    with pytest.raises(QTargetError, match="holds a run of another configuration"):
        run_job(second, Path("here"), {"target": "sft"}, [])
    written = yaml.safe_load(Path("here/config.yaml").read_text())
    assert written["model"]["name"] == "tiny"
    assert "hydra" not in written


def test_two_processes_do_not_run_one_job(workdir: Path) -> None:
    from filelock import FileLock

    Path("here").mkdir()
    with FileLock("here/.lock"), pytest.raises(QTargetError, match="another process is running this job"):
        run_job(RunConfig.compose(SMALL), Path("here"), {"target": "sft"}, [])


def test_an_interrupted_run_says_so_and_runs_again(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the middle of a step; Lightning turns it into an exit, which must not pass for a failure."""
    original = QTargetModule.training_step

    def interrupted(self: QTargetModule, batch: Any, batch_index: int) -> Any:
        if self.global_step == 1:
            raise KeyboardInterrupt
        return original(self, batch, batch_index)

    arguments = ["train", "-m", "target=sft,dft", *SMALL]
    with monkeypatch.context() as patched:
        patched.setattr(QTargetModule, "training_step", interrupted)
        assert qtarget_cli(arguments) == 130
    assert "starts the others afresh" in capfd.readouterr().err
    (path,) = workdir.glob("outputs/runs/*/result.json")
    assert json.loads(path.read_text())["status"] == "interrupted"
    assert qtarget_cli(arguments) == 0
    statuses = [json.loads(path.read_text())["status"] for path in workdir.glob("outputs/runs/*/result.json")]
    assert statuses == ["finished", "finished"]


def test_a_tracker_that_fails_costs_a_warning_not_the_run(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qtarget.record.trackers import NoTracker

    def unreachable(*args: Any, **options: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(NoTracker, "log", unreachable)
    monkeypatch.setattr(NoTracker, "finish", unreachable)
    with pytest.warns(UserWarning, match="the tracker failed, the local record goes on: gone"):
        assert qtarget_cli(["train", *SMALL]) == 0
    (path,) = workdir.glob("outputs/runs/*/result.json")
    assert json.loads(path.read_text())["status"] == "finished"


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), RuntimeError("can't allocate memory")],
)
def test_out_of_memory_is_answered_with_what_would_fit(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    def short(*given: Any) -> None:
        raise error

    monkeypatch.setattr(QTargetModule, "token_loss", short)
    assert qtarget_cli(["train", "target=kd", *SMALL, *TEACHER, "loss.chunk_size=512"]) == 2
    said = capfd.readouterr().err
    for way in (
        "reference@references.teacher=cached",
        "loss.chunk_size=128 (now 512 tokens: 532.5 kB for each",
        "trainer.batch_size=8 trainer.accumulate=2, the same step",
        "model.gradient_checkpointing=true",
    ):
        assert way in said


@pytest.mark.parametrize("quick", ["", "QUICK=1"])
def test_make_demo_names_real_designs(quick: str) -> None:
    """What make would run, without running it: the list of targets is put together from make's own commas."""
    root = Path(__file__).parents[2]
    command = ["make", "--dry-run", "--directory", str(root), "demo", quick]
    shown = subprocess.run([part for part in command if part], capture_output=True, text=True, check=True).stdout
    (targets,) = set(re.findall(r"train -m .* target=(\S+)", shown))
    assert set(targets.split(",")) <= set(options("target"))
    assert len(targets.split(",")) == (3 if quick else 6)


@pytest.mark.parametrize("experiment", [pytest.param("demo", marks=pytest.mark.slow), "demo_quick"])
def test_the_demonstration_runs_on_the_tiny_model(workdir: Path, experiment: str) -> None:
    """The demo's own configurations, its model and sizes apart."""
    assert qtarget_cli(["train", f"experiment={experiment}_teacher", "data.reserve_rows=16", *small_demo()]) == 0
    runs = ["train", "-m", f"experiment={experiment}", "target=sft,target_sft", "data.rows=32", *small_demo()]
    assert qtarget_cli(runs) == 0
    assert qtarget_cli(["compare", f"outputs/{experiment}", f"outputs/{experiment}_teacher"]) == 0
    assert Path(f"outputs/{experiment}/comparison.png").stat().st_size > 10_000


def small_demo() -> list[str]:
    return ["model=tiny", "trainer.max_steps=2", "trainer.batch_size=8", "data.heldout_rows=4"]
