"""A kind of reference of the user's own: one class in the folder worked in, one yaml in its ./conf/reference."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import qtarget
from qtarget.config.composing import compose_config
from qtarget.config.identity import config_hash
from qtarget.config.run_config import RunConfig
from qtarget.data.batch import Collate
from qtarget.run import build
from qtarget.run.estimate import dry_run
from qtarget.run.plan import Plan, make_plan
from qtarget.run.stored_config import trained_config
from qtarget.run.train import run_job

MODULE = '''
    from dataclasses import dataclass, replace

    import torch

    from qtarget.config.references import FrozenReference
    from qtarget.settings import Number, setting
    from qtarget.math import Reference
    from qtarget.model.frozen import FrozenModel


    @dataclass(frozen=True)
    class TemperedReference(FrozenReference):
        """A frozen model at a temperature: softmax(z / T)."""

        temperature: float = setting(2.0, Number(0.1, 10.0), "T; above 1 it is less sure")

        def load(self, models):
            return Tempered(models.still(), self.temperature)


    class Tempered(FrozenModel):
        def __init__(self, model, temperature):
            super().__init__(model)
            self.temperature = temperature

        @torch.no_grad()
        def exact(self, batch):
            head = self.policy.head
            hidden = self.policy(batch.input_ids, batch.position_ids)
            return Reference.hidden(hidden, replace(head, scale=head.scale / self.temperature))


    class NoKind:
        pass
'''
YAML = """
    defaults:
      - flaw: none
      - _self_
    _target_: my_kinds.TemperedReference
    name: null
    dtype: float32
    topk: null
    tail: bucket
    temperature: 2.0
"""
CHOSEN = [
    "model=tiny",
    "target=one_minus_prior",
    "data=arithmetic",
    "data.rows=8",
    "data.heldout_rows=2",
    "trainer.batch_size=4",
    "trainer.max_steps=2",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "name=tempered",
    "eval.new_tokens=2",
    "reference@references.prior=tempered",
]


@pytest.fixture
def own_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "conf" / "reference").mkdir(parents=True)
    (tmp_path / "my_kinds.py").write_text(textwrap.dedent(MODULE), encoding="utf-8")
    (tmp_path / "conf" / "reference" / "tempered.yaml").write_text(textwrap.dedent(YAML), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_kinds", None)


def planned(*overrides: str) -> Plan:
    return make_plan(RunConfig.compose([*CHOSEN, *overrides]))


@pytest.mark.usefixtures("own_kind")
def test_a_kind_of_ones_own_is_read_and_written_again() -> None:
    composed = compose_config("train", [*CHOSEN, "references.prior.temperature=3"])
    cfg = RunConfig.read(composed)
    assert type(cfg.references["prior"]).__name__ == "TemperedReference"
    assert cfg.container()["references"]["prior"]["_target_"] == "my_kinds.TemperedReference"
    assert cfg.hash == config_hash(composed) != RunConfig.compose(CHOSEN).hash


@pytest.mark.usefixtures("own_kind")
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_design_reads_the_distribution_that_the_kind_makes(temperature: float) -> None:
    """softmax(z / T) of the model that training starts from, which the policy still is."""
    plan = planned(f"references.prior.temperature={temperature}")
    policy, frozen = build.load_models(plan)
    batch = Collate(0)(plan.prepared.train[:2])
    logits = policy.lm.eval()(batch.input_ids).logits.detach()[..., : len(plan.tokenizer)]
    expected = (logits / temperature).log_softmax(-1).flatten(0, 1)
    labels = batch.labels.clamp_min(0).flatten()
    held = frozen["prior"].reference(batch).at(labels, expected)
    torch.testing.assert_close(held.label_logp, expected.gather(1, labels[:, None]).squeeze(1))


@pytest.mark.usefixtures("own_kind")
def test_a_run_trains_and_is_evaluated_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = RunConfig.compose([*CHOSEN, "references.prior.temperature=0.1"])
    dry_run(cfg, "a run")
    assert "prior: TemperedReference" in capsys.readouterr().out
    result = run_job(cfg, tmp_path / "run", {}, [])
    assert (result["status"], result["steps"]) == ("finished", 2)
    assert result["metrics"]["test/kl_prior"] > 0.1, "the prior is sharper than the policy that started from it"
    beside = trained_config(str(tmp_path / "run" / "checkpoint")).references["prior"]
    assert (beside.kind, getattr(beside, "name", None)) == ("TemperedReference", "tiny")


@pytest.mark.usefixtures("own_kind")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("references.prior.temperature=0", r"references\.prior\.temperature must lie in \[0\.1, 10\], got 0"),
        ("references.prior._target_=my_kinds.NoKind", r"my_kinds\.NoKind is no kind of reference.*ReferenceConfig"),
        (
            "references.prior._target_=my_kinds.Missing",
            r"references\.prior\._target_=my_kinds\.Missing can't be imported",
        ),
        ("references.prior._target_=qtarget.config.references.FrozenReference", r"write kind: frozen"),
        ("+references.prior.warmth=2", r"unknown key 'references\.prior\.warmth'.*temperature"),
    ],
)
def test_what_is_wrong_with_it_is_told(override: str, message: str) -> None:
    with pytest.raises(qtarget.QTargetError, match=message):
        RunConfig.compose([*CHOSEN, override])
