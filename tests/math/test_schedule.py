"""Scalars that follow training progress."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from worlds import World, load_design

import qtarget
from qtarget import QTargetError
from qtarget.config.composing import options
from qtarget.math.schedule import parse, scheduled, value_at

shares = st.floats(0, 1)


@given(progress=shares)
def test_shapes_are_what_their_names_say(progress: float) -> None:
    assert value_at(0.3, progress) == 0.3
    assert value_at("linear:1:3", progress) == pytest.approx(1 + 2 * progress)
    assert value_at("cosine:1:3", progress) == pytest.approx(2 - math.cos(math.pi * progress))
    assert value_at("step:1:3:0.5", progress) == (1 if progress < 0.5 else 3)
    ramp = min(max((progress - 0.2) / 0.1, 0), 1)
    assert value_at("linear:0:1:0.2:0.3", progress) == pytest.approx(ramp, abs=1e-12)


@given(shape=st.sampled_from(["linear", "cosine"]), start=st.floats(-5, 5), end=st.floats(-5, 5), progress=shares)
def test_values_stay_between_the_ends_and_reach_both(shape: str, start: float, end: float, progress: float) -> None:
    text = f"{shape}:{start}:{end}"
    assert min(start, end) - 1e-9 <= value_at(text, progress) <= max(start, end) + 1e-9
    assert (value_at(text, 0.0), value_at(text, 1.0)) == (pytest.approx(start), end)


@pytest.mark.parametrize(
    "text",
    ["", "hot", "linear", "linear:1", "linear:0:1:0.5", "step:0:1", "cosine:0:nan", "linear:a:b", "step:0:1:1:1"],
)
def test_anything_else_is_refused_with_what_is_legal(text: str) -> None:
    with pytest.raises(QTargetError, match=r"neither a number nor a schedule: write linear:A:B"):
        parse(text)


@pytest.mark.parametrize("text", ["linear:0:1:0.5:0.2", "step:0:1:2", "cosine:0:1:-1:1"])
def test_progress_runs_from_0_to_1(text: str) -> None:
    with pytest.raises(QTargetError, match="progress runs from 0 to 1"):
        parse(text)


def test_both_ends_have_to_be_in_range() -> None:
    with pytest.raises(QTargetError, match=r"eta \(linear:0:1.5\) must lie in \[0, 1\], got 1.5"):
        load_design("target_sft", **{"residual.eta": "linear:0:1.5"})
    with pytest.raises(QTargetError, match=r"anchor \(cosine:-1:0\) must lie in \[0, ∞\), got -1"):
        load_design("sft_kl", anchor="cosine:-1:0")


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_a_scheduled_design_is_the_plain_one_of_that_moment(progress: float) -> None:
    world = World.random(1)
    changing = load_design("target_sft", **{"residual.eta": "linear:0:1", "reliance.alpha": "cosine:2:1"})
    now = {"residual.eta": value_at("linear:0:1", progress), "reliance.alpha": value_at("cosine:2:1", progress)}
    got = qtarget.dense_loss(world.logits, world.labels, changing, **world.given() | {"progress": progress})
    expected = qtarget.dense_loss(world.logits, world.labels, load_design("target_sft", **now), **world.given())
    torch.testing.assert_close(got.loss, expected.loss)
    assert dict(scheduled(changing, progress)) == now


def test_what_follows_progress_is_found_wherever_it_stands() -> None:
    assert dict(scheduled(load_design("idft"), 0.25)) == {"reliance.ramp": pytest.approx(0.5)}
    assert dict(scheduled(load_design("sft_kl", anchor="step:0.2:0.1:0.5"), 0.5)) == {"anchor": 0.1}
    for name in options("target"):
        assert set(dict(scheduled(load_design(name), 0.5))) == ({"reliance.ramp"} if name == "idft" else set())


def test_progress_outside_a_run_is_refused() -> None:
    world = World.random(1)
    with pytest.raises(QTargetError, match=r"progress must lie in \[0, 1\], got 1.5"):
        qtarget.dense_loss(world.logits, world.labels, load_design("sft"), progress=1.5)
    with pytest.raises(QTargetError, match=r"reliance\.ramp of this design follows training: give progress"):
        qtarget.dense_loss(world.logits, world.labels, load_design("idft"))
