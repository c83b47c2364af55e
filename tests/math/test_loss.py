"""linear_loss against autograd through an explicit head, and what bad input gets."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from worlds import World, load_design

import qtarget
from qtarget import Head, Mixture, QTargetError, Reference
from qtarget.design.residual import Self
from qtarget.design.weight import Constant
from qtarget.math.scope_values import TokenTable
from qtarget.math.tokens import EarlierTokens
from qtarget.math.view import TokenView

N, D, V = 9, 5, 13


def world() -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(V - 3, (N,), generator=generator)
    bias = torch.randn(V, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, weight, labels, {"bias": bias}


HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"with_bias": True},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 3.0},
    "padded": {"true_vocab": V - 3},
    "all": {"with_bias": True, "scale": 2.0, "softcap": 5.0, "true_vocab": V - 3},
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("design", ["sft", "dft", "target_sft", "label_smoothing"])
@pytest.mark.parametrize("chunk_size", [1, 4, N, N + 1])
def test_linear_loss_is_dense_loss_behind_a_head(kind: str, design: str, chunk_size: int) -> None:
    options = dict(HEADS[kind])
    hidden, weight, labels, extra = world()
    bias = extra["bias"] if options.pop("with_bias", False) else None
    scale = torch.linspace(0.1, 1.0, N, dtype=torch.float64)
    teacher = {"teacher": Reference.full(World.random(2, N, V).teacher)}
    if options.get("true_vocab"):
        teacher = {"teacher": Reference.full(World.random(2, N, V - 3).teacher)}
    loaded = load_design(design)
    out = qtarget.linear_loss(
        hidden,
        Head(weight, bias, **options),
        labels,
        loaded,
        references=teacher,
        token_scale=scale,
        chunk_size=chunk_size,
    )
    out.total.backward()
    got = [tensor.grad.clone() for tensor in (hidden, weight, bias) if tensor is not None and tensor.grad is not None]
    for tensor in (hidden, weight, bias):
        if tensor is not None:
            tensor.grad = None
    z = options.get("scale", 1.0) * (hidden @ weight.T + (0 if bias is None else bias))
    if "softcap" in options:
        z = options["softcap"] * torch.tanh(z / options["softcap"])
    z = z[:, : options.get("true_vocab", V)]
    expected = qtarget.dense_loss(z, labels, loaded, references=teacher, token_scale=scale)
    expected.total.backward()
    wanted = [tensor.grad for tensor in (hidden, weight, bias) if tensor is not None]
    assert out.total.item() == pytest.approx(expected.total.item())
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_upstream_gradient_scales_everything() -> None:
    hidden, weight, labels, _ = world()
    (3 * qtarget.linear_loss(hidden, weight, labels, load_design("sft")).total).backward()
    assert hidden.grad is not None
    tripled = hidden.grad.clone()
    hidden.grad = None
    qtarget.linear_loss(hidden, weight, labels, load_design("sft")).total.backward()
    torch.testing.assert_close(tripled, 3 * hidden.grad)


def test_sft_is_torchs_cross_entropy() -> None:
    world = World.random(3)
    out = qtarget.dense_loss(world.logits, world.labels, load_design("sft"))
    torch.testing.assert_close(
        out.loss, torch.nn.functional.cross_entropy(world.logits, world.labels, reduction="none")
    )


def test_drift_from_the_prior_is_the_kl_divergence() -> None:
    world = World.random(4)
    out = qtarget.dense_loss(world.logits, world.labels, load_design("sft"), references=world.references)
    p = world.logits.softmax(-1)
    expected = torch.nn.functional.kl_div(world.prior, p, reduction="none").sum(-1)
    torch.testing.assert_close(out.kl_prior, expected)
    assert qtarget.dense_loss(world.logits, world.labels, load_design("sft")).kl_prior.isnan().all()


def test_a_frozen_head_gets_no_gradient_and_no_work() -> None:
    hidden, weight, labels, _ = world()
    frozen = weight.detach()
    qtarget.linear_loss(hidden, frozen, labels, load_design("sft")).total.backward()
    assert frozen.grad is None
    assert hidden.grad is not None


def test_validation_builds_no_graph() -> None:
    hidden, weight, labels, _ = world()
    with torch.no_grad():
        out = qtarget.linear_loss(hidden, weight, labels, load_design("dft"))
    assert not out.total.requires_grad
    assert not any(getattr(out, name).requires_grad for name in ("loss", "nll", "trust", "reliance"))


def test_nothing_but_the_total_has_a_graph() -> None:
    hidden, weight, labels, _ = world()
    out = qtarget.linear_loss(
        hidden, weight, labels, load_design("target_sft"), references=World.random(1, N, V).references
    )
    assert out.total.requires_grad
    assert not any(getattr(out, name).requires_grad for name in ("loss", "nll", "trust", "reliance", "weight", "gap"))


def test_autocast_keeps_products_in_bf16_and_the_rest_in_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(32, 64, generator=generator, requires_grad=True)
    weight = (0.2 * torch.randn(200, 64, generator=generator)).requires_grad_()
    labels = torch.randint(200, (32,), generator=generator)
    design = load_design("sft")
    exact = qtarget.linear_loss(hidden, weight, labels, design)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = qtarget.linear_loss(hidden, weight, labels, design)
    assert rough.loss.dtype == torch.float32
    assert not torch.equal(exact.loss, rough.loss)
    torch.testing.assert_close(exact.loss, rough.loss, atol=0.05, rtol=0.02)


def test_a_hidden_reference_is_the_full_one() -> None:
    hidden, weight, labels, _ = world()
    generator = torch.Generator().manual_seed(5)
    theirs = torch.randn(N, D, generator=generator, dtype=torch.float64)
    design = load_design("target_sft")
    full = {"teacher": Reference.full((theirs @ weight.detach().T).log_softmax(-1))}
    lazy = {"teacher": Reference.hidden(theirs, Head(weight.detach()))}
    expected = qtarget.linear_loss(hidden, weight, labels, design, references=full)
    got = qtarget.linear_loss(hidden, weight, labels, design, references=lazy, chunk_size=2)
    torch.testing.assert_close(got.loss, expected.loss)


def test_a_reference_with_more_padding_is_aligned() -> None:
    """Vocabularies padded to different sizes: rows beyond the policy's hold nothing, so they are cut."""
    world = World.random(7)
    wider = torch.nn.functional.pad(world.teacher, (0, 4), value=-torch.inf)
    design = load_design("kd")
    expected = qtarget.dense_loss(world.logits, world.labels, design, references=world.references)
    got = qtarget.dense_loss(world.logits, world.labels, design, references={"teacher": Reference.full(wider)})
    torch.testing.assert_close(got.loss, expected.loss)


@pytest.mark.parametrize("missing", [1, 2])
def test_tokens_that_a_reference_does_not_have_hold_nothing_of_it(missing: int) -> None:
    """A policy padded to more vocabulary rows, by one or several, than its teacher has."""
    world = World.random(7)
    narrower = world.teacher[:, :-missing].log_softmax(-1)
    nothing = torch.full((len(narrower), missing), -torch.inf, dtype=narrower.dtype)
    labels = world.labels.clamp_max(narrower.shape[1] - 1)
    given = [{"teacher": Reference.full(logp)} for logp in (narrower, torch.cat([narrower, nothing], 1))]
    got, expected = (qtarget.dense_loss(world.logits, labels, load_design("kd"), references=r) for r in given)
    torch.testing.assert_close(got.loss, expected.loss)


def test_a_reference_with_other_tokens_is_refused() -> None:
    world = World.random(7)
    wider = torch.randn(7, 15, dtype=torch.float64).log_softmax(-1)
    with pytest.raises(QTargetError, match="15 vocabulary rows, the policy 11"):
        qtarget.dense_loss(world.logits, world.labels, load_design("kd"), references={"teacher": Reference.full(wider)})


BAD: dict[str, tuple[Any, str]] = {
    "nan": (
        lambda w: {"logits": w.logits.index_fill(0, torch.tensor([4]), torch.nan)},
        "NaN logits at supervised token 4",
    ),
    "label": (lambda w: {"labels": w.labels.index_fill(0, torch.tensor([2]), 99)}, r"labels must lie in \[0, 11\)"),
    "missing": (lambda w: {"references": {}}, "teacher needs teacher: topk or full; got none"),
    "length": (
        lambda w: {"references": {"teacher": Reference.full(w.teacher[:3])}},
        "the teacher covers 3 positions, the labels 7: a reference has a row for every position",
    ),
    "thin": (
        lambda w: {"references": {"teacher": Reference.label(w.labels, {"logp": w.teacher[:, 0]})}},
        "teacher needs teacher: topk or full; got label",
    ),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.zeros(2, 3, dtype=torch.long)}, r"labels has the shape \(2, 3\), the positions \(2, 4\)"),
        ({"columns": {"mask": torch.ones(8)}}, r"mask has the shape \(8,\)"),
        ({"token_scale": torch.ones(4, 2)}, r"token_scale has the shape \(4, 2\)"),
        ({"chunk_size": 0}, "chunk_size must be a whole number of at least 1, got 0"),
        ({"chunk_size": -1}, "chunk_size must be a whole number of at least 1, got -1"),
    ],
)
def test_misaligned_input_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"labels": torch.zeros(2, 4, dtype=torch.long)} | changes
    labels = arguments.pop("labels")
    with pytest.raises(QTargetError, match=message):
        qtarget.dense_loss(torch.randn(2, 4, 5), labels, load_design("sft"), **arguments)
    with pytest.raises(QTargetError, match=message):
        qtarget.linear_loss(torch.randn(2, 4, 3), torch.randn(5, 3), labels, load_design("sft"), **arguments)


def test_a_head_or_reference_of_another_kind_is_refused() -> None:
    hidden, weight, labels, _ = world()
    anything: Any = torch.nn.Linear(D, V)
    with pytest.raises(QTargetError, match="head must be its weight"):
        qtarget.linear_loss(hidden, anything, labels, load_design("sft"))
    with pytest.raises(QTargetError, match="is it transposed"):
        qtarget.linear_loss(hidden, weight.T, labels, load_design("sft"))
    raw: Any = {"teacher": torch.randn(N, V)}
    with pytest.raises(QTargetError, match=r"the teacher must be a qtarget\.Reference, got Tensor"):
        qtarget.linear_loss(hidden, weight, labels, load_design("kd"), references=raw)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    change, message = BAD[case]
    world = World.random(11)
    arguments = {"logits": world.logits, "labels": world.labels, "references": world.references} | change(world)
    with pytest.raises(QTargetError, match=message):
        qtarget.dense_loss(
            arguments["logits"], arguments["labels"], load_design("kd"), references=arguments["references"]
        )


def test_label_scalars_of_other_labels_are_refused() -> None:
    world = World.random(12)
    thin = Reference.label((world.labels + 1) % 11, {"logp": world.prior[:, 0]})
    with pytest.raises(QTargetError, match="belong to other labels"):
        qtarget.dense_loss(world.logits, world.labels, load_design("one_minus_prior"), references={"prior": thin})


# Top-k references


@pytest.mark.parametrize("tail", ["bucket", "renormalised", "uniform"])
def test_a_top_k_reference_is_a_distribution_that_keeps_its_k(tail: str) -> None:
    world = World.random(13)
    ids = world.teacher.topk(4).indices
    stored = Reference.topk(ids, world.teacher.gather(1, ids), 11, tail=tail)
    row = stored.at(world.labels, world.logits.log_softmax(-1)).logp.exp()
    torch.testing.assert_close(row.sum(-1), torch.ones(7, dtype=torch.float64))
    kept = world.teacher.exp().gather(1, ids)
    expected = kept / kept.sum(-1, keepdim=True) if tail == "renormalised" else kept
    torch.testing.assert_close(row.gather(1, ids), expected)
    live = Reference.full(world.teacher).truncated(4, tail)
    torch.testing.assert_close(live.at(world.labels, world.logits.log_softmax(-1)).logp.exp(), row)
    assert (stored.detail, live.detail) == ("topk", "topk")


@pytest.mark.parametrize("tail", ["bucket", "uniform"])
def test_a_top_k_of_everything_is_the_full_reference(tail: str) -> None:
    world = World.random(14)
    stored = Reference.topk(torch.arange(11).expand(7, 11), world.teacher, 11, tail=tail)
    for name in ("kd", "target_sft"):
        expected = qtarget.dense_loss(world.logits, world.labels, load_design(name), references=world.references)
        got = qtarget.dense_loss(world.logits, world.labels, load_design(name), references={"teacher": stored})
        torch.testing.assert_close(got.loss, expected.loss, atol=1e-9, rtol=1e-9)


def test_guided_by_a_top_k_raises_its_tail_to_eta() -> None:
    """Off the kept tokens π̃ ∝ p·(q_tail/p_tail)^η."""
    world = World.random(15)
    ids = world.teacher.topk(4).indices
    logp, off = world.logits.log_softmax(-1), torch.ones(7, 11, dtype=torch.bool).scatter(1, ids, False)
    tails = [torch.where(off, row.exp(), 0).sum(-1, keepdim=True) for row in (logp, world.teacher)]
    pool = torch.where(off, logp + 0.5 * (tails[1] / tails[0]).log(), 0.5 * logp + 0.5 * world.teacher)
    p = logp.gather(1, world.labels[:, None]).exp()
    expected = -(p * logp.gather(1, world.labels[:, None])).squeeze(1)
    expected = expected - (1 - p).squeeze(1) * (pool.softmax(-1) * logp).sum(-1)
    stored = {"teacher": Reference.full(world.teacher).truncated(4)}
    got = qtarget.dense_loss(world.logits, world.labels, load_design("target_sft"), references=stored)
    torch.testing.assert_close(got.loss, expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda w, ids: Reference.topk(ids, w.teacher.gather(1, ids), 11, tail="cut"), "tail must be one of bucket"),
        (
            lambda w, ids: Reference.topk(ids, w.teacher, 11),
            r"indices \(7, 4\) and logp \(7, 11\) must both be \[..., k\]",
        ),
        (lambda w, ids: Reference.topk(ids + 11, w.teacher.gather(1, ids), 11), r"ids must lie in \[0, 11\)"),
        (lambda w, ids: Reference.full(w.teacher).truncated(0), "topk must be a whole number of at least 1, got 0"),
        (lambda w, ids: Reference.label(w.labels, {"logq": w.teacher[:, 0]}), r"got \['logq'\]"),
    ],
)
def test_a_malformed_reference_is_refused(build: Any, message: str) -> None:
    world = World.random(16)
    with pytest.raises(QTargetError, match=message):
        build(world, world.teacher.topk(4).indices)


def test_a_design_that_compares_kept_tokens_refuses_a_dense_teacher() -> None:
    world = World.random(17)
    with pytest.raises(QTargetError, match=r"this teacher holds all of them: set references\.teacher\.topk=50"):
        qtarget.dense_loss(world.logits, world.labels, load_design("kd_support"), references=world.references)


def test_what_a_design_looks_at_and_is_not_given_is_named() -> None:
    world = World.random(18)
    with pytest.raises(QTargetError, match="this design needs the data column 'critical'; columns given: none"):
        qtarget.dense_loss(world.logits, world.labels, load_design("cft"))
    with pytest.raises(QTargetError, match="unlikelihood needs negatives"):
        qtarget.dense_loss(world.logits, world.labels, load_design("unlikelihood"))
    negatives = torch.zeros(6, 2, dtype=torch.long)
    with pytest.raises(QTargetError, match=r"negatives have the shape \(6, 2\)"):
        qtarget.dense_loss(world.logits, world.labels, load_design("unlikelihood"), negatives=negatives)
    with pytest.raises(QTargetError, match=r"this design looks at whole sequences: give labels as \[B, T\] rows"):
        qtarget.dense_loss(world.logits, world.labels, load_design("talr"))
    design = load_design("talr")
    with pytest.raises(QTargetError, match="there are 7 supervised tokens"):
        qtarget.dense_loss(world.logits, world.labels, design, scope_values={design.reliance: torch.ones(3)})


@dataclass(frozen=True)
class HalfOfTheSequenceMean:
    """A part as it was written before `scope_value` was called so."""

    scope: ClassVar[str] = "sequence"

    def statistic(self, table: TokenTable) -> Tensor:
        means, sequence = table.sequence_means(table.label_logp["policy"].exp())
        return 0.5 * means[sequence]

    def __call__(self, view: TokenView) -> Tensor:
        return view.statistic(self)


def test_scope_values_and_label_scalars_have_their_earlier_name_too() -> None:
    world, prior = World.random(21), {"logp": World.random(21).prior[:, 0]}
    labels = torch.zeros_like(world.labels)
    by_name = Reference.label(labels, label_scalars=prior), Reference.label(labels, statistics=prior)
    assert [list(reference.statistics) for reference in by_name] == [["logp"], ["logp"]]
    torch.testing.assert_close(by_name[1].label_scalars["logp"], prior["logp"])
    part = HalfOfTheSequenceMean()
    design = Mixture(part, Self(), Constant(1.0))
    ids = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    p = world.logits.softmax(-1)[torch.arange(7), world.labels]
    expected = torch.where(ids == 0, 0.5 * p[:3].mean(), 0.5 * p[3:].mean())
    out = qtarget.dense_loss(world.logits, world.labels, design, sequence_ids=ids, chunk_size=2)
    torch.testing.assert_close(out.reliance, expected)
    for name in ("statistics", "scope_values"):
        values: Any = {name: {part: torch.full((7,), 0.25).double()}}
        given = qtarget.linear_loss(world.logits, torch.eye(11).double(), world.labels, design, **values)
        torch.testing.assert_close(given.reliance, torch.full((7,), 0.25).double())


def test_rows_of_labels_are_sequences_unless_something_else_is_said() -> None:
    world, design = World.random(19, count=6), load_design("iw_sft")
    ids, prior = torch.tensor([0, 0, 0, 1, 1, 1]), {"prior": Reference.full(world.prior)}
    flat = qtarget.dense_loss(world.logits, world.labels, design, references=prior, sequence_ids=ids)
    rows = qtarget.dense_loss(world.logits.reshape(2, 3, 11), world.labels.reshape(2, 3), design, references=prior)
    torch.testing.assert_close(rows.weight, flat.weight)
    assert len(set(rows.weight.tolist())) == 2


# What a careful reader found


@pytest.mark.parametrize("design", ["confidence_penalty", "sft_kl_reverse"])
def test_trust_is_the_same_for_every_spelling_up_to_certainty(design: str) -> None:
    """With its objective at strength 0 an Induced design is plain SFT, whose trust is 1 however sure the policy is."""
    logits = torch.tensor([[16.0, 0, 0, 0], [14.0, 0, 0, 0], [30.0, 0, 0, 0]])
    prior = {"prior": Reference.full(torch.randn(3, 4).log_softmax(-1))}
    out = qtarget.dense_loss(
        logits, torch.zeros(3, dtype=torch.long), load_design(design, strength=0), references=prior
    )
    torch.testing.assert_close(out.trust, torch.ones(3))


def test_a_divergence_that_would_be_infinite_is_refused() -> None:
    world = World.random(20)
    kept = {"teacher": Reference.full(world.teacher).truncated(3, "renormalised")}
    for name, changes in (("kd_reverse", {}), ("kd_jsd", {"objective.beta": 1.0})):
        with pytest.raises(QTargetError, match=r"set references\.teacher\.tail=bucket or uniform"):
            qtarget.dense_loss(world.logits, world.labels, load_design(name, **changes), references=kept)
    out = qtarget.dense_loss(world.logits, world.labels, load_design("kd_jsd"), references=kept)
    assert torch.isfinite(out.loss).all()


def test_an_infinite_loss_is_named_with_its_position() -> None:
    world = World.random(21)
    hole = world.teacher.clone()
    hole[4, 3] = -torch.inf
    references = {"teacher": Reference.full(hole)}
    with pytest.raises(QTargetError, match="a loss of inf at supervised token 4"):
        qtarget.dense_loss(world.logits, world.labels, load_design("kd_reverse"), references=references)


@pytest.mark.parametrize("name", ["one_minus_prior", "prift_mass", "gift", "kd"])
def test_a_reference_stored_in_bf16_is_rounded_and_not_computed_with(name: str) -> None:
    world = World.random(22, dtype=torch.float32)
    rounded = {
        role: reference.rows.bfloat16() for role, reference in world.references.items() if reference.rows is not None
    }
    stored = {role: Reference.full(rows) for role, rows in rounded.items()}
    upcast = {role: Reference.full(rows.float()) for role, rows in rounded.items()}
    outputs = [
        qtarget.dense_loss(world.logits, world.labels, load_design(name), references=references)
        for references in (stored, upcast)
    ]
    assert torch.equal(outputs[0].loss, outputs[1].loss)


def test_certain_tokens_leave_unlikelihood_finite() -> None:
    logits = torch.tensor([[30.0, 0, 0, 0]], requires_grad=True)
    design = load_design("unlikelihood", **{"objective.floor": 1e-7})
    out = qtarget.dense_loss(logits, torch.tensor([0]), design, negatives=torch.tensor([[1, 0]]))
    out.total.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    with pytest.raises(QTargetError, match=r"floor must lie in \[1e-07, 1\], got 0"):
        load_design("unlikelihood", **{"objective.floor": 0})


def test_numbers_are_finite() -> None:
    for name, changes in (("dft", {"reliance.alpha": ".inf"}), ("sft_kl", {"anchor": ".nan"})):
        with pytest.raises(QTargetError, match=r"must lie in \[0, ∞\)"):
            load_design(name, **changes)


def test_one_position_takes_a_scale_of_its_own() -> None:
    logits, labels = torch.randn(1, 1, 5), torch.zeros(1, 1, dtype=torch.long)
    out = qtarget.dense_loss(logits, labels, load_design("sft"), token_scale=torch.full((1, 1), 0.5))
    torch.testing.assert_close(out.total, 0.5 * out.loss.sum())


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda logp, view: logp.exp().sum(-1).mean(), r"returns a loss per token, \[7\]; got \(\)"),
        (lambda logp, view: logp.detach().sum(-1), "no gradient with respect to logp"),
    ],
)
def test_an_objective_that_is_none_is_refused(objective: Any, message: str) -> None:
    world, one = World.random(23), load_design("sft")
    design = qtarget.Induced(one.reliance, objective, one.weight)
    with pytest.raises(QTargetError, match=message):
        qtarget.dense_loss(world.logits, world.labels, design)


def test_token_ids_beyond_the_vocabulary_are_named() -> None:
    world = World.random(24)
    outside = Reference.topk(torch.tensor([600, 601]).expand(7, 2), torch.full((7, 2), -1.0).double(), vocab_size=700)
    with pytest.raises(QTargetError, match=r"the top-k token ids of the teacher must lie in \[0, 11\)"):
        qtarget.dense_loss(world.logits, world.labels, load_design("kd"), references={"teacher": outside})
    wrong = torch.full((7, 2), 11)
    with pytest.raises(QTargetError, match=r"negatives must lie in \[0, 11\)"):
        qtarget.dense_loss(world.logits, world.labels, load_design("unlikelihood"), negatives=wrong)


def test_a_label_scalar_that_is_not_held_is_named() -> None:
    world = World.random(25)
    thin = {"prior": Reference.label(world.labels, {"logp": world.prior[:, 0]})}
    with pytest.raises(QTargetError, match="reads the label scalar 'outranked' of a reference that holds only logp"):
        qtarget.dense_loss(world.logits, world.labels, load_design("prift_mass"), references=thin)


def test_a_band_with_its_ends_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(QTargetError, match=r"upper must lie in \[0.1, 1\], got 0.05"):
        load_design("profit", **{"reliance.keep": "between", "reliance.upper": 0.05})


def test_earlier_tokens_are_those_up_to_each_position() -> None:
    ids = torch.tensor([[5, 6, 7], [8, 9, 3]])
    earlier = EarlierTokens.of(ids)[torch.tensor([0, 2, 4])]
    none = qtarget.IGNORE
    assert earlier.ids().tolist() == [[5, none, none], [5, 6, 7], [8, 9, none]]
    logits, labels = torch.randn(2, 3, 11), torch.tensor([[6, 7, none], [9, 3, 4]])
    written_out = EarlierTokens.of(ids).ids().reshape(2, 3, 3)
    outputs = [
        qtarget.dense_loss(logits, labels, load_design("unlikelihood"), negatives=negatives, chunk_size=2)
        for negatives in (EarlierTokens.of(ids), written_out)
    ]
    assert torch.equal(outputs[0].loss, outputs[1].loss)


def test_raw_logits_unknown_roles_and_parts_that_are_none_are_refused() -> None:
    world, sft = World.random(26), load_design("sft")
    with pytest.raises(QTargetError, match="takes log-probabilities, these don't sum to 1"):
        Reference.full(world.logits)
    with pytest.raises(QTargetError, match="the role of a reference must be one of prior, teacher, old, got 'techer'"):
        qtarget.dense_loss(world.logits, world.labels, sft, references={"techer": Reference.full(world.teacher)})
    for part, got in ((lambda view: view.label_logp.mean(), r"\(\)"), (lambda view: 1.0, "float")):
        with pytest.raises(QTargetError, match=rf"returns a number per token \[7\]; got {got}"):
            qtarget.dense_loss(world.logits, world.labels, qtarget.Mixture(part, sft.residual, sft.weight))


def test_references_come_in_the_shape_of_the_positions() -> None:
    world = World.random(27, count=6)
    rows = {"teacher": Reference.full(world.teacher.reshape(2, 3, 11))}
    logits, labels = world.logits.reshape(2, 3, 11), world.labels.reshape(2, 3)
    expected = qtarget.dense_loss(world.logits, world.labels, load_design("kd"), references=world.references)
    got = qtarget.dense_loss(logits, labels, load_design("kd"), references=rows)
    torch.testing.assert_close(got.loss, expected.loss)


@pytest.mark.parametrize("name", ["sft", "label_smoothing"])
def test_under_autocast_only_products_are_rounded(name: str) -> None:
    hidden, weight, labels = torch.randn(N, D), torch.randn(V, D), torch.randint(V, (N,))
    with torch.autocast("cpu", torch.bfloat16):
        out = qtarget.linear_loss(hidden, weight, labels, load_design(name))
    logits = (hidden.bfloat16() @ weight.bfloat16().T).float()
    expected = qtarget.dense_loss(logits, labels, load_design(name))
    for field in ("loss", "entropy", "gap", "kl_to_target"):
        torch.testing.assert_close(getattr(out, field), getattr(expected, field))


def test_a_view_is_freed_without_the_garbage_collector() -> None:
    view = TokenView(torch.randn(N, V).log_softmax(-1), torch.randint(V, (N,)))
    assert view.policy.entropy.shape == (N,)
    held = weakref.ref(view)
    gc.disable()
    try:
        del view
        assert held() is None
    finally:
        gc.enable()


def test_under_autocast_a_reference_is_multiplied_as_the_policy_is() -> None:
    """The same hidden states and head say the same, to the bit."""
    hidden, weight, labels = torch.randn(N, D), torch.randn(V, D), torch.randint(V, (N,))
    references = {"prior": Reference.hidden(hidden, Head(weight))}
    with torch.autocast("cpu", torch.bfloat16):
        out = qtarget.linear_loss(hidden, weight, labels, load_design("asft"), references=references)
    assert not out.kl_prior.any()
