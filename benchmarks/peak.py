"""How far a piece of work raises the peak of memory above what was held before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch


def megabytes(work: Callable[[], object], device: str) -> float:
    """Of a GPU what torch's allocator counts; of a CPU the resident set, as the kernel counts it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """A line of /proc/self/status, in MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6
