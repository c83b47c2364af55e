"""The parts of a target design: how far to trust the label, where the rest goes, how large a step."""

from qtarget.design import objective, reliance, residual, weight

__all__ = ["objective", "reliance", "residual", "weight"]
