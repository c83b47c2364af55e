"""A run that is stopped at any moment goes on to the same numbers."""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import transformers
from resuming import SMALL, TEACHER, assert_same_run, lines, only_run, result
from safetensors.torch import save_file
from training import fit, module, weights
from worlds import few_at_once

from qtarget import resume_folders, signals
from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import compose_config, config_container
from qtarget.config.identity import config_hash
from qtarget.data.batch import Batch
from qtarget.data.lightning_data import SFTData
from qtarget.errors import QTargetError
from qtarget.evaluate.heldout import Evaluator
from qtarget.math import products
from qtarget.model.frozen import Snapshot
from qtarget.run import ranks
from qtarget.train import fp32_products, resume_saved, resume_shards, resume_state
from qtarget.train.callbacks import PeriodicEvaluation
from qtarget.train.lightning_module import QTargetModule
from qtarget.train.resume_writer import StateWriter

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
EVERY = "checkpoint.every=2"


class Killed(BaseException):
    """Nothing of ours may catch it."""


Patch = Callable[[pytest.MonkeyPatch], None]


def in_step(done: int, happening: Callable[[], None]) -> Patch:
    """After `done` steps, in the last micro-batch of the next one."""
    original = QTargetModule.training_step

    def interrupted(self: QTargetModule, batch: Batch, batch_index: int) -> Any:
        assert batch.window is not None
        if self.global_step == done and batch.window.index == len(batch.window.batches) - 1:
            happening()
        return original(self, batch, batch_index)

    return lambda patch: patch.setattr(QTargetModule, "training_step", interrupted)


def in_look(step: int, happening: Callable[[], None]) -> Patch:
    """In the evaluation that follows a step."""
    original = PeriodicEvaluation._evaluate_if_due

    def interrupted(self: PeriodicEvaluation, trainer: L.Trainer) -> None:
        if trainer.global_step == step and self._evaluated != step:
            happening()
        original(self, trainer)

    return lambda patch: patch.setattr(PeriodicEvaluation, "_evaluate_if_due", interrupted)


def in_closing_evaluation(happening: Callable[[], None]) -> Patch:
    original = Evaluator.__call__

    def interrupted(self: Evaluator, policy: Any, limit: int | None = None, *, closing: bool = True) -> Any:
        if closing:
            happening()
        return original(self, policy, limit, closing=closing)

    return lambda patch: patch.setattr(Evaluator, "__call__", interrupted)


def die() -> None:
    raise Killed


def interrupt() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def saved(folder: Path) -> int | None:
    state = resume_folders.newest(only_run(folder) / resume_folders.STATE)
    return resume_folders.step_of(state) if state else None


def whole_run(*overrides: str) -> Path:
    """The same configuration, never stopped."""
    assert qtarget_cli(["train", *SMALL, *overrides, "output_dir=whole"]) == 0
    return only_run(Path("whole"))


# The same numbers

CASES = {
    "sft": [],
    "psft": ["target=psft", "references.old.every=4", "trainer.log_every=3"],
    "rho1": ["target=rho1", *TEACHER],
    "target_sft": ["target=target_sft", *TEACHER],
    "steps of a given length": ["optim=equal_norm"],
    "adapter with dropout": ["model/adapter=lora", "model.adapter.dropout=0.3"],
}
ENDS: list[tuple[Patch, int | None]] = [
    (in_step(1, die), None),  # before there is a state
    (in_step(3, die), 2),  # in the middle of an epoch
    (in_look(6, die), 6),  # between two epochs, before the evaluation is written down
    (in_step(6, die), 6),
    (in_step(7, die), 6),
    (in_closing_evaluation(die), 8),
]


@pytest.mark.parametrize("case", few_at_once(CASES, ("sft",)))
def test_a_run_that_was_killed_ends_where_an_unbroken_one_does(
    case: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In other trainers a resume starts the data again, without a word (Lightning #20550)."""
    expected = whole_run(*CASES[case])
    arguments = ["train", *SMALL, *CASES[case], EVERY]
    for end, step in ENDS:
        with monkeypatch.context() as patched:
            end(patched)
            with pytest.raises(Killed):
                qtarget_cli(arguments)
        assert saved(Path("outputs")) == step
    started = result(only_run(Path("outputs")))["started"]
    assert qtarget_cli(arguments) == 0
    run = only_run(Path("outputs"))
    assert run.name == expected.name
    assert_same_run(run, expected)
    assert result(run)["attempts"] == len(ENDS)  # the second began afresh, as there was no state yet
    assert result(run)["started"] == started
    assert not (run / resume_folders.STATE).exists()


def test_a_run_goes_on_with_the_library_that_it_began_with(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial at the start of a run says which is faster, and may say otherwise at another time: sums would differ."""
    monkeypatch.setenv("QTARGET_CACHE", str(workdir / "cache"))
    monkeypatch.setattr(fp32_products, "LARGE", 1)
    monkeypatch.setattr(products, "SMALL", 1)
    try:
        begun = fp32_products.faster_here()
        expected = whole_run()
        assert result(expected)["loss"].endswith(f", fp32 products by {begun}")
        with monkeypatch.context() as patched:
            in_step(3, die)(patched)
            with pytest.raises(Killed):
                qtarget_cli(["train", *SMALL, EVERY])
        (file,) = Path("cache").glob(fp32_products.FILE)
        other = next(name for name in products.LIBRARIES if name != begun)
        file.write_text(file.read_text().replace(begun, other))
        assert qtarget_cli(["train", *SMALL, EVERY]) == 0
        assert_same_run(only_run(Path("outputs")), expected)
        assert result(only_run(Path("outputs")))["loss"].endswith(f", fp32 products by {begun}")
        chosen = f"loss.products={other}"
        assert qtarget_cli(["train", *SMALL, chosen, "output_dir=chosen"]) == 0
        assert result(only_run(Path("chosen")))["loss"].endswith(f", fp32 products by {other}")
    finally:
        products.pin(None)


def test_the_data_go_on_where_the_steps_have_come() -> None:
    rows = list(range(20))

    def pass_of(data: SFTData, epoch: int) -> list[list[int]]:
        data.collate = list  # type: ignore[assignment]
        loader = data.train_dataloader().loader
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return [list(batch) for batch in loader]  # type: ignore[call-overload]

    def data() -> SFTData:
        return SFTData(rows, 0, batch_size=3, accumulate=3, seed=5)  # type: ignore[arg-type]

    for step, (epoch, batches) in {0: (0, 0), 1: (0, 3), 2: (0, 6), 3: (1, 0), 5: (1, 6), 6: (2, 0)}.items():
        resumed = data()
        position = resumed.resume_at(step)
        assert (position.epoch, position.batches, position.total) == (epoch, batches, 7 * epoch + batches)
        assert pass_of(resumed, epoch) == pass_of(data(), epoch)[batches:]
        assert pass_of(resumed, epoch + 1) == pass_of(data(), epoch + 1)


def test_what_is_logged_after_the_state_is_written_anew(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        in_step(5, die)(patched)
        with pytest.raises(Killed):
            qtarget_cli(["train", *SMALL, EVERY])
    run = only_run(Path("outputs"))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/nl')  # what a kill in the middle of a line leaves
    assert [line["step"] for line in lines_but_last(run)] == [0, 1, 2, 3, 3, 4, 5]
    assert qtarget_cli(["train", *SMALL, EVERY]) == 0
    assert [line["step"] for line in lines(run)] == [0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 8]
    times = [json.loads(line)["time"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert times == sorted(times)


def lines_but_last(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]]


# What doesn't go on


def test_a_run_that_is_told_so_starts_afresh(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        in_step(5, die)(patched)
        with pytest.raises(Killed):
            qtarget_cli(["train", *SMALL, EVERY])
    with monkeypatch.context() as patched:
        in_step(1, die)(patched)
        with pytest.raises(Killed):
            qtarget_cli(["train", *SMALL, EVERY, "resume=never"])
    assert saved(Path("outputs")) is None
    assert result(only_run(Path("outputs")))["attempts"] == 1
    assert [line["step"] for line in lines(only_run(Path("outputs")))] == [0, 1]


@pytest.mark.parametrize("mistake", ["checkpoint.every=0", "resume=maybe", "data.workers=0"])
def test_a_mistake_in_a_key_that_is_no_part_of_the_run_loses_nothing(
    mistake: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        in_step(5, die)(patched)
        with pytest.raises(Killed):
            qtarget_cli(["train", *SMALL, EVERY])
    folder = only_run(Path("outputs"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert qtarget_cli(["train", *SMALL, mistake]) == 2
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert qtarget_cli(["train", *SMALL, EVERY]) == 0
    assert result(folder)["attempts"] == 2


def test_a_damaged_state_is_named(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        in_step(2, die)(patched)
        with pytest.raises(Killed):
            qtarget_cli(["train", *SMALL, EVERY])
    for name in ("rank-0-of-1.safetensors", "rank-0-of-1.pt", "state.json"):
        path = only_run(Path("outputs")) / "state/step-2" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-20])
        assert qtarget_cli(["train", *SMALL, EVERY]) == 2
        assert "state/step-2 can't be read" in (said := capfd.readouterr().err)
        assert "set resume=never to start afresh" in said
        path.write_bytes(whole)
    path.write_bytes(whole[:-20])
    assert qtarget_cli(["train", *SMALL, EVERY, "resume=never", "trainer.eval_every=0", "eval.kl_prior=false"]) == 0


def test_where_states_lie_and_how_often_they_are_saved_is_no_other_run(workdir: Path) -> None:
    plain = compose_config("train", SMALL)
    assert config_hash(compose_config("train", [*SMALL, EVERY, "resume=never"])) == config_hash(plain)
    older = config_container(plain)
    del older["resume"], older["checkpoint"]["every"]
    assert config_hash(older) == config_hash(plain)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint.every=0"], "checkpoint.every must be a whole number of at least 1, got 0"),
        (["resume=always"], "resume must be one of auto, never, got 'always'"),
    ],
)
def test_what_cannot_be_is_said_before_training(
    overrides: list[str],
    message: str,
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ranks, "start", None)
    assert qtarget_cli(["train", *SMALL, *overrides]) == 2
    assert message in capfd.readouterr().err


# Signals


@pytest.mark.parametrize(
    ("end", "step"),
    [
        pytest.param(in_step(4, terminate), 5, id="in a step"),
        pytest.param(in_look(3, terminate), 3, id="in an evaluation", marks=pytest.mark.slow),
        pytest.param(in_closing_evaluation(terminate), 8, id="in the closing evaluation", marks=pytest.mark.slow),
    ],
)
def test_a_terminated_run_saves_its_state_and_says_so(
    end: Patch, step: int, workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """At the end of the running step, whether states are saved on the way or not; the exit code is that of SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        end(patched)
        assert qtarget_cli(["train", *SMALL]) == 128 + 15
    assert signal.getsignal(signal.SIGTERM) == before
    assert "the same command goes on where a state was saved" in capfd.readouterr().err
    run = only_run(Path("outputs"))
    assert result(run)["status"] == "interrupted"
    assert saved(Path("outputs")) == step
    assert qtarget_cli(["compare", "outputs/runs"]) == 1
    assert f"the same command goes on from step {step}" in " ".join(capfd.readouterr().out.split())
    assert qtarget_cli(["train", *SMALL]) == 0
    assert_same_run(run, whole_run())


def test_ctrl_c_between_two_steps_saves_the_state(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        in_look(3, interrupt)(patched)
        assert qtarget_cli(["train", *SMALL]) == 130
    assert saved(Path("outputs")) == 3
    assert result(only_run(Path("outputs")))["status"] == "interrupted"


def test_a_terminated_multirun_starts_no_other_job(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        in_step(2, terminate)(patched)
        assert qtarget_cli(["train", "-m", "seed=0,1", *SMALL]) == 143
    assert saved(Path("outputs")) == 3


def test_work_that_is_deferred_to_ends_first() -> None:
    with signals.Stop() as stop:
        stop.deferred = True
        terminate()
        with pytest.raises(signals.Terminated, match="SIGTERM"):
            stop.release()
        stop.asked = False
        with pytest.raises(signals.Terminated):
            terminate()
        stop.asked = False


@pytest.mark.parametrize("error", [None, ValueError])
def test_a_signal_is_not_lost_in_what_comes_after(error: type[Exception] | None) -> None:
    """Neither a job that still finishes nor one that fails makes a multirun go on."""

    def job() -> None:
        with signals.Stop() as stop:
            stop.deferred = True
            terminate()
            if error:
                raise error

    with pytest.raises(signals.Terminated):
        job()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_says_what_the_first_has_said(second: signal.Signals) -> None:
    """A scheduler tells every process, and the one that started it passes it on: no reason to drop the state."""
    with signals.Stop() as stop:
        stop.deferred = True
        terminate()
        signal.raise_signal(second)
        assert stop.asked
        with pytest.raises(signals.Terminated):
            stop.release()
        stop.asked = False


def test_a_hangup_that_was_put_aside_stays_aside() -> None:
    """nohup means that the end of the terminal is nothing to this process."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# Ends while a state is saved


class Faults:
    """Dies at the `at`-th file operation: before it, after it, or with half of a file written or folder removed."""

    def __init__(self, patch: pytest.MonkeyPatch, kind: str) -> None:
        self.kind, self.at, self.seen = kind, -1, 0
        places = ((resume_shards, "save_file"), (torch, "save"), (Path, "write_text"), (os, "replace"), (os, "fsync"))
        for owner, name in (*places, (Path, "mkdir"), (Path, "unlink"), (shutil, "rmtree")):
            patch.setattr(owner, name, self._dying(name, getattr(owner, name)))

    def _dying(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*given: Any, **options: Any) -> Any:
            self.seen += 1
            if self.seen - 1 != self.at:
                return original(*given, **options)
            if self.kind == "half" and name == "rmtree":
                next(Path(given[0]).iterdir()).unlink()
            elif self.kind != "before":
                original(*given, **options)
            if self.kind == "half" and name in ("save_file", "save", "write_text"):
                path = given[0] if name == "write_text" else given[1]
                os.truncate(path, path.stat().st_size // 2)
            raise Killed

        return operation


def save_state(holder: Path, step: int, trainer: L.Trainer, made: QTargetModule) -> None:
    """On disk when it returns."""
    writer, drawn = StateWriter(holder), resume_state.rng_state(torch.device("cpu"))
    writer.save(step, partial(resume_state.capture, trainer, made, drawn), {})
    writer.finish()


@pytest.fixture
def trained(workdir: Path) -> tuple[L.Trainer, QTargetModule]:
    made = module("psft", old=Snapshot(module().policy, every=2))
    return fit(made, batch_size=4, accumulate=1, steps=1), made


@pytest.mark.parametrize("kind", ["before", "after", "half"])
def test_an_end_while_a_state_is_saved_leaves_a_whole_one(
    kind: str, trained: tuple[L.Trainer, QTargetModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before or the new one, with all of its own numbers; and the next can be saved."""
    trainer, made = trained

    def save(holder: Path, step: int) -> None:
        with torch.no_grad():
            made.policy.head.weight.fill_(step)
        save_state(holder, step, trainer, made)

    def check(holder: Path, *steps: int) -> int:
        state = resume_saved.last_state(holder)
        assert state is not None
        assert state.step in steps
        resume_saved.restore(state, trainer, made)
        assert made.policy.head.weight.unique().tolist() == [state.step]
        return state.step

    ends = []
    for at in itertools.count():
        holder = Path(f"state-{at}")
        save(holder, 1)
        with monkeypatch.context() as patched:
            faults = Faults(patched, kind)
            faults.at = at
            try:
                save(holder, 2)
            except Killed:
                ends.append(check(holder, 1, 2))
            else:
                break
        check(holder, 1, 2)
        save(holder, 3)
        assert check(holder, 3) == 3
        assert [path.name for path in holder.iterdir()] == ["step-3"]
    assert len(ends) > 12
    assert ends == sorted(ends)
    assert set(ends) == {1, 2}


def test_a_full_disk_is_said_and_keeps_the_state_before(
    trained: tuple[L.Trainer, QTargetModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, made = trained
    save_state(Path("state"), 1, trainer, made)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume_shards, "save_file", full)
    with pytest.raises(QTargetError, match="No space left on device"):
        save_state(Path("state"), 2, trainer, made)
    found = resume_saved.last_state(Path("state"))
    assert found is not None
    assert found.step == 1
    assert [path.name for path in Path("state").iterdir()] == ["step-1"]


def test_states_can_be_taken_away_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of one is none."""

    def publish() -> None:
        folder = resume_folders.open_scratch(tmp_path / "state", 4)
        assert folder is not None
        for name in ("a", "b"):
            (folder / name).write_text(name)
        resume_folders.publish(tmp_path / "state", 4, {})

    publish()

    def dies(path: Path) -> None:
        (path / "b").unlink()
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", dies)
        with pytest.raises(Killed):
            resume_folders.discard(tmp_path / "state")
    assert resume_folders.newest(tmp_path / "state") is None
    publish()
    assert resume_folders.newest(tmp_path / "state") == tmp_path / "state/step-4"
    resume_folders.discard(tmp_path / "state")
    assert not (tmp_path / "state").exists()
    resume_folders.discard(tmp_path / "state")


def test_restored_weights_are_those_of_the_policy_and_of_the_old_one(
    trained: tuple[L.Trainer, QTargetModule],
) -> None:
    trainer, made = trained
    old = made.references["old"]
    assert isinstance(old, Snapshot)
    save_state(Path("state"), 1, trainer, made)
    drawn = torch.rand(3)
    now, then = weights(made), {name: tensor.clone() for name, tensor in old.policy.named_parameters()}
    assert any(not torch.equal(now[name], tensor) for name, tensor in then.items())
    with torch.no_grad():
        for parameter in (*made.policy.parameters(), *old.policy.parameters()):
            parameter.zero_()
    old.taken = None
    state = resume_saved.last_state(Path("state"))
    assert state is not None
    resume_saved.restore(state, trainer, made)
    assert all(torch.equal(tensor, now[name]) for name, tensor in weights(made).items())
    assert all(torch.equal(tensor, then[name]) for name, tensor in old.policy.named_parameters())
    assert old.taken == 0
    assert torch.equal(torch.rand(3), drawn)


class Bytes(torch.optim.Optimizer):
    """Keeps a byte for each number of a weight, and one table for all of it, as 8-bit optimizers do."""

    def __init__(self, weights: Any) -> None:
        super().__init__(weights, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for weight in self.param_groups[0]["params"]:
            state = self.state[weight]
            state["signs"] = (weight.grad > 0).to(torch.uint8)
            state["table"] = state.get("table", torch.zeros(3)) + weight.grad.flatten()[:3]
            state["step"] = state.get("step", 0) + 1
            weight.sub_(0.01 * state["step"] * (2.0 * state["signs"] - 1) + state["table"].sum())


OWN_OPTIMIZERS = {  # row_var [n, 1] and col_var [1, m] of torch 2.13; a step that is an int of transformers 5
    "torch's Adafactor": torch.optim.Adafactor,
    "transformers' Adafactor": transformers.Adafactor,
    "8 bits": Bytes,
}


@pytest.mark.parametrize("name", OWN_OPTIMIZERS)
def test_what_an_optimizer_of_ones_own_keeps_is_restored_whatever_its_shape_and_kind(
    name: str, trained: tuple[L.Trainer, QTargetModule]
) -> None:
    trainer, made = trained
    own: Any = OWN_OPTIMIZERS[name](list(made.policy.parameters()))
    trainer.optimizers = [own]
    for weight in made.policy.parameters():
        weight.grad = torch.randn_like(weight)
    own.step()
    save_state(Path("state"), 1, trainer, made)
    own.step()
    expected = weights(made)
    expected = {name: tensor.clone() for name, tensor in expected.items()}
    state = resume_saved.last_state(Path("state"))
    assert state is not None
    trainer.optimizers = [OWN_OPTIMIZERS[name](list(made.policy.parameters()))]
    resume_saved.restore(state, trainer, made)
    trainer.optimizers[0].step()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(made).items())


def save_as_before(folder: Path, trainer: L.Trainer, made: QTargetModule) -> None:
    """Format 2, which builds before this one wrote: three files, and the optimizer's tensors by number."""
    folder.mkdir(parents=True)
    old = made.references["old"]
    assert isinstance(old, Snapshot)
    for name, policy in (("weights", made.policy), ("old", old.policy)):
        trained = {name: tensor.detach() for name, tensor in policy.named_parameters()}
        save_file(trained, folder / f"{name}.safetensors")
    rest = {
        "measured": [measured.state_dict() for measured in made.measured],
        "callbacks": {},
        "optimizer": trainer.optimizers[0].state_dict(),
        "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        "taken": {"old": old.taken},
        "chunk_size": 64,
        "drawn": resume_state.rng_state(torch.device("cpu")),
    }
    torch.save(rest, folder / "rest.pt")
    (folder / "state.json").write_text(json.dumps({"format": 2, "step": 1}))


def test_a_state_of_an_earlier_build_is_read(trained: tuple[L.Trainer, QTargetModule]) -> None:
    trainer, made = trained
    save_as_before(Path("state/step-1"), trainer, made)
    whole = weights(made)
    optimizer = copy.deepcopy(trainer.optimizers[0].state_dict())
    seen, read = trainer.lr_scheduler_configs[0].scheduler.last_epoch, made.whole_run.compute()
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter.zero_()
    trainer.optimizers[0].state.clear()
    made.whole_run.pop()
    state = resume_saved.last_state(Path("state"))
    assert state is not None
    resume_saved.restore(state, trainer, made)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(made).items())
    torch.testing.assert_close(trainer.optimizers[0].state_dict(), optimizer, rtol=0, atol=0)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == seen == 1
    assert made.whole_run.compute() == read
    assert made.chunk_size == 64


def test_a_state_that_lacks_a_file_is_not_taken(trained: tuple[L.Trainer, QTargetModule]) -> None:
    """The newest whole one is; where there is none, the missing file is named, and nothing begins anew by itself."""
    trainer, made = trained
    save_state(Path("state"), 1, trainer, made)
    shutil.copytree("state/step-1", "state/step-2")
    Path("state/step-2/rank-0-of-1.pt").unlink()
    state = resume_saved.last_state(Path("state"))
    assert state is not None
    assert state.folder == Path("state/step-1")
    shutil.rmtree("state/step-1")
    with pytest.raises(QTargetError, match=r"the state state/step-2 lacks rank-0-of-1\.pt: put it back, or"):
        resume_saved.last_state(Path("state"))


# The record and the tracker


def test_the_heart_beats_while_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qtarget.record import record as records
    from qtarget.record.trackers import NoTracker

    beats: Iterator[int] = itertools.count()
    monkeypatch.setattr(records, "BEAT", 0.01)
    monkeypatch.setattr(records, "_now", lambda: str(next(beats)))
    record = records.Record(tmp_path, NoTracker())
    record.start({"config_hash": ""}, {})
    first = int((records.stored_result(tmp_path) or {})["heartbeat"])
    with record.beating():
        while int((records.stored_result(tmp_path) or {})["heartbeat"]) < first + 3:
            time.sleep(0.01)
    last = (records.stored_result(tmp_path) or {})["heartbeat"]
    time.sleep(0.05)
    assert (records.stored_result(tmp_path) or {})["heartbeat"] == last


def test_a_resumed_run_is_the_same_run_of_the_tracker(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In other trainers it is a new one (verl #7401)."""
    arguments = ["train", *SMALL, EVERY, "tracker=wandb"]
    with monkeypatch.context() as patched:
        in_step(3, die)(patched)
        with pytest.raises(Killed):
            qtarget_cli(arguments)
    run = only_run(Path("outputs"))
    name = result(run)["tracked_as"]
    assert qtarget_cli(arguments) == 0
    assert result(run)["tracked_as"] == name
    attempts = list(run.glob("wandb/offline-run-*"))
    assert len(attempts) == 2
    assert all(path.name.endswith(f"-{name}") for path in attempts)


@pytest.mark.parametrize(("mode", "resume"), [("online", "allow"), ("offline", None)])
def test_the_tracker_is_asked_to_go_on(
    mode: str, resume: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline there is nobody to ask: what was measured before is repeated."""
    import wandb

    from qtarget.record.trackers import Wandb

    asked: list[dict[str, Any]] = []
    told: list[dict[str, float]] = []

    class Run:
        id = "abc"

        def define_metric(self, *given: Any, **options: Any) -> None: ...
        def log(self, values: dict[str, float]) -> None:
            told.append(values)

    def init(**options: Any) -> Run:
        asked.append(options)
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    info = {"name": "sft", "experiment": "runs", "role": "design", "choices": {}}
    assert Wandb(mode=mode).start(tmp_path, info, {}) == "abc"
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "time": 1.5, "train/nll": 2.0}\n')
    assert Wandb(mode=mode).start(tmp_path, {**info, "tracked_as": "abc"}, {}) == "abc"
    assert [(options["id"], options["resume"]) for options in asked] == [(None, None), ("abc", resume)]
    assert told == ([{"step": 5, "train/nll": 2.0}] if mode == "offline" else [])


def test_under_an_agent_a_run_that_goes_on_is_told_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the id of the agent then, under which W&B holds nothing yet."""
    import wandb

    from qtarget.record import trackers

    told: list[dict[str, float]] = []

    class Run:
        id, entity, project, sweep_id = "given", "e", "p", "s"

        def define_metric(self, *given: Any, **options: Any) -> None: ...
        def log(self, values: dict[str, float]) -> None:
            told.append(values)

    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    monkeypatch.setattr(wandb, "init", lambda **options: Run())
    monkeypatch.setattr(trackers, "find_sweep", lambda path: trackers.WandbSweep(path, "RUNNING", {}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "time": 1.5, "train/nll": 2.0}\n')
    info = {"name": "sft", "experiment": "runs", "role": "design", "choices": {}, "tracked_as": "of before"}
    assert trackers.Wandb(mode="online").start(tmp_path, info, {}) == "given"
    assert told == [{"step": 5, "train/nll": 2.0}]


def test_a_state_of_a_cpu_is_restored_on_a_gpu() -> None:
    """The device has drawn nothing then; trainer.accelerator=auto is the same run on both."""
    state = resume_state.rng_state(torch.device("cpu"))
    drawn = torch.rand(3)
    resume_state.set_rng_state(state, torch.device("cuda"))
    assert torch.equal(torch.rand(3), drawn)
