"""References that are flawed on purpose: the law of each flaw, and the same flaw live and cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from training import other_policy, tiny_policy
from worlds import few_at_once

from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import compose_config, instantiate, options
from qtarget.config.run_config import RunConfig
from qtarget.errors import QTargetError
from qtarget.math.head import Head
from qtarget.math.loss import IGNORE
from qtarget.model import provide
from qtarget.model.flaw import Flaw, NoFlaw, NoisyWeights, Temperature, TokenBias
from qtarget.model.policy import Policy
from qtarget.run import build, estimate
from qtarget.run.plan import Plan, make_plan

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
SMALL = ["model=tiny", "trainer.max_steps=1", "data.rows=16", "data.heldout_rows=4", "trainer.precision=32-true"]
FLAWS = options("reference/flaw")
FLAWED = [name for name in FLAWS if name != "none"]
CHANGED = {
    "temperature": ["references.prior.flaw.temperature=0.1"],
    "token_bias": ["references.prior.flaw.share=0.3"],
    "noisy_weights": ["references.prior.flaw.sigma=2.0"],
}
"""By so much that the tiny model, which knows next to nothing, shows it."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("QTARGET_CACHE", str(folder))
    return folder


def flaw(name: str, role: str = "prior") -> list[str]:
    return [f"reference/flaw@references.{role}.flaw={name}"]


def planned(*overrides: str) -> Plan:
    return make_plan(RunConfig.compose([*SMALL, *overrides]))


# Laws

HEADS: dict[str, Callable[[Head], Head]] = {
    "plain": lambda head: head,
    "bias": lambda head: replace(head, bias=torch.linspace(-2, 2, len(head.weight))),
    "scaled": lambda head: replace(head, scale=0.3),
    "capped": lambda head: replace(head, bias=torch.linspace(-2, 2, len(head.weight)), softcap=1.5, scale=3.0),
    "padded": lambda head: replace(head, true_vocab=250),
}


class Shaped(Policy):
    """The tiny model with a head of another form."""

    def __init__(self, form: str) -> None:
        policy = tiny_policy()
        super().__init__(policy.lm, 250 if form == "padded" else policy.vocab_size)
        self.form = form

    @property
    def head(self) -> Head:
        return HEADS[self.form](super().head)


def logits(policy: Policy) -> torch.Tensor:
    hidden = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    return policy.head.logits(hidden, torch.float32)


@pytest.mark.parametrize("form", HEADS)
@pytest.mark.parametrize("temperature", [0.5, 1, 3.0])
def test_a_temperature_divides_the_logits(form: str, temperature: float) -> None:
    torch.testing.assert_close(logits(Temperature(temperature)(Shaped(form))), logits(Shaped(form)) / temperature)


@pytest.mark.parametrize("form", [form for form in HEADS if form != "capped"])
@pytest.mark.parametrize("tokens", [None, [3, 17]])
def test_a_token_bias_is_the_difference_of_the_logits(form: str, tokens: list[int] | None) -> None:
    made = TokenBias(strength=-1.5, tokens=tokens, share=0.1)
    plain, flawed = logits(Shaped(form)), logits(made(Shaped(form)))
    real = Shaped(form).vocab_size
    difference = (flawed - plain)[:, :real]
    assert torch.isneginf(flawed[:, real:]).all()
    chosen = difference[0].abs() > 0.1
    assert chosen.sum() == (round(0.1 * real) if tokens is None else 2)
    assert tokens is None or chosen.nonzero().flatten().tolist() == tokens
    torch.testing.assert_close(difference, -1.5 * chosen.float().expand(7, -1), atol=1e-5, rtol=0)


def test_a_token_bias_stands_in_front_of_a_cap() -> None:
    plain, flawed = (logits(policy) for policy in (Shaped("capped"), TokenBias(1.0, [5])(Shaped("capped"))))
    uncapped = 1.5 * torch.atanh(plain / 1.5)
    torch.testing.assert_close(flawed[:, 5], 1.5 * torch.tanh((uncapped[:, 5] + 1.0) / 1.5), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(flawed[:, :5], plain[:, :5])


def test_drawn_tokens_follow_the_seed() -> None:
    first, again, other = (logits(TokenBias(share=0.2, seed=seed)(tiny_policy())) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_noisy_weights_are_noisy_by_so_much_of_their_spread() -> None:
    noisy = dict(NoisyWeights(0.3, seed=1)(tiny_policy()).named_parameters())
    for name, weight in tiny_policy().requires_grad_(False).named_parameters():
        change = noisy[name].detach() - weight
        if weight.ndim > 1:
            assert float(change.std() / weight.std()) == pytest.approx(0.3, rel=0.1), name
            assert abs(float((change * weight).mean())) < 0.1 * float(change.std() * weight.std()), name
        else:
            assert not change.any(), name


def test_noisy_weights_follow_the_seed_and_none_of_it_is_the_model() -> None:
    first, again, other, none = (
        dict(NoisyWeights(sigma, seed)(tiny_policy()).named_parameters())
        for sigma, seed in ((0.1, 0), (0.1, 0), (0.1, 1), (0.0, 0))
    )
    name = "lm.model.embed_tokens.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    assert all(torch.equal(none[name], weight) for name, weight in tiny_policy().named_parameters())


@pytest.mark.parametrize("name", FLAWED)
def test_a_flaw_leaves_no_trace_in_other_models(name: str) -> None:
    """Loaded afresh, a model is what it was."""
    before = logits(other_policy())
    made: Flaw = instantiate(compose_config("train", flaw(name)).references.prior.flaw)
    assert not torch.equal(logits(made(other_policy())), before)
    assert torch.equal(logits(other_policy()), before)


# Live and cached


def distributions(plan: Plan, role: str = "prior") -> dict[str, torch.Tensor]:
    """What a role says of the training tokens, as far as it is kept."""
    _, frozen = build.load_models(plan)
    (batch,) = build.data(plan).train_dataloader()
    kept = batch.labels != IGNORE
    reference = frozen[role].reference(batch)
    reference = reference if reference.supervised_only else reference.select(kept.flatten())
    known = reference.at(batch.labels[kept], torch.zeros(int(kept.sum()), 260).log_softmax(-1))
    if reference.detail == "topk":
        return {"label_logp": known.label_logp, "logp": known.logp}
    scalars = {"label_logp": known.label_logp, "entropy": known.entropy, "outranked": known.outranked}
    return scalars if reference.detail == "label" else scalars | {"logp": known.logp}


@cache
def live_distributions(*chosen: str) -> dict[str, torch.Tensor]:
    return distributions(planned(*chosen))


@pytest.mark.parametrize("detail", ["label", "topk", "hidden"])
@pytest.mark.parametrize("name", FLAWED)
def test_a_flaw_says_the_same_live_and_cached(name: str, detail: str) -> None:
    chosen = ["target=one_minus_prior", *flaw(name), *CHANGED[name]]
    topk = ["references.prior.topk=9"] if detail == "topk" else []
    live = live_distributions(*chosen, *topk)
    cached = ["reference@references.prior=cached", f"references.prior.detail={detail}", *topk]
    held = distributions(planned(*cached, *chosen))
    for key, values in held.items():
        torch.testing.assert_close(values, live[key], atol=2e-5, rtol=2e-5, msg=key)
    plain = live_distributions("target=one_minus_prior", *topk)
    assert not torch.allclose(plain["label_logp"], live["label_logp"], atol=1e-2)


def test_a_teacher_is_flawed_apart_from_the_prior() -> None:
    teacher = ["reference@references.teacher=frozen", "references.teacher.name=tiny"]
    both = planned("target=target_sft", *teacher, *flaw("temperature", "teacher"))
    plain = planned("target=target_sft", *teacher)
    flawed, model = (distributions(plan, "teacher")["logp"] for plan in (both, plain))
    torch.testing.assert_close(flawed, (model / 2).log_softmax(-1), atol=1e-5, rtol=1e-5)


def test_the_flaw_is_part_of_a_caches_name_and_its_lack_is_not() -> None:
    def plans(*chosen: str) -> Any:
        return planned("target=one_minus_prior", "reference@references.prior=cached", *chosen).caches

    found = {name: plans(*flaw(name)) for name in FLAWS}
    found["hotter"] = plans(*flaw("temperature"), "references.prior.flaw.temperature=3")
    assert len({caches["prior"].folder for caches in found.values()}) == len(found)
    assert len({caches["heldout"].folder for caches in found.values()}) == 1  # drift is from the model as it is
    plain = found["none"]["prior"]
    assert plain.identity.keys() == {"format", "vocabulary", "weights", "rows", "kept", "parameters"}
    digest = hashlib.sha256(json.dumps(dict(plain.identity), sort_keys=True).encode()).hexdigest()[:12]
    assert plain.folder.name == f"label-{digest}"
    assert found["temperature"]["prior"].made_from["flaw"] == "Temperature(temperature=2.0)"


@pytest.mark.parametrize("kind", few_at_once(["frozen", "cached"], ("cached",)))
@pytest.mark.parametrize("name", FLAWED)
def test_drift_is_measured_from_the_model_as_it_is(workdir: Path, name: str, kind: str) -> None:
    """A policy that hasn't moved is nowhere but at its start; the target looks at the flawed one."""
    chosen = ["target=asft", f"reference@references.prior={kind}", *flaw(name), *CHANGED[name]]
    assert qtarget_cli(["train", *SMALL, *chosen, "optim.lr=0", "checkpoint.save=false"]) == 0
    (path,) = workdir.glob("outputs/runs/*/result.json")
    result = json.loads(path.read_text())
    assert result["metrics"]["test/kl_prior"] == pytest.approx(0, abs=1e-5)
    assert result["metrics"]["target/kl_prior"] > 1e-3
    assert f"_target_: qtarget.model.flaw.{type(known(name)).__name__}" in (path.parent / "config.yaml").read_text()


def known(name: str) -> Flaw:
    made: Flaw = instantiate(compose_config("train", flaw(name)).references.prior.flaw)
    return made


def test_the_flaws_there_are() -> None:
    assert {name: type(known(name)) for name in FLAWS} == {
        "none": NoFlaw,
        "temperature": Temperature,
        "token_bias": TokenBias,
        "noisy_weights": NoisyWeights,
    }


def test_a_flawed_prior_beside_the_one_for_drift_is_counted() -> None:
    weights = sum(tensor.numel() for tensor in other_policy().parameters())

    def copies(*chosen: str) -> float:
        made = planned(*chosen)
        policy = provide.outline(made.model, len(made.tokenizer))
        return (
            estimate._memory(made, policy) - estimate._memory(planned("target=sft", "eval.kl_prior=false"), policy)
        ) / weights

    assert copies("target=asft") == 4
    assert copies("target=asft", *flaw("temperature")) == 8
    assert copies("target=sft", *flaw("temperature")) == 4
    assert copies("target=asft", *flaw("temperature"), "eval.kl_prior=false") == 4


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Temperature(0), r"flaw.temperature must lie in \[0.01, ∞\), got 0"),
        (lambda: TokenBias(share=2), r"flaw.share must lie in \[0, 1\], got 2"),
        (lambda: TokenBias(strength="hot"), r"flaw.strength must lie in \[-100, 100\]"),  # type: ignore[arg-type]
        (lambda: TokenBias(tokens=5), "flaw.tokens must be a list, each: whole number ≥ 0, got 5"),  # type: ignore[arg-type]
        (lambda: TokenBias(tokens=["a"]), r"flaw.tokens\[0\] must be a whole number of at least 0"),  # type: ignore[list-item]
        (lambda: NoisyWeights(sigma=-1), r"flaw.sigma must lie in \[0, ∞\), got -1"),
        (lambda: NoisyWeights(seed="x"), "flaw.seed must be a whole number"),  # type: ignore[arg-type]
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], Flaw], message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        make()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*flaw("temperature"), "references.prior.flaw.temperature=0"],
            "flaw.temperature must lie in [0.01, ∞), got 0",
        ),
        (
            [*flaw("token_bias"), "references.prior.flaw.tokens=[9,999]"],
            "must lie in [0, 260), the vocabulary; got [999]",
        ),
        (
            ["model/adapter=lora", "reference@references.prior=adapter_off", *flaw("temperature")],
            "prior is adapter_off",
        ),
        (flaw("temperature", "old"), "this old is snapshot: add reference@references.old=frozen"),
        (flaw("temperature", "teacher"), "this teacher is none: add reference@references.teacher=frozen or =cached"),
        (flaw("temprature"), "unknown reference/flaw 'temprature': did you mean 'temperature'?"),
    ],
)
def test_a_flaw_that_cannot_be_is_told_before_training(
    workdir: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    assert qtarget_cli(["train", *SMALL, *overrides, "trainer=dry"]) == 2
    assert message in capsys.readouterr().err


def test_a_bias_of_tokens_that_are_not_there_is_refused_in_python() -> None:
    with pytest.raises(QTargetError, match=r"must lie in \[0, 260\)"):
        TokenBias(tokens=[260])(tiny_policy())
