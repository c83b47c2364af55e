"""Parts of designs at their ends and limits, by their definitions token by token, and what they are called."""

from __future__ import annotations

import math
from statistics import median_low
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import World, load_design

import qtarget
from qtarget import Head, Reference
from qtarget.design import objective, reliance, residual, weight
from qtarget.errors import QTargetError
from qtarget.math.distribution import Distribution
from qtarget.math.scope_values import TokenTable, scoped_parts
from qtarget.math.target import check_references, needs, wants_negatives, wants_support
from qtarget.math.view import TokenView

N, V = 7, 11


def view_of(world: World, **given: Any) -> TokenView:
    logp = world.logits.log_softmax(-1)
    references = {role: held.at(world.labels, logp) for role, held in world.references.items()}
    return TokenView(logp, world.labels, references, **given)


def table(logp: Tensor, sequence_ids: Tensor | None = None, progress: float = 0.0) -> TokenTable:
    return TokenTable({"policy": logp}, torch.arange(len(logp)), sequence_ids, progress)


# Ends of a range


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_jensen_shannon_divergence_ends_in_the_two_of_kullback_and_leibler(beta: float) -> None:
    world = World.random(1)
    logp, logq = world.logits.log_softmax(-1), world.teacher
    made = objective.JensenShannon(beta)(logp, view_of(world))
    mixed = (beta * logq.exp() + (1 - beta) * logp.exp()).log()
    to_mixed = beta * objective.kl(logq, mixed) + (1 - beta) * objective.kl(logp, mixed)
    expected = {0.0: objective.kl(logq, logp), 1.0: objective.kl(logp, logq), 0.5: to_mixed}[beta]
    torch.testing.assert_close(made, expected)


@pytest.mark.parametrize(("eta", "expected"), [(0, {}), (0.5, {"teacher": "topk"}), (1, {"teacher": "topk"})])
def test_a_guided_residual_goes_from_the_policy_to_the_teacher(eta: float, expected: dict[str, str]) -> None:
    """At its ends also where the other side holds no probability: 0·(−∞) counts for nothing."""
    part, world = residual.Guided(eta), World.random(2)
    assert part.needs == expected
    assert residual.Guided("linear:0:1").needs == {"teacher": "topk"}
    assert part.is_linear == (eta == 1)
    logp, teacher = world.logits.log_softmax(-1), world.teacher.clone()
    hole_in_policy, hole_in_teacher = logp.clone(), teacher.clone()
    hole_in_policy[:, 3], hole_in_teacher[:, 4] = -torch.inf, -torch.inf
    held = Distribution(world.labels, lambda: hole_in_teacher)
    made = part(TokenView(hole_in_policy, world.labels, {"teacher": held}))
    if eta in (0, 1):
        assert torch.equal(made, hole_in_teacher if eta else hole_in_policy)
    else:
        torch.testing.assert_close(made[:, :3], ((logp.exp() * teacher.exp()).sqrt().log())[:, :3])


def test_a_design_without_a_share_of_the_teacher_runs_without_one() -> None:
    world, logits = World.random(3), World.random(3).leaf()
    qtarget.dense_loss(logits, world.labels, load_design("target_sft", **{"residual.eta": 0})).total.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    with pytest.raises(QTargetError, match="guided needs teacher: topk or full; got none"):
        qtarget.dense_loss(world.logits, world.labels, load_design("target_sft", **{"residual.eta": 1}))


@pytest.mark.parametrize("keep", ["above", "below", "between"])
@pytest.mark.parametrize("upper", [0.6, 1.0])
def test_a_threshold_keeps_its_band_with_both_ends(keep: str, upper: float) -> None:
    p = torch.tensor([0.05, 0.25, 0.5, 0.6, 0.75, 1.0], dtype=torch.float64)
    part = reliance.Threshold(0.25, keep, upper, alpha=1.0)
    logp = torch.stack([p.log(), torch.log1p(-p)], 1)
    got = part(TokenView(logp, torch.zeros(6, dtype=torch.int64)))
    inside = {"above": p >= 0.25, "below": p <= 0.25, "between": (p >= 0.25) & (p <= upper)}[keep]
    torch.testing.assert_close(got, torch.where(inside, p, 0.0))


@pytest.mark.parametrize("top", [2, 5, 40])
def test_a_top_entropy_over_ln_k_is_1_where_the_k_are_equally_likely(top: int) -> None:
    part = reliance.TopEntropy(top, norm="lnk")
    flat = TokenView(torch.full((N, V), -math.log(V)), torch.zeros(N, dtype=torch.int64))
    torch.testing.assert_close(part(flat), torch.ones(N))
    world = World.random(4)
    kept = world.logits.softmax(-1).topk(min(top, V)).values
    shares = kept / kept.sum(-1, keepdim=True)
    expected = -(shares * shares.log()).sum(-1) / math.log(min(top, V))
    torch.testing.assert_close(part(view_of(world)), expected)


def test_a_temperature_is_the_lower_median_of_mean_losses_and_at_least_a_millionth() -> None:
    losses = [[0.2, 0.4], [0.05], [0.7, 0.1, 0.1], [0.9]]
    ids = torch.tensor([number for number, own in enumerate(losses) for _ in own])
    tokens = table(-torch.tensor([value for own in losses for value in own], dtype=torch.float64), ids)
    expected = median_low([sum(own) / len(own) for own in losses])
    got = reliance.Tempered().scope_value(tokens)
    torch.testing.assert_close(got, torch.full((len(ids),), expected, dtype=torch.float64))
    assert float(reliance.Tempered().scope_value(table(torch.zeros(2), torch.tensor([0, 1])))[0]) == pytest.approx(1e-6)


def test_a_number_as_temperature_looks_at_no_other_token() -> None:
    world, design = World.random(5), load_design("talr", **{"reliance.tau": 2.0})
    assert scoped_parts(design) == []
    assert len(scoped_parts(load_design("talr"))) == 1
    out = qtarget.dense_loss(world.logits, world.labels, design)  # flat labels, of which nobody says the sequences
    torch.testing.assert_close(out.reliance, (-out.nll / 2).exp().clamp_min(0.01))


def test_of_excess_losses_that_tie_the_earlier_are_kept() -> None:
    tokens = TokenTable({source: torch.zeros(200) for source in ("policy", "teacher")}, torch.arange(200))
    kept = reliance.ExcessLoss(keep=0.3).scope_value(tokens)
    assert kept.nonzero().flatten().tolist() == list(range(60))
    fewest = reliance.ExcessLoss(keep=0.0).scope_value(tokens)
    assert fewest.nonzero().flatten().tolist() == [0]


def test_a_random_drop_is_another_one_at_each_step_and_drops_its_share() -> None:
    part, logp = reliance.RandomDrop(drop=0.25), torch.zeros(64)
    drawn = [part.scope_value(table(logp, progress=step / 400)) for step in range(400)]
    assert len({tuple(one.tolist()) for one in drawn}) == 400
    assert float(torch.stack(drawn).mean()) == pytest.approx(0.75, abs=4 * math.sqrt(0.25 * 0.75 / (64 * 400)))
    bare = TokenTable({"policy": logp}, torch.arange(64))
    assert torch.equal(part.scope_value(bare), drawn[0]), "nothing said of progress is its beginning"


def test_unlikelihood_pushes_each_negative_once_and_never_the_label() -> None:
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, none = torch.tensor([1, 3]), qtarget.IGNORE
    view = TokenView(logits.log_softmax(-1), labels, negatives=torch.tensor([[0, 1, 0, none], [none, 4, 2, 4]]))
    p = logits.softmax(-1)
    expected = torch.stack([-(1 - p[0, 0]).log(), -(1 - p[1, 4]).log() - (1 - p[1, 2]).log()])
    torch.testing.assert_close(objective.Unlikelihood()(view.logp, view), expected)


# What a design looks at


def test_only_unlikelihood_looks_at_negatives_and_only_two_designs_at_a_top_k_alone() -> None:
    few = ("sft", "kd", "kd_support", "kd_truncated", "unlikelihood", "rho1")
    assert {name for name in few if wants_negatives(load_design(name))} == {"unlikelihood"}
    assert {name for name in few if wants_support(load_design(name))} == {"kd_support", "kd_truncated"}


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (objective.ReverseKL(), "reverse_kl"),
        (objective.JensenShannon(), "jensen_shannon"),
        (objective.TemperedKL(), "tempered_kl"),
        (objective.SupportKL(), "support_kl"),
        (residual.Teacher(), "teacher"),
    ],
)
def test_a_part_that_lacks_a_reference_is_called_as_its_option(part: Any, name: str) -> None:
    with pytest.raises(QTargetError, match=rf"^{name} needs teacher: "):
        check_references(part, {}, {})


def test_a_reference_by_hidden_states_of_one_position_is_one() -> None:
    head = Head(torch.randn(V, 4))
    assert len(Reference.hidden(torch.randn(4), head)) == 1
    assert len(Reference.hidden(torch.randn(2, 3, 4), head)) == 6


# In words


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (reliance.Power(), "p(y)"),
        (reliance.Power(0.5, "prior"), "p_prior(y)^0.5"),
        (reliance.OneMinus(2.0, "policy"), "(1 − p(y))^2"),
        (reliance.OneMinus(), "1 − p_prior(y)"),
        (weight.TokenRatio(), "p(y)/p_prior(y) in [0.2, 1.8]"),
        (weight.Inverse(), "min(1/p_prior(y), 10)"),
    ],
)
def test_a_part_says_whose_probability_it_reads(part: Any, words: str) -> None:
    assert str(part) == words


@pytest.mark.parametrize(
    ("design", "changes", "words"),
    [
        ("sft", {}, "self"),
        ("sft_kl", {}, "+ 0.1·CE(prior, p)"),
        ("gem", {"h": "linear"}, "against p^(1/0.7)"),
        ("gem", {"h": "logsigmoid"}, "against p^(1/0.7), h=logsigmoid"),
    ],
)
def test_a_design_says_what_stands_beside_the_label(design: str, changes: dict[str, Any], words: str) -> None:
    assert load_design(design, **changes).residual_text == words


def test_a_column_that_is_not_given_is_named_with_those_that_are() -> None:
    world = World.random(6)
    for given, names in (({}, "none"), ({"other": world.critical, "another": world.critical}, "another, other")):
        with pytest.raises(QTargetError, match=f"needs the data column 'critical'; columns given: {names}$"):
            qtarget.dense_loss(world.logits, world.labels, load_design("cft"), columns=given)


def test_what_is_made_at_first_use_keeps_its_description() -> None:
    assert (Distribution.entropy.__doc__ or "").startswith("H(π)")
    assert needs(load_design("kd")) == {"teacher": "topk"}


# What a part of one's own returns


def half() -> reliance.Constant:
    return reliance.Constant(0.5)


def likely(dtype: torch.dtype) -> Any:
    """Per token a mask of that dtype."""
    return lambda view: (view.label_logp > -2.0).to(dtype)


def flat(dtype: torch.dtype) -> Any:
    return lambda view: torch.zeros_like(view.logp).to(dtype)


def squares(dtype: torch.dtype) -> Any:
    return lambda logp, view: (logp.square().mean(-1) * 2).to(dtype)


OWN = {
    "reliance of self": lambda dtype: qtarget.Mixture(likely(dtype), residual.Self(), half()),
    "reliance": lambda dtype: qtarget.Mixture(likely(dtype), residual.Uniform(), half()),
    "weight": lambda dtype: qtarget.Anchored(half(), residual.Uniform(), likely(dtype)),
    "signed": lambda dtype: qtarget.Signed(likely(dtype), residual.Uniform(), half()),
    "rivals": lambda dtype: qtarget.Signed(half(), flat(dtype), half()),
    "residual": lambda dtype: qtarget.Mixture(half(), flat(dtype), half()),
    "objective": lambda dtype: qtarget.Induced(half(), squares(dtype), half()),
}
CASES = [(place, dtype) for place in OWN for dtype in (torch.float64, torch.float16, torch.bool, torch.int64)]
NO_NUMBERS_OF = ("rivals", "residual", "objective")  # whose logarithms and losses are no whole numbers


@pytest.mark.parametrize(
    ("place", "dtype"), [(at, dtype) for at, dtype in CASES if dtype.is_floating_point or at not in NO_NUMBERS_OF]
)
def test_a_part_of_another_dtype_is_read_in_that_of_the_loss(place: str, dtype: torch.dtype) -> None:
    """A table of NumPy's is float64, a comparison a mask: loss and gradient are those of the same numbers in fp32."""
    (value, gradient), (expected, its) = (of_design(OWN[place](one)) for one in (dtype, torch.float32))
    assert value.dtype == gradient.dtype == torch.float32
    tolerance = 2e-3 if dtype == torch.float16 else 1e-6
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient, its, rtol=tolerance, atol=tolerance)


def of_design(design: Any) -> tuple[Tensor, Tensor]:
    """(loss, gradient of the logits) in fp32."""
    world = World.random(31)
    logits = world.logits.float().requires_grad_()
    total = qtarget.dense_loss(logits, world.labels, design).total
    total.backward()
    assert logits.grad is not None
    return total.detach(), logits.grad


def test_a_part_that_gives_no_numbers_is_named_with_what_it_gave() -> None:
    world, self = World.random(32), residual.Self()
    designs = {
        r"a number per token \[7\]; got \(7,\) of torch\.complex64": qtarget.Mixture(
            likely(torch.complex64), self, half()
        ),
        r"log-probabilities over the vocabulary, or None, \[7, 11\]; got \(7,\) of torch\.bool": qtarget.Mixture(
            half(), likely(torch.bool), half()
        ),
    }
    for message, design in designs.items():
        with pytest.raises(QTargetError, match=f"returns {message}"):
            qtarget.dense_loss(world.logits, world.labels, design)


# A label that a reference rules out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (reliance.LogOdds(source="prior"), 0.0),
        (reliance.LogOdds(source="prior", ceiling=0.6), 0.0),
        (reliance.LogOdds(source="prior", ceiling=1.0), 0.0),
        (reliance.Power(0.0, source="prior"), 1.0),
        (reliance.Power(1e-3, source="prior"), 0.0),
        (reliance.Tempered("median", 0.01, source="prior"), 0.01),
    ],
)
def test_a_label_of_probability_0_has_the_limit_of_its_formula(part: Any, expected: float, dtype: torch.dtype) -> None:
    """A renormalised top-k prior rules out what it doesn't hold: p·log(1/p) → 0, 0⁰ = 1, and never 0·∞."""
    world = World.random(3)
    logits = world.logits.to(dtype).requires_grad_()
    unlikely = world.teacher.to(dtype).scatter(1, world.labels[:, None], -50.0).log_softmax(-1)
    held = Reference.full(unlikely).truncated(4, tail="renormalised")
    design = qtarget.Mixture(part, residual.Uniform(), weight.Constant(1.0))
    ids = torch.arange(N) // 4
    out = qtarget.dense_loss(logits, world.labels, design, references={"prior": held}, sequence_ids=ids)
    assert held.at(world.labels, logits).label_logp.eq(-torch.inf).all()
    assert out.total.dtype == dtype
    torch.testing.assert_close(out.reliance, torch.full_like(out.reliance, expected))
    out.total.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_log_odds_go_to_their_limit_at_0() -> None:
    """γ = p·max(0, 1 − logit(p)/logit(c)), by numbers of Python: it falls with p, far below what fp32 can hold."""
    ceiling, part = 0.93, reliance.LogOdds()
    logp = torch.tensor([-5.0, -50.0, -500.0, -1e5], dtype=torch.float64)
    view = TokenView(logp[:, None].expand(4, 2), torch.zeros(4, dtype=torch.long), {})
    slope = 1 / math.log(ceiling / (1 - ceiling))
    odds = [math.exp(value) * (1 - slope * (value - math.log1p(-math.exp(value)))) for value in logp.tolist()]
    torch.testing.assert_close(part(view), torch.tensor(odds, dtype=torch.float64))
    assert odds[-1] == 0.0
