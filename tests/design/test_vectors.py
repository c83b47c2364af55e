"""Published designs on the one-token fixture: loss, gradient, γ, w and Q to the digits of the reference table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from worlds import World, load_design

import qtarget
from qtarget import Head, Reference
from qtarget.config.composing import options

TABLE = json.loads((Path(__file__).parents[1] / "data" / "target_vectors.json").read_text())
VECTORS = TABLE["vectors"]

Symbols = dict[str, Any]


@dataclass(frozen=True)
class Ours:
    """How a row of the table is spelled here: our design and changes, and the paper's own formula and symbols."""

    name: str
    objective: Callable[..., torch.Tensor]
    changes: Callable[[Symbols], dict[str, Any]] = lambda p: {}
    symbols: Callable[[Symbols], Symbols] = lambda p: {}
    tail: str | None = None
    given: Callable[[Symbols], dict[str, Any]] = lambda p: {}


OURS = {
    "sft": Ours("sft", published.sft),
    "label_smoothing": Ours(
        "label_smoothing",
        published.label_smoothing,
        lambda p: {"reliance.smoothing": p["epsilon"]},
        lambda p: {"epsilon": p["epsilon"]},
    ),
    "dft": Ours("dft", published.dft),
    "beyond_log_alpha": Ours(
        "beyond_log", published.beyond_log, lambda p: {"reliance.alpha": p["alpha"]}, lambda p: {"alpha": p["alpha"]}
    ),
    "beyond_log_threshold_logp": Ours(
        "beyond_log_threshold",
        published.beyond_log_threshold,
        lambda p: {"reliance.threshold": p["q"]},
        lambda p: {"q": p["q"]},
    ),
    "beyond_log_threshold_p": Ours(
        "beyond_log_threshold",
        published.beyond_log_threshold,
        lambda p: {"reliance.threshold": p["q"], "reliance.alpha": 1.0},
        lambda p: {"q": p["q"], "inner": published.one_minus_p},
    ),
    "profit": Ours("profit", published.profit, lambda p: {"reliance.threshold": p["tau"]}, lambda p: {"tau": p["tau"]}),
    "eaft": Ours(
        "eaft",
        published.eaft,
        lambda p: {
            "reliance.top": p["k"],
            "reliance.norm": "lnk" if p["norm"] == "ln(k)" else 3.0,
            "reliance.alpha": p["alpha"],
        },
        lambda p: {"k": p["k"], "norm": math.log(p["k"]) if p["norm"] == "ln(k)" else 3.0, "alpha": p["alpha"]},
    ),
    "iw_sft": Ours(
        "iw_sft",
        published.iw_sft,
        # a sequence weight of 1.5, whatever the sequence: what a clip at both ends comes to
        lambda p: {"weight.low": 1.5, "weight.high": 1.5} if "given_sequence_weight" in p else {},
        lambda p: {"low": 1.5, "high": 1.5} if "given_sequence_weight" in p else {},
    ),
    "cft": Ours("cft", published.cft, given=lambda p: {"critical": p["critical"]}),
    "sft_kl_forward": Ours(
        "sft_kl", published.sft_kl, lambda p: {"anchor": p["lambda"]}, lambda p: {"lam": p["lambda"]}
    ),
    "sft_kl_reverse": Ours(
        "sft_kl_reverse",
        published.sft_kl_reverse,
        lambda p: {"strength": p["lambda"]},
        lambda p: {"lam": p["lambda"]},
    ),
    "asft": Ours("asft", published.asft, lambda p: {"anchor": p["lambda"]}, lambda p: {"lam": p["lambda"]}),
    "psft": Ours(
        "psft",
        published.psft,
        lambda p: {"weight.epsilon": p["clip_high"]},
        lambda p: {"clip_low": p["clip_low"], "clip_high": p["clip_high"]},
    ),
    "gem": Ours(
        "gem",
        published.gem,
        lambda p: {"residual.beta": p["beta"], "h": p["h"]},
        lambda p: {"beta": p["beta"], "h": p["h"]},
    ),
    "kd_forward_ce": Ours("kd", published.kd_ce),
    "kd_forward_kl": Ours(
        "kd_temperature",
        published.kd,
        lambda p: {"objective.temperature": p["temperature"]},
        lambda p: {"temperature": p["temperature"]},
    ),
    "kd_reverse_kl": Ours("kd_reverse", published.kd_reverse),
    "kd_gjsd": Ours("kd_jsd", published.kd_jsd, lambda p: {"objective.beta": p["beta"]}, lambda p: {"beta": p["beta"]}),
    "kd_hybrid": Ours(
        "kd_hybrid",
        published.kd_hybrid,
        lambda p: {"reliance.smoothing": p["lambda"]},
        lambda p: {"lam": p["lambda"]},
    ),
    "skew_kl": Ours(
        "skew_kl", published.skew_kl, lambda p: {"objective.alpha": p["alpha"]}, lambda p: {"alpha": p["alpha"]}
    ),
    "skew_kl_reverse": Ours(
        "skew_kl_reverse",
        published.skew_kl_reverse,
        lambda p: {"objective.alpha": p["alpha"]},
        lambda p: {"alpha": p["alpha"]},
    ),
    "kd_topk_truncated": Ours("kd_truncated", published.kd_truncated, symbols=lambda p: {"k": p["k"]}, tail="bucket"),
    "kd_topk_both_renorm": Ours("kd_support", published.kd_support, symbols=lambda p: {"k": p["k"]}, tail="bucket"),
    "kd_topk_renorm": Ours("kd", published.kd_renormalised, symbols=lambda p: {"k": p["k"]}, tail="renormalised"),
    "kd_topk_tail_bucket": Ours("kd", published.kd_bucket, symbols=lambda p: {"k": p["k"]}, tail="bucket"),
    "kd_topk_tail_uniform_ce": Ours("kd", published.kd_uniform, symbols=lambda p: {"k": p["k"]}, tail="uniform"),
    "target_sft": Ours(
        "target_sft", published.target_sft, lambda p: {"residual.eta": p["eta"]}, lambda p: {"eta": p["eta"]}
    ),
    "prift_prob": Ours("prift_prob", published.prift_prob),
    "prift_mass": Ours(
        "prift_mass",
        published.prift_mass,
        lambda p: {"reliance.threshold": p["threshold"]},
        lambda p: {"tau": p["threshold"]},
    ),
    "talr": Ours(
        "talr",
        published.talr,
        lambda p: {"reliance.floor": p["w_min"], "reliance.tau": p["tau"] if p["tau"] == 0.5 else "median"},
        lambda p: {"w_min": p["w_min"], "tau": p["tau"] if p["tau"] == 0.5 else None},
    ),
    "focal_full_gradient": Ours(
        "focal_full", published.focal_full, lambda p: {"weight.gamma": p["gamma"]}, lambda p: {"gamma": p["gamma"]}
    ),
    "focal_stop_gradient": Ours(
        "focal", published.focal, lambda p: {"reliance.power": p["gamma"]}, lambda p: {"gamma": p["gamma"]}
    ),
    "unlikelihood": Ours(
        "unlikelihood",
        published.unlikelihood,
        lambda p: {"strength": p["alpha"]},
        lambda p: {"alpha": p["alpha"]},
        given=lambda p: {"negatives": p["negatives"]},
    ),
    "confidence_penalty": Ours(
        "confidence_penalty",
        published.confidence_penalty,
        lambda p: {"strength": p["beta"]},
        lambda p: {"beta": p["beta"]},
    ),
    "idft": Ours(
        "idft",
        published.idft,
        lambda p: {
            "reliance.beta": p["beta"],
            "reliance.low": p["gamma_min"],
            "reliance.high": p["gamma_max"],
            "reliance.ramp": p["lambda_t"],
        },
        lambda p: {"beta": p["beta"], "low": p["gamma_min"], "high": p["gamma_max"], "lambda_t": p["lambda_t"]},
    ),
    "gift": Ours("gift", published.gift, lambda p: {"reliance.beta": p["beta"]}, lambda p: {"beta": p["beta"]}),
    "chord_phi": Ours("chord_phi", published.chord_phi),
    "infosft": Ours(
        "infosft",
        published.infosft,
        lambda p: {"reliance.ceiling": p["P"]},
        lambda p: {"ceiling": p["P"]},
    ),
    "sed_sft": Ours(
        "sed_sft",
        published.sed_sft,
        lambda p: {"weight.strength": p["lambda"], "weight.top": p["k"], "weight.mass": p["c"]},
        lambda p: {"lam": p["lambda"], "k": p["k"], "c": p["c"]},
    ),
    "one_minus_prior": Ours("one_minus_prior", published.one_minus_prior),
    "inverse_prior": Ours(
        "inverse_prior",
        published.inverse_prior,
        lambda p: {"weight.clip": p["clip_max"]},
        lambda p: {"clip": p["clip_max"]},
    ),
    "deft": Ours("deft", published.deft, lambda p: {"reliance.eps": p["eps"]}, lambda p: {"eps": p["eps"]}),
    "cayley_trans": Ours("cayley_trans", published.cayley_trans),
}


def case_name(vector: dict[str, Any]) -> str:
    return f"{vector['design']}-{vector['params']}-y{vector['inputs']['label']}"


def test_the_documentation_lists_every_design_with_its_formula() -> None:
    text = (Path(__file__).parents[2] / "docs" / "designs.md").read_text()
    for name, told in qtarget.list_designs().items():
        formula = told["formula"].replace("|", "\\|")
        assert f"| `{name}` | {formula} | {told['paper']} |" in text


every_vector = pytest.mark.parametrize("vector", VECTORS, ids=case_name)


def world_of(vector: dict[str, Any]) -> World:
    """The fixture as a world of one token; the old policy of the table is its prior."""
    given, extra = vector["inputs"], OURS[vector["design"]].given(vector["params"])

    def row(name: str) -> torch.Tensor:
        return torch.tensor([given[name]], dtype=torch.float64)

    prior = row("prior_logits").log_softmax(-1)
    return World(
        logits=row("logits"),
        labels=torch.tensor([given["label"]]),
        prior=prior,
        teacher=row("teacher_logits").log_softmax(-1),
        old=prior,
        critical=torch.tensor([extra.get("critical", 1)]),
        negatives=torch.tensor([extra.get("negatives", [0])]),
        sequence_ids=torch.tensor([0]),
    )


def given(vector: dict[str, Any]) -> dict[str, Any]:
    world, ours = world_of(vector), OURS[vector["design"]]
    arguments = world.given()
    if ours.tail:
        ids = torch.tensor([vector["params"]["ids"]])
        stored = Reference.topk(ids, world.teacher.gather(1, ids), vocab_size=4, tail=ours.tail)
        arguments["references"]["teacher"] = stored
    return arguments


def design_of(vector: dict[str, Any]) -> Any:
    ours = OURS[vector["design"]]
    return load_design(ours.name, **ours.changes(vector["params"]))


def is_weighting(vector: dict[str, Any]) -> bool:
    """Rows whose w and γ are two spellings of one number."""
    known = "gamma" in vector and "w" in vector
    return known and vector["gamma"] == pytest.approx(vector["w"], abs=2e-6) and vector["gamma"] != 1


def test_the_table_is_whole_and_every_design_is_in_it() -> None:
    assert (len(VECTORS), len(TABLE["identities"])) == (63, 12)
    assert set(OURS) == {vector["design"] for vector in VECTORS}
    elsewhere = {"iw_sft_token", "rho1", "se_kd"}  # the laws hold them against their papers; rho1 is in the batch case
    assert {ours.name for ours in OURS.values()} | elsewhere == set(options("target"))


@every_vector
def test_the_papers_formula_gives_the_tables_loss_and_gradient(vector: dict[str, Any]) -> None:
    """The transcriptions that the laws rest on, and the table, are two sources: they agree."""
    ours = OURS[vector["design"]]
    loss, gradient = published.loss_and_gradient(ours.objective, world_of(vector), **ours.symbols(vector["params"]))
    # the table's uniform tail was made from a teacher rounded to six digits
    assert loss.item() == pytest.approx(vector["loss"], abs=3e-6 if ours.tail == "uniform" else 1e-6)
    assert gradient[0].tolist() == pytest.approx(vector["grad"], abs=1e-6)


@every_vector
def test_dense_loss_matches_the_table(vector: dict[str, Any]) -> None:
    world = world_of(vector)
    logits = world.leaf()
    out = qtarget.dense_loss(logits, world.labels, design_of(vector), **given(vector))
    out.total.backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx(vector["grad"], abs=1e-6)
    induced = logits.detach().softmax(-1) - logits.grad
    assert induced[0].tolist() == pytest.approx(vector["Q_induced"], abs=1e-6)


@every_vector
def test_linear_loss_matches_the_table(vector: dict[str, Any]) -> None:
    """Hidden states that are the logits, and an identity head: the gradient of both is known from the table."""
    world = world_of(vector)
    hidden, weight = world.leaf(), torch.eye(4, dtype=torch.float64, requires_grad=True)
    out = qtarget.linear_loss(hidden, Head(weight), world.labels, design_of(vector), **given(vector))
    out.total.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert hidden.grad[0].tolist() == pytest.approx(vector["grad"], abs=1e-6)
    expected = torch.outer(torch.tensor(vector["grad"], dtype=torch.float64), world.logits[0])
    torch.testing.assert_close(weight.grad, expected, atol=2e-6, rtol=0)


@every_vector
def test_the_loss_is_the_weighted_cross_entropy_or_the_published_value(vector: dict[str, Any]) -> None:
    """A fixed target's loss is w·CE(Q, p) over what it names; an Induced design's is the published objective itself."""
    world, design = world_of(vector), design_of(vector)
    out = qtarget.dense_loss(world.logits, world.labels, design, **given(vector))
    if isinstance(design, qtarget.Induced):
        assert out.loss.item() == pytest.approx(vector["loss"], abs=1e-6)
    elif is_weighting(vector):
        assert out.loss.item() == pytest.approx(vector["gamma"] * out.nll.item(), abs=3e-6)
    elif "Q_for_w" in vector and not isinstance(design, qtarget.Signed):
        logp = world.logits[0].log_softmax(-1)
        expected = -vector["w"] * sum(q * lp for q, lp in zip(vector["Q_for_w"], logp.tolist(), strict=True))
        assert out.loss.item() == pytest.approx(expected, abs=1e-5)


@every_vector
def test_reliance_weight_and_target_match_the_table(vector: dict[str, Any]) -> None:
    world, design = world_of(vector), design_of(vector)
    out = qtarget.dense_loss(world.logits, world.labels, design, **given(vector))
    label = vector["inputs"]["label"]
    if is_weighting(vector):
        assert (out.weight * out.reliance).item() == pytest.approx(vector["gamma"], abs=1e-6)
    elif "gamma" in vector and not isinstance(design, qtarget.Induced):
        assert out.reliance.item() == pytest.approx(vector["gamma"], abs=1e-6)
    if "w" in vector and not is_weighting(vector) and not isinstance(design, qtarget.Induced):
        assert out.weight.item() == pytest.approx(vector["w"], abs=1e-6)
    assert out.nll.item() == pytest.approx(-world.logits.log_softmax(-1)[0, label].item(), abs=1e-9)
    # Trust is −∂L/∂z_y in units of plain SFT's 1 − p_y, whatever the spelling of the method.
    assert out.trust.item() == pytest.approx(-vector["grad"][label] / (1 - vector["p_label"]), abs=1e-5)
    assert (out.weight * out.gap).item() == pytest.approx(0.5 * sum(map(abs, vector["grad"])), abs=1e-5)


def test_a_prior_known_by_label_scalars_serves_a_weighting_design() -> None:
    vector = next(vector for vector in VECTORS if vector["design"] == "one_minus_prior")
    world = world_of(vector)
    thin = Reference.label(world.labels, {"logp": world.prior[0, world.labels]})
    out = qtarget.dense_loss(world.logits, world.labels, design_of(vector), references={"prior": thin})
    assert out.total.item() == pytest.approx(vector["loss"], abs=1e-6)
