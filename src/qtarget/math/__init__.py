"""Targets and their losses: torch only, no I/O, no configuration, no logging."""

from qtarget.math.head import Head
from qtarget.math.loss import LossOutput, dense_loss, linear_loss
from qtarget.math.reference import Reference
from qtarget.math.target import Mixture, Target
from qtarget.math.view import TokenView

__all__ = ["Head", "LossOutput", "Mixture", "Reference", "Target", "TokenView", "dense_loss", "linear_loss"]
