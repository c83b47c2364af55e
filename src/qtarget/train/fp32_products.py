"""Which library makes a run's fp32 products on a CPU, and where what was measured for it is kept."""

from __future__ import annotations

import json
import platform
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from qtarget.files import cache_dir, write_atomically
from qtarget.math import products

FILE = "fp32_products.json"
LARGE = 2**20
"""Entries of an output layer from which its products are worth a trial."""


def matters(weight: Tensor) -> bool:
    """Whether products in the dtype of this output layer [V, D] have more ways than one."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= LARGE


def faster_here() -> str:
    """One of `products.LIBRARIES`: what an earlier trial on this processor found, or one now, which is kept.

    It is kept in QTARGET_CACHE/fp32_products.json by processor, threads and version of torch. Where that can't be
    written, every process measures for itself.
    """
    file, key = cache_dir() / FILE, f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    kept = _read(file)
    if kept.get(key) in products.LIBRARIES:
        return kept[key]
    measured = products.faster(torch.get_num_threads())
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({**kept, key: measured}, indent=1))
    return measured


def processor() -> str:
    """Its name as the system gives it, such as "AMD EPYC 9R14"."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(file: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        return kept if isinstance(kept, dict) else {}
    return {}
