"""The compiled path is the eager one: the same objective, one graph, for any design."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from worlds import World, few_at_once, load_design

import qtarget
from qtarget.config.composing import options
from qtarget.math import scoring

FIELDS = ("loss", "nll", "reliance", "weight", "mass", "trust", "entropy", "gap", "kl_to_target", "kl_prior")


def generated(test: Any) -> Any:
    """Marks a test that generates code: slow, and torch's own code generator warns of torch's own deprecations."""
    return pytest.mark.slow(pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")(test))


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dynamo and AOT autograd without generated code: whether there is one graph, and whether it says the same."""
    monkeypatch.setattr(scoring, "BACKEND", "aot_eager")
    fresh()
    yield
    fresh()


def fresh() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    scoring._compiled.cache_clear()


def run(name: str, world: World, design: Any, **how: Any) -> tuple[Any, torch.Tensor]:
    hidden, weight = world.leaf(), torch.eye(world.logits.shape[1], dtype=world.logits.dtype, requires_grad=True)
    out = qtarget.linear_loss(hidden, weight, world.labels, design, **how, **world.given(name))
    out.total.backward()
    assert hidden.grad is not None
    return out, hidden.grad


def check(name: str, design: Any, dtype: torch.dtype, **tolerance: float) -> None:
    """Chunks of several sizes, one token at the end among them."""
    for count, chunk_size in ((13, 4), (12, 5), (9, None)):
        world = World.random(count, count=count, dtype=dtype)
        expected, gradient = run(name, world, design)
        out, compiled = run(name, world, design, compiled=True, chunk_size=chunk_size)
        torch.testing.assert_close(compiled, gradient, **tolerance)
        for field in FIELDS:
            torch.testing.assert_close(getattr(out, field), getattr(expected, field), equal_nan=True, **tolerance)


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("name", few_at_once(options("target")))
def test_every_design_is_one_graph_that_says_the_same(name: str) -> None:
    check(name, load_design(name), torch.float64, atol=1e-12, rtol=1e-9)
    assert scoring.graphs_compiled() == 1


@generated
def test_a_schedule_makes_a_few_graphs_and_no_more() -> None:
    fresh()
    world, design = World.random(1), load_design("target_sft", **{"residual.eta": "linear:0:1:0.2:0.8"})
    for step in range(21):
        given = world.given() | {"progress": step / 20}
        compiled = qtarget.dense_loss(world.logits, world.labels, design, compiled=True, **given)
        expected = qtarget.dense_loss(world.logits, world.labels, design, **given)
        torch.testing.assert_close(compiled.loss, expected.loss)
    assert scoring.graphs_compiled() <= 4


def over_the_limit(design: Any) -> None:
    for vocab in (5, 6, 7, 8, 9):
        world = World.random(1, vocab=vocab)
        qtarget.dense_loss(world.logits, world.labels, design, compiled=True)


@pytest.mark.usefixtures("traced_only")
def test_past_the_limit_of_graphs_it_fails_rather_than_going_on_eagerly() -> None:
    with (
        torch._dynamo.config.patch(recompile_limit=2, automatic_dynamic_shapes=False),
        pytest.raises(Exception, match="recompile_limit"),
    ):
        over_the_limit(load_design("sft"))


@generated
@pytest.mark.parametrize("name", ["sft", "dft", "target_sft", "kd_reverse"])
def test_generated_code_says_the_same(name: str) -> None:
    fresh()
    check(name, load_design(name), torch.float32, atol=1e-5, rtol=1e-4)
    assert scoring.graphs_compiled() == 1


@generated
def test_generated_code_multiplies_a_references_hidden_states() -> None:
    fresh()
    world, design = World.random(5, count=7, vocab=11), load_design("target_sft")
    teacher = qtarget.Reference.hidden(torch.randn(7, 4), qtarget.Head(torch.randn(11, 4)))
    given = {"references": {"teacher": teacher}, "columns": world.given()["columns"]}
    logits = world.logits.float()
    expected = qtarget.dense_loss(logits, world.labels, design, **given)
    compiled = qtarget.dense_loss(logits, world.labels, design, compiled=True, **given)
    torch.testing.assert_close(compiled.loss, expected.loss)
