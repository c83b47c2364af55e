"""A compiled loss leaves torch's process-wide settings as they were, whatever becomes of it."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from test_compiled import fresh, over_the_limit
from worlds import World, load_design

import qtarget
from qtarget.math import scoring


@pytest.fixture(autouse=True)
def traced_only(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(scoring, "BACKEND", "aot_eager")
    fresh()
    yield
    fresh()


def settings() -> dict[str, Any]:
    """What other code in the process computes with."""
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor

    configs = {"dynamo": torch._dynamo.config, "inductor": inductor, "functorch": functorch}
    return {
        **{name: config.get_config_copy() for name, config in configs.items()},
        "dtype": torch.get_default_dtype(),
        "precision": torch.get_float32_matmul_precision(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "mkldnn": torch.backends.mkldnn.enabled,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": torch.is_autocast_enabled("cpu"),
        "environment": dict(os.environ),
    }


def test_compiled_losses_leave_the_settings() -> None:
    world, before = World.random(1), settings()
    hidden, weight = torch.randn(7, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    qtarget.dense_loss(world.logits, world.labels, load_design("dft"), compiled=True)
    qtarget.linear_loss(hidden, weight, world.labels, load_design("dft"), compiled=True).total.backward()
    assert settings() == before
    assert before["dynamo"]["fail_on_recompile_limit_hit"] is False


def test_a_compiled_loss_that_fails_leaves_the_settings() -> None:
    """On the first of too many graphs, and in a part that raises."""
    before, design = settings(), load_design("sft")
    few = torch._dynamo.config.patch(recompile_limit=2, automatic_dynamic_shapes=False)
    with few, pytest.raises(Exception, match="recompile_limit"):
        over_the_limit(design)
    assert settings() == before

    def broken(view: Any) -> Any:
        raise ValueError("no part")

    world, wrong = World.random(2), qtarget.Mixture(broken, design.residual, design.weight)
    with pytest.raises(Exception, match="no part"):
        qtarget.dense_loss(world.logits, world.labels, wrong, compiled=True)
    assert settings() == before


def test_a_function_of_the_users_recompiles_as_before() -> None:
    """torch.compile falls back to eager past its limit, unless the user wants an error."""
    world = World.random(3)
    qtarget.dense_loss(world.logits, world.labels, load_design("sft"), compiled=True)

    @torch.compile(backend="eager", dynamic=False)
    def square(values: torch.Tensor) -> torch.Tensor:
        return values * values

    with torch._dynamo.config.patch(recompile_limit=2):
        for size in range(2, 7):
            assert square(torch.ones(size)).sum() == size
