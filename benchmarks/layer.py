"""(a) The output layer and the loss alone: benchmarks/head.py, and on a CUDA device the fused ones of others."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import fused
import head
import timing
import torch
from table import Row, Section

PLAIN = head.PLAIN
COLUMNS = {
    "tokens": "tokens",
    "way": "way",
    "seconds": "processor s",
    "time_ratio": "time ratio",
    "floor": "floor",
    "peak_mb": "peak MB",
    "memory_ratio": "memory ratio",
}
"""A row of head.py → the table's columns."""


def measure(tokens: int, precision: str, rounds: int, *, compiled: bool = True, memory: bool = True) -> list[Row]:
    """On the CPU."""
    timing.progress(f"(a) {tokens} tokens, {precision}")
    rows = head.measure([tokens], [precision], rounds=rounds, compiled=compiled, memory=memory)
    timing.progress("")
    return [{title: row.get(key) for key, title in COLUMNS.items()} for row in rows]


def measure_fused(tokens: int, device: str, rounds: int, *, compiled: bool = True) -> list[Row]:
    """On `device`, beside other people's fused output layers."""
    steps = fused.ways(tokens, device, compiled=compiled)
    taken = timing.in_turn(steps, rounds, title=f"(a) {tokens} tokens on {device}")
    return [
        {
            "tokens": tokens,
            "way": name,
            "ms": 1e3 * statistics.median(taken[name]),
            "time ratio": timing.ratio(taken, name, PLAIN),
            "peak MB": peak_megabytes(steps[name]) if device == "cuda" else None,
        }
        for name in steps
    ]


def peak_megabytes(step: timing.Step) -> float:
    """How far one pass raises the device's peak above what it held before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def section(quick: bool) -> Section:
    sizes, rounds = ((128,), 2) if quick else ((512, 2048, 8192), 5)
    tables: list[tuple[str, Sequence[Row]]] = []
    for precision in ("bf16", "fp32"):
        rows = [row for tokens in sizes for row in measure(tokens, precision, rounds, memory=not quick)]
        tables.append((caption(f"on the CPU, {precision} products"), rows))
    if torch.cuda.is_available():
        on_gpu = (1024,) if quick else (4096, 16384)
        rows = [row for tokens in on_gpu for row in measure_fused(tokens, "cuda", 3 * rounds)]
        tables.append((caption("on the GPU, bf16 hidden states and head"), rows))
    return Section("a", "The output layer and the loss", tables)


def caption(where: str) -> str:
    return (
        f"Forward and backward of head and loss, {where}, hidden {head.HIDDEN}, vocabulary {head.VOCAB}; ratios to "
        f"{PLAIN} of the same tokens, on the CPU those of target_sft to the same in plain torch. "
        "Memory is how far one pass raises the peak (on the CPU that of a fresh process)."
    )
