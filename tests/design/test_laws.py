"""What holds of every design: each yaml under conf/target, alone and with every part option swapped in."""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from typing import Any

import published
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from worlds import NEEDS_TOP_K, World, few_at_once, load_design

import qtarget
from qtarget import QTargetError, Reference
from qtarget.config.composing import about, conf_dir, options
from qtarget.math.loss import token_table
from qtarget.math.schedule import scheduled
from qtarget.math.scope_values import TokenTable, scope_values_of, scoped_parts
from qtarget.math.target import columns, needs, wants_negatives
from qtarget.math.tokens import IGNORE

DESIGNS = options("target")
PARTS = [
    (part, option) for part in ("reliance", "residual", "weight", "objective") for option in options(f"target/{part}")
]
seeds = st.integers(0, 2**31)
every_design = pytest.mark.parametrize("name", DESIGNS)


def run(world: World, name: str, design: Any = None, **extra: Any) -> tuple[Any, Tensor]:
    """The loss of a design as shipped, or of `design` in a world made for `name`, and its gradient."""
    logits = world.leaf()
    design = load_design(name) if design is None else design
    out = qtarget.dense_loss(logits, world.labels, design, **{**world.given(name), **extra})
    out.total.backward()
    assert logits.grad is not None
    return out, logits.grad


@every_design
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_gradient_is_that_of_the_published_objective(name: str, seed: int) -> None:
    world = World.random(seed)
    _, gradient = run(world, name)
    _, expected = published.loss_and_gradient(getattr(published, name), world)
    torch.testing.assert_close(gradient, expected, atol=1e-10, rtol=1e-8)


@every_design
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_target_sums_to_its_mass_and_chunks_agree(name: str, seed: int) -> None:
    """The gradient sums to zero: what the label and the parts gain, the policy loses. Q = p − ∂L/∂z sums to 1."""
    world = World.random(seed)
    whole, gradient = run(world, name)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(7, dtype=torch.float64), atol=1e-11, rtol=0)
    for size in (1, 5, 7, 8):
        out, chunked = run(world, name, chunk_size=size)
        torch.testing.assert_close(chunked, gradient)
        torch.testing.assert_close(out.trust, whole.trust)


@every_design
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_measures_are_those_of_the_gradient(name: str, seed: int) -> None:
    world = World.random(seed)
    out, gradient = run(world, name)
    p, rows = world.logits.softmax(-1), torch.arange(7)
    label_pull = -gradient[rows, world.labels] / (1 - p[rows, world.labels])
    torch.testing.assert_close(out.trust, label_pull, atol=1e-9, rtol=1e-7)
    assert (out.mass >= 0).all()
    torch.testing.assert_close(out.weight * out.gap, 0.5 * gradient.abs().sum(-1), atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(out.entropy, -(p * p.log()).sum(-1))
    induced = p - gradient / out.weight.clamp_min(1e-30)[:, None]
    proper = (induced > 1e-9).all(-1) & (out.weight > 0)
    kl = (induced[proper] * (induced[proper] / p[proper]).log()).sum(-1)
    torch.testing.assert_close(out.kl_to_target[proper], kl, atol=1e-9, rtol=1e-7)
    signed = (induced < -1e-4).any(-1) & (out.weight > 0)
    assert out.kl_to_target[signed].isnan().all()


@every_design
def test_unsupervised_positions_change_nothing(name: str) -> None:
    world = World.random(3)
    keep = torch.tensor([0, 2, 3, 6])
    masked = torch.full_like(world.labels, IGNORE)
    masked[keep] = world.labels[keep]
    out, gradient = run(world.changed(labels=masked), name)
    expected, expected_gradient = run(world.at(keep), name)
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(gradient[keep], expected_gradient)
    assert not gradient[torch.tensor([1, 4, 5])].any()


@every_design
def test_an_all_masked_batch_has_zero_gradient_and_says_so_once(name: str) -> None:
    world = World.random(4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out, gradient = run(world.changed(labels=torch.full_like(world.labels, IGNORE)), name)
    assert [str(warning.message)[:19] for warning in caught] == ["no supervised token"]
    assert out.total.item() == 0
    assert not gradient.any()


@every_design
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(name: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([[80.0, -80.0, 0.0, -80.0], [-80.0, 80.0, 80.0, 0.0]], dtype=dtype)
    flat = torch.full((2, 4), 0.25).log()
    world = World.random(0, count=2, vocab=4).changed(
        logits=logits, labels=torch.tensor([1, 0]), prior=flat, teacher=logits.float().log_softmax(-1), old=flat
    )
    out, gradient = run(world, name)
    assert torch.isfinite(gradient).all()
    for field in ("loss", "nll", "trust", "reliance", "weight", "mass", "gap", "entropy"):
        assert torch.isfinite(getattr(out, field)).all(), field


@every_design
def test_padded_vocabulary_rows_never_matter(name: str) -> None:
    world = World.random(5)
    _, expected = run(world, name)
    padded = torch.nn.functional.pad(world.logits, (0, 3), value=-torch.inf)
    out, gradient = run(world.changed(logits=padded), name)
    torch.testing.assert_close(gradient[:, :-3], expected)
    assert not gradient[:, -3:].any()
    assert torch.isfinite(out.loss).all()


@every_design
def test_bf16_near_the_prior_is_within_one_percent(name: str) -> None:
    """Every run starts where policy, prior and teacher are the same: differences there must keep their digits."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(64, 501, generator=generator)).bfloat16()
    near = logits.double() + 0.05 * torch.randn(64, 501, generator=generator, dtype=torch.float64)
    near = near.log_softmax(-1)
    labels = torch.multinomial(logits.float().softmax(-1), 1, generator=generator).squeeze(
        1
    )  # likely and unlikely ones
    blank = World.random(0, count=64, vocab=501)
    exact = blank.changed(logits=logits.double(), labels=labels, prior=near, teacher=near, old=near)
    single = near.float()
    # bf16 values, fp32 arithmetic
    rough = exact.changed(logits=logits.float(), prior=single, teacher=single, old=single)
    _, expected = run(exact, name)
    _, gradient = run(rough, name)
    assert (gradient - expected).norm() < 0.01 * expected.norm()


@every_design
def test_linear_loss_agrees_and_nothing_but_the_total_has_a_graph(name: str) -> None:
    world, design = World.random(7), load_design(name)
    expected, gradient = run(world, name)
    hidden, weight = world.leaf(), torch.eye(11, dtype=torch.float64, requires_grad=True)
    out = qtarget.linear_loss(hidden, weight, world.labels, design, chunk_size=3, **world.given(name))
    fields = vars(out) | out.others
    assert [name for name, value in fields.items() if isinstance(value, Tensor) and value.requires_grad] == ["total"]
    assert all(isinstance(value, Tensor) for name, value in fields.items() if name != "others")
    out.total.backward()
    torch.testing.assert_close(hidden.grad, gradient)
    torch.testing.assert_close(out.mass, expected.mass)
    with torch.no_grad():
        scored = qtarget.linear_loss(hidden, weight, world.labels, design, **world.given(name))
    assert not scored.total.requires_grad


@every_design
def test_cutting_a_batch_changes_nothing_unless_the_yaml_says_so(name: str) -> None:
    """Two halves, cut between sequences, are the whole: scope values of the step are made of both, given to each."""
    world, design = World.random(12), load_design(name)
    halves = [world.at(slice(0, 3)), world.at(slice(3, 7))]
    _, expected = run(world, name)
    eye = torch.eye(11, dtype=torch.float64)
    tables = [token_table(half.logits, eye, half.labels, design, **half.given(name)) for half in halves]
    step = scope_values_of(design, TokenTable.join(tables), ("step",))
    given = [{part: values[rows] for part, values in step.items()} for rows in (slice(0, 3), slice(3, 7))]
    got = torch.cat([run(half, name, scope_values=rows)[1] for half, rows in zip(halves, given, strict=True)])
    if scoped_parts(design, ("batch",)):
        assert not torch.allclose(got, expected)
        assert "depends on how a step is cut" in about(name)["differs"]
    else:
        torch.testing.assert_close(got, expected)


KINDS: dict[type, str] = {type(load_design(name)): name for name in DESIGNS}
"""One design of each kind: Mixture, Anchored, Signed, Induced."""


@pytest.mark.parametrize("name", DESIGNS)
def test_a_designs_yaml_picks_parts_and_sets_no_field_of_theirs(name: str) -> None:
    """So a part option means the same in every design of a kind: what is composed for one of them goes for all."""
    node = yaml.safe_load((conf_dir() / f"target/{name}.yaml").read_text())
    design = load_design(name)
    picked = {part: option for one in node.pop("defaults") if one != "_self_" for part, option in one.items()}
    parts = {part for part, _ in PARTS if hasattr(design, part)}
    assert picked.keys() == parts
    assert node.keys() <= {"_target_", "about", *(field.name for field in fields(design))} - parts
    for part, option in picked.items():
        assert option in options(f"target/{part}")


@pytest.mark.parametrize("part", PARTS, ids="/".join)
@pytest.mark.parametrize("shipped", few_at_once(KINDS.values(), (KINDS[qtarget.Mixture],)))
def test_every_kind_of_design_takes_every_part_option(shipped: str, part: tuple[str, str]) -> None:
    """Composed for one design of a kind, and put in the place of that part in all of them."""
    kind, option = part
    if not hasattr(load_design(shipped), kind):
        with pytest.raises(QTargetError, match=kind):
            load_design(shipped, **{kind: option})
        return
    composed = load_design(shipped, **{kind: option})
    assert composed == replace(load_design(shipped), **{kind: getattr(composed, kind)})
    for name in (name for name in DESIGNS if type(load_design(name)) is type(composed)):
        design = replace(load_design(name), **{kind: getattr(composed, kind)})
        top_k = NEEDS_TOP_K[0] if option in ("support_kl", "truncated_kl") else name if kind != "objective" else ""
        out, gradient = run(World.random(6), top_k, design)
        assert torch.isfinite(out.loss).all(), name
        torch.testing.assert_close(gradient.sum(-1), torch.zeros(7, dtype=torch.float64), atol=1e-11, rtol=0)


LABEL_SCALARS = {
    "logp": lambda row, y: row[y],
    "entropy": lambda row, y: -(row.exp() * row).sum(),
    "top_entropy": lambda row, y: torch.distributions.Categorical(logits=row.topk(min(20, len(row))).values).entropy(),
    "outranked": lambda row, y: row[row < row[y]].exp().sum(),
    "concentration": lambda row, y: row.exp().square().sum(),
}


def label_scalars(logp: Tensor, labels: Tensor) -> dict[str, Tensor]:
    rows = list(zip(logp, labels, strict=True))
    return {name: torch.stack([compute(row, y) for row, y in rows]) for name, compute in LABEL_SCALARS.items()}


@every_design
def test_a_design_gets_by_with_what_it_declares(name: str) -> None:
    """`needs`, `columns` and negatives are the truth: with no more than these a design runs; the repr is its record."""
    world, design = World.random(8), load_design(name)
    full, held = world.given(name), {}
    for role, detail in needs(design).items():
        logp = {"prior": world.prior, "teacher": world.teacher, "old": world.old}[role]
        label = Reference.label(world.labels, label_scalars(logp, world.labels))
        held[role] = label if detail == "label" else full["references"][role]
    least = {
        "references": held,
        "columns": {column: full["columns"][column] for column in columns(design)},
        "negatives": full["negatives"] if wants_negatives(design) else None,
        "progress": 1.0 if dict(scheduled(design, 0.0)) else None,
    }
    out, _ = run(world, name, **least)
    expected, _ = run(world, name)
    torch.testing.assert_close(out.loss, expected.loss)
    assert "object at 0x" not in repr(design)
    assert "object at 0x" not in "".join(str(getattr(design, slot, "")) for slot in ("reliance", "residual", "weight"))


@pytest.mark.parametrize("source", ["policy", "prior", "teacher", "old"])
@pytest.mark.parametrize("part", [("reliance", option) for option in options("target/reliance")], ids=str)
def test_wherever_a_rule_reads_a_probability_its_source_is_a_field(part: tuple[str, str], source: str) -> None:
    """PriFT's recipe for any rule: from the prior's probabilities, the same number whatever the policy says."""
    shipped = load_design("sft", reliance=part[1])
    if not hasattr(shipped.reliance, "source") or (part[1] == "excess_loss" and source == "policy"):
        return
    design = load_design("sft", reliance=part[1], **{"reliance.source": source})
    world = World.random(10)
    out, _ = run(world, "sft", design)
    moved, _ = run(world.changed(logits=World.random(11).logits), "sft", design)
    frozen = source != "policy" and part[1] != "excess_loss"
    assert torch.equal(out.reliance, moved.reliance) == frozen


def test_a_newcomers_design_passes_the_laws(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataclass file and two yaml files in the working folder are all it takes."""
    (tmp_path / "halfway.py").write_text(
        "from dataclasses import dataclass\n\n\n"
        "@dataclass(frozen=True)\n"
        "class Halfway:\n"
        "    share: float = 0.5\n\n"
        "    def __call__(self, view):\n"
        "        return self.share + (1 - self.share) * view.label_logp.exp()\n"
    )
    parts = tmp_path / "conf" / "target" / "reliance"
    parts.mkdir(parents=True)
    (parts / "halfway.yaml").write_text("_target_: halfway.Halfway\nshare: 0.5\n")
    (tmp_path / "conf" / "target" / "halfway.yaml").write_text(
        "defaults: [{reliance: halfway}, {residual: self}, {weight: one}, _self_]\n"
        "_target_: qtarget.math.target.Mixture\nabout: {formula: mine, paper: mine, year: 2026, differs: nothing}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert "halfway" in qtarget.list_designs()
    world, design = World.random(9), load_design("halfway", **{"reliance.share": 0.25})
    out, gradient = run(world, "halfway", design)
    p = world.logits.softmax(-1).gather(1, world.labels[:, None]).squeeze(1)
    torch.testing.assert_close(out.trust, 0.25 + 0.75 * p)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(7, dtype=torch.float64), atol=1e-12, rtol=0)
    for law in (
        test_linear_loss_agrees_and_nothing_but_the_total_has_a_graph,
        test_unsupervised_positions_change_nothing,
        test_an_all_masked_batch_has_zero_gradient_and_says_so_once,
        test_padded_vocabulary_rows_never_matter,
        test_bf16_near_the_prior_is_within_one_percent,
        test_a_design_gets_by_with_what_it_declares,
    ):
        law("halfway")
