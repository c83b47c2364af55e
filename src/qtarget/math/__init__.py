"""Targets and their losses: torch only, no I/O, no configuration, no logging."""

from qtarget.math.distribution import Distribution
from qtarget.math.head import Head
from qtarget.math.induced import induced_target
from qtarget.math.loss import LossOutput, dense_loss, linear_loss
from qtarget.math.reference import Reference
from qtarget.math.target import Anchored, Induced, InducedTarget, Mixture, Signed, Target
from qtarget.math.tokens import IGNORE
from qtarget.math.view import TokenView

__all__ = [
    "IGNORE",
    "Anchored",
    "Distribution",
    "Head",
    "Induced",
    "InducedTarget",
    "LossOutput",
    "Mixture",
    "Reference",
    "Signed",
    "Target",
    "TokenView",
    "dense_loss",
    "induced_target",
    "linear_loss",
]
