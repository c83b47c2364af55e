"""A model's forward in the hands of trainers: what they put in its place, and how the loss gets there."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from qtarget.model.architecture import plain

T = TypeVar("T")


def hand_over(lm: Any) -> None:
    """model(design_loss=f) returns f(): what f does then happens where the model's forward would, inside DDP's and
    under the autocast that accelerate puts around it.
    """
    own = lm.forward

    @functools.wraps(type(lm).forward)  # generate reads its signature
    def forward(self: Any, *args: Any, design_loss: Callable[[], T] | None = None, **named: Any) -> Any:
        return own(*args, **named) if design_loss is None else design_loss()

    lm.forward = types.MethodType(forward, lm)


@contextmanager
def own_forward(lm: Any) -> Iterator[None]:
    """Meanwhile the model's forward is that of its class.

    accelerate leaves its autocast on a model that a trainer trained, TRL 1.16 its fused head: without them the model's
    logits can be compared, and its weights copied.
    """
    replaced = {module: module.__dict__.pop("forward", None) for module in {lm, plain(lm)} if not _is_offloaded(module)}
    try:
        yield
    finally:
        for module, forward in replaced.items():
            if forward is not None:
                module.forward = forward


def _is_offloaded(module: Any) -> bool:
    """Whether accelerate moves weights or inputs around each forward."""
    return hasattr(module, "_hf_hook")
