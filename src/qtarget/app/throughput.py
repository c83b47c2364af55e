"""How long training takes: its operations at a share of what the devices can do."""

from __future__ import annotations

import time

import torch

from qtarget.app.run_config import TrainerConfig

KEYS = "(trainer.utilisation, trainer.device_tflops)"
MEASURED_FOR = 0.2  # seconds
SIDES = {"cpu": 1024, "cuda": 8192}
"""Of the square product that is timed: large enough to fill the device, small enough to take a moment."""


def estimate(trainer: TrainerConfig, operations: float) -> str:
    """How long `operations` take, and what that assumes; without trainer.device_tflops this machine is measured."""
    share, count = f"{100 * trainer.utilisation:g} %", trainer.processes
    each = trainer.device_tflops
    if each is None:
        device = "cuda" if trainer.on_gpu else "cpu"
        count = count if device == "cuda" else 1  # processes of a CPU share it
        each = product_rate(device, trainer.precision) / 1e12
        at = f"the {each:.3g} TFLOP/s just measured"
    else:
        at = f"{each:g} TFLOP/s each"
    seconds = operations / (count * each * 1e12 * trainer.utilisation)
    devices = "1 device" if count == 1 else f"{count} devices"
    return f"about {in_time(seconds)} on {devices} at {share} of {at} {KEYS}; attention and evaluation left out"


def product_rate(device: str, precision: str) -> float:
    """Operations a second of one large matrix product at the precision of training: the best of a moment's."""
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    square = torch.randn(SIDES[device], SIDES[device], device=device, dtype=dtype)
    fastest, until = float("inf"), time.perf_counter() + MEASURED_FOR
    while time.perf_counter() < until or fastest == float("inf"):
        began = time.perf_counter()
        square @ square
        if device == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - began)
    return float(2 * SIDES[device] ** 3 / fastest)


def in_time(seconds: float) -> str:
    """5400 → 1.5 h."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{seconds < 10 * size:d}f} {unit}"
    return f"{seconds:.2g} s"
