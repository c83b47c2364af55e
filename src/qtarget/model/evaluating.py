"""A policy that is read, not trained, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(policy: nn.Module) -> Iterator[None]:
    """Dropout off meanwhile, and nothing left behind that training would trip over."""
    was_training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(was_training)
        torch.clear_autocast_cache()  # before torch 2.10 the casts kept there had no graph, for the training pass too
