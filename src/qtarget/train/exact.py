"""The widest floats that a device has, for sums of many numbers."""

from __future__ import annotations

import torch


def exact(device: torch.device) -> torch.dtype:
    """fp64, or fp32 on Apple's GPUs, which have no more."""
    return torch.float32 if device.type == "mps" else torch.float64
