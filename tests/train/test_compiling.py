"""Whether a loss is compiled goes by what was timed on this machine, and stays what it was for a run that goes on."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import SMALL, assert_same_run, only_run, result
from test_resume import EVERY, Killed, die, in_step
from training import batches, eight_rows, module
from worlds import load_design

from qtarget.cli import run as qtarget_cli
from qtarget.config.run_config import RunConfig
from qtarget.errors import QTargetError
from qtarget.math import TokenView
from qtarget.run import doctor
from qtarget.run.plan import make_plan
from qtarget.train import compiling, compiling_figures, compiling_trial
from qtarget.train.compiling import BY_TRIAL, TOO_SHORT, Engine, Figures, by_figures, choose, without_trial
from qtarget.train.compiling_figures import Scored, machine, parts_of, what_is_scored

PAYS, COSTS = Figures(10.0, 3e-4, 1e-4), Figures(10.0, 1e-4, 1e-4)
LONG = {"tokens": 1e6, "vocabulary": 50_000}
compiles = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of figures, in a cache of this test's own."""
    monkeypatch.setenv("QTARGET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / compiling_figures.FILE


def scored(what: str = "a design", tokens: float = 1e6, on: str = "this machine") -> Scored:
    return Scored(tokens, 50_000, what, lambda: on)


# The law


@pytest.mark.parametrize(
    ("figures", "tokens", "compiled"),
    [
        (PAYS, 49_000, False),  # saves 9.8 s, and takes 10
        (PAYS, 51_000, True),
        (COSTS, 1e12, False),
        (Figures(10.0, 1e-4, 2e-4), 1e12, False),
        (Figures(100.0, 3e-4, 1e-4), 51_000, False),
    ],
)
def test_compiled_is_what_saves_more_seconds_than_it_takes(figures: Figures, tokens: float, compiled: bool) -> None:
    engine = by_figures(figures, tokens)
    assert engine.compiled is compiled
    assert compiled is (tokens * (figures.eager - figures.compiled) > figures.compiling)
    assert engine.description.startswith("compiled: " if compiled else "eager: ")


def test_the_description_has_the_figures() -> None:
    told = by_figures(PAYS, 1e6).description
    assert (
        told == "compiled: compiling saves 3.3 min and takes 10 s (by a trial here: 300 µs a token eager, 100 compiled)"
    )
    assert by_figures(Figures(10.0, 1e-4, 2e-4), 1e6).description.startswith("eager: compiling saves nothing and takes")


@pytest.mark.parametrize(
    ("eager", "compiling_here", "is_worth_it"),
    [
        (151e-6, None, True),  # a fifth of 151 s, and 30 s where nothing is known
        (149e-6, None, False),
        (149e-6, 10.0, True),
        (49e-6, 10.0, False),
        (151e-6, 60.0, False),
    ],
)
def test_a_trial_is_made_where_little_gain_would_pay_for_it(
    eager: float, compiling_here: float | None, is_worth_it: bool
) -> None:
    engine = without_trial(eager, 1e6, compiling_here)
    assert (engine is None) is is_worth_it
    if engine is not None:
        assert engine.compiled is False
        assert engine.description.startswith("eager: too short for a trial (its passes take")


@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_setting_pins_it_whatever_was_timed(on_gpu: bool) -> None:
    for kept in (None, PAYS, COSTS):
        assert choose("on", kept, on_gpu=on_gpu, **LONG) == Engine(True, "compiled")
        assert choose("off", kept, on_gpu=on_gpu, **LONG) == Engine(False, "eager")


@pytest.mark.parametrize("on_gpu", [True, False])
def test_auto_goes_by_what_was_timed_on_every_device(on_gpu: bool) -> None:
    assert choose("auto", PAYS, on_gpu=on_gpu, **LONG) == by_figures(PAYS, 1e6)
    assert choose("auto", COSTS, on_gpu=on_gpu, **LONG) == by_figures(COSTS, 1e6)
    assert choose("auto", None, on_gpu=on_gpu, **LONG) == BY_TRIAL
    assert choose("auto", PAYS, on_gpu=on_gpu, tokens=10_000, vocabulary=260) == TOO_SHORT


def test_without_a_compiler_auto_says_so_and_on_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert choose("auto", PAYS, on_gpu=False, **LONG) == Engine(False, "eager: no C++ compiler")
    with pytest.raises(QTargetError, match=r"loss\.compile=on needs a C\+\+ compiler"):
        choose("on", PAYS, on_gpu=False, **LONG)


# What is kept


def test_figures_are_of_what_was_scored_on_one_machine(file: Path) -> None:
    assert (scored().kept, scored().longest_compile) == (None, None)
    scored().keep(PAYS)
    scored("another").keep(Figures(20.0, 1e-4, 1e-4))
    assert scored().kept == PAYS
    assert scored().longest_compile == 20.0
    elsewhere = scored(on="another processor")
    assert (elsewhere.kept, elsewhere.longest_compile) == (None, None)
    elsewhere.keep(COSTS)
    assert (scored().kept, elsewhere.kept) == (PAYS, COSTS)


@pytest.mark.parametrize(
    "damage", ["", "[1]", '{"a": ', "\x00", '{"this machine": 3}', '{"this machine": {"a design": 1}}']
)
def test_a_damaged_file_holds_nothing_and_is_written_anew(file: Path, damage: str) -> None:
    file.parent.mkdir()
    file.write_text(damage)
    assert scored().kept is None
    scored().keep(PAYS)
    assert scored().kept == PAYS


@pytest.mark.parametrize("value", [float("nan"), 0.0, -1.0, "1", None])
def test_what_is_no_time_is_not_taken(file: Path, value: Any) -> None:
    scored("another").keep(COSTS)
    held = json.loads(file.read_text())
    held["this machine"]["a design"] = asdict(PAYS) | {"compiled": value}
    file.write_text(json.dumps(held))
    assert (scored().kept, scored("another").kept) == (None, COSTS)


def test_the_machine_is_the_processor_its_threads_and_the_version_of_torch() -> None:
    assert machine(on_gpu=False).endswith(f", {torch.get_num_threads()} threads, torch {torch.__version__}")


def test_designs_of_the_same_parts_share_figures_whatever_their_numbers() -> None:
    assert parts_of(load_design("dft")) == "Mixture(Power(policy), Self, Constant, tokens)"
    assert parts_of(load_design("target_sft", **{"residual.eta": 0.3})) == parts_of(load_design("target_sft"))
    assert parts_of(load_design("sft")) != parts_of(load_design("dft"))
    words = what_is_scored(load_design("kd"), {"teacher": "full"}, "260", "32-true")
    assert words == "Mixture(Constant, Teacher, Constant, tokens), teacher full, vocabulary 260, 32-true"


def test_what_a_run_scores_is_its_supervised_tokens_of_all_epochs() -> None:
    plan = make_plan(
        RunConfig.compose(
            ["model=tiny", "data.rows=16", "data.heldout_rows=4", "trainer.max_steps=null", "trainer.epochs=2"]
        )
    )
    supervised = sum(sum(example.supervised[1:]) for example in plan.prepared.train)
    assert plan.scored.tokens == 2 * supervised
    assert plan.scored.what == "Mixture(Constant, Self, Constant, tokens), vocabulary 260, bf16-mixed"


def test_doctor_shows_what_is_kept_of_this_machine(file: Path) -> None:
    assert "has made no trial here yet" in doctor._compiled_loss()
    scored(on=machine(on_gpu=torch.cuda.is_available())).keep(PAYS)
    scored("what another has scored", on="another processor").keep(COSTS)
    shown = doctor._compiled_loss()
    assert "a design: 300 µs a token eager, 100 compiled, 10 s to compile" in shown
    assert "another" not in shown


# The trial


@compiles
def test_a_trial_times_both_ways_and_leaves_the_run_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "FIRST_COMPILE", 0.0)
    trained, (batch,) = module("label_smoothing"), batches(eight_rows(), batch_size=8)
    weights = {name: tensor.clone() for name, tensor in trained.policy.state_dict().items()}
    drawn = torch.get_rng_state(), random.getstate()
    run = scored()
    engine = compiling_trial.by_trial(trained, batch, run)
    assert run.kept is not None
    assert engine == by_figures(run.kept, run.tokens)
    assert trained.policy.training
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert random.getstate() == drawn[1]
    assert all(tensor.grad is None for tensor in trained.policy.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trained.policy.state_dict().items())
    assert trained.whole_run.tokens == 0


def test_the_first_block_is_scored_as_training_scores_it() -> None:
    trained, (batch,) = module("dft"), batches(eight_rows(), batch_size=8)
    block = trained.first_block(batch)
    assert block is not None
    assert block.scoring.wants_gradient
    assert torch.equal(block.tokens.labels, batch.labels[batch.labels != -100][: len(block.logits)])
    expected = torch.log_softmax(block.logits, -1).gather(1, block.tokens.labels[:, None])[:, 0]
    got = trained.eval().token_loss(batch).nll[: len(expected)]
    torch.testing.assert_close(-expected, got, rtol=1e-5, atol=1e-5)


def test_a_batch_of_one_token_decides_without_a_trial(file: Path) -> None:
    trained, (batch,) = module(), batches(eight_rows(), batch_size=8)
    first = int((batch.labels.view(-1) != -100).nonzero()[0])
    batch.labels.view(-1)[first + 1 :] = -100
    assert compiling_trial.by_trial(trained, batch, scored()) == compiling_trial.FEW
    assert not file.exists()


def test_a_short_run_times_only_eager_passes(file: Path) -> None:
    trained, (batch,) = module(), batches(eight_rows(), batch_size=8)
    assert compiling_trial.by_trial(trained, batch, scored(tokens=10)).description.startswith("eager: too short for")
    assert not file.exists()


def test_every_rank_takes_what_rank_0_decides(file: Path) -> None:
    """A rank's own times, and the file of its own machine, count for nothing."""
    trained, (batch,) = module(), batches(eight_rows(), batch_size=8)
    of_rank_0 = Engine(True, "compiled: by rank 0")
    assert compiling_trial.by_trial(trained, batch, scored(tokens=10), agree=lambda own: of_rank_0) == of_rank_0


# Runs


def keep_for(overrides: list[str], figures: Figures) -> None:
    make_plan(RunConfig.compose(overrides)).scored.keep(figures)


def test_a_run_goes_on_with_the_engine_that_it_began_with(
    file: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later figures say otherwise; the sums of a compiled loss differ in the last bits."""
    monkeypatch.setattr(compiling, "SHORT", 1)
    keep_for(SMALL, COSTS)
    assert qtarget_cli(["train", *SMALL, "output_dir=whole"]) == 0
    expected = only_run(Path("whole"))
    began = result(expected)["loss"]
    assert began.startswith("eager: compiling saves nothing and takes 10 s")
    with monkeypatch.context() as patched:
        in_step(3, die)(patched)
        with pytest.raises(Killed):
            qtarget_cli(["train", *SMALL, EVERY])
    keep_for(SMALL, Figures(1e-9, 1.0, 1e-9))
    assert qtarget_cli(["train", *SMALL, EVERY]) == 0
    assert_same_run(only_run(Path("outputs")), expected)
    assert result(only_run(Path("outputs")))["loss"] == began


@pytest.mark.slow
@compiles
def test_a_compiled_run_goes_on_compiled_to_the_same_numbers(
    file: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiling, "SHORT", 1)
    dft = [*SMALL, "target=dft"]
    keep_for(dft, Figures(1e-9, 1.0, 1e-9))
    assert qtarget_cli(["train", *dft, "output_dir=whole"]) == 0
    expected = only_run(Path("whole"))
    began = result(expected)["loss"]
    assert began.startswith("compiled: compiling saves")
    assert ", 1 graphs" in began
    with monkeypatch.context() as patched:
        in_step(3, die)(patched)
        with pytest.raises(Killed):
            qtarget_cli(["train", *dft, EVERY])
    keep_for(dft, COSTS)
    capsys.readouterr()
    assert qtarget_cli(["train", *dft, EVERY]) == 0
    assert "dft: loss compiled: compiling saves" in capsys.readouterr().out
    assert_same_run(only_run(Path("outputs")), expected)


@pytest.mark.slow
@compiles
def test_the_first_long_run_makes_a_trial_and_the_next_goes_by_it(
    file: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiling, "SHORT", 1)
    monkeypatch.setattr(compiling, "FIRST_COMPILE", 0.0)
    assert qtarget_cli(["train", *SMALL, "output_dir=first"]) == 0
    out = capsys.readouterr().out
    assert f"; loss {BY_TRIAL.description}; " in out
    (figures,) = (Figures(**each) for of in json.loads(file.read_text()).values() for each in of.values())
    decided = by_figures(figures, make_plan(RunConfig.compose(SMALL)).scored.tokens)
    assert f"sft: loss {decided.description}\n" in out
    assert result(only_run(Path("first")))["loss"].startswith(decided.description)
    kept = file.read_bytes()
    assert qtarget_cli(["train", *SMALL, "seed=1", "output_dir=second"]) == 0
    assert result(only_run(Path("second")))["loss"].startswith(decided.description)
    assert file.read_bytes() == kept


@dataclass(frozen=True)
class Breaking:
    """A design that is no single graph."""

    design: Any

    def __call__(self, view: TokenView) -> Any:
        torch._dynamo.graph_break()
        return self.design(view)


@compiles
def test_a_design_that_the_compiler_cannot_take_runs_eagerly_and_says_why(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, (batch,) = module("dft"), batches(eight_rows(), batch_size=8)
    block = trained.first_block(batch)
    assert block is not None
    broken = replace(block, scoring=replace(block.scoring, design=Breaking(block.scoring.design)))
    engine = compiling_trial._by_compiling(broken, scored())
    assert engine.compiled is False
    assert engine.description.startswith("eager: torch.compile can't take this design (")
    assert not file.exists()
