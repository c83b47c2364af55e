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
    if known := kept_here():
        return known
    file, measured = cache_dir() / FILE, products.faster(torch.get_num_threads())
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({**_read(file), _key(): measured}, indent=1))
    return measured


def kept_here() -> str | None:
    """What an earlier trial with this processor, these threads and this torch chose; None before the first."""
    kept = _read(cache_dir() / FILE).get(_key())
    return kept if kept in products.LIBRARIES else None


def in_words() -> str:
    """The same for a person, without a trial."""
    known = kept_here()
    if known:
        return f"fp32 by {known}, which a trial here found faster; loss.products pins one"
    return "fp32 by what a trial at the first run here finds faster; loss.products pins one"


def _key() -> str:
    return f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


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
