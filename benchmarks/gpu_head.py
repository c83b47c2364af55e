"""Part head: forward and backward of the output layer and the loss, in time and in peak memory."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import fused
import peak
import timing
import torch
from torch import Tensor
from torch.nn import functional as F

import qtarget
from qtarget.math.target import needs

PLAIN = "matmul + cross_entropy"
OURS = ("sft", "dft", "asft", "target_sft")
AIMS = {"sft": "time ≤ 1.3 × Liger or CCE, memory ≤ 1/8", "dft": "as sft", "target_sft": "time ≤ 1.7 × Liger or CCE"}
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """Tokens N, vocabulary V, width D."""

    tokens: int
    vocab: int
    width: int


SIZES = (
    *(Size(tokens, 49152, 576) for tokens in (8192, 32768)),
    *(Size(tokens, 151936, width) for width in (1536, 4096) for tokens in (8192, 32768)),
)
QUICK = (Size(24, 300, 16),)


def measure(device: str, quick: bool, keep: Any) -> None:
    for size in QUICK if quick else SIZES:
        caption = (
            f"N = {size.tokens}, V = {size.vocab}, D = {size.width}, bf16, forward and backward; ratios to the first"
        )
        keep(caption, rows(size, device, rounds=2 if quick else 7, compiled=device == "cuda"))


def rows(size: Size, device: str, *, rounds: int, compiled: bool) -> list[dict[str, Any]]:
    """A row for each way; one that doesn't fit into memory says so."""
    steps, peaks = {}, {}
    for name, step in ways(size, device, compiled).items():
        try:
            step()  # compiles, and shows whether it fits
            peaks[name] = peak.megabytes(step, device)
            steps[name] = step
        except torch.OutOfMemoryError:
            peaks[name] = None
            torch.cuda.empty_cache()
    taken = timing.in_turn(steps, rounds, title=str(size), warm=1)
    base = PLAIN if PLAIN in taken else next(iter(taken))
    return [
        {
            "way": name,
            "ms": 1e3 * statistics.median(taken[name]) if name in taken else None,
            "time ratio": timing.ratio(taken, name, base) if name in taken else None,
            "peak MB": megabytes if name in taken else "out of memory",
            "memory ratio": megabytes / peaks[base] if megabytes and peaks[base] else None,
            "aim": AIMS.get(name.partition(",")[0]),
        }
        for name, megabytes in peaks.items()
    ]


def ways(size: Size, device: str, compiled: bool) -> dict[str, Callable[[], None]]:
    drawn = partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device)
    hidden = drawn(size.tokens, size.width).bfloat16().requires_grad_()
    weight = (0.05 * drawn(size.vocab, size.width)).bfloat16().requires_grad_()
    labels = torch.randint(size.vocab, (size.tokens,), device=device)
    other = qtarget.Reference.hidden(drawn(size.tokens, size.width).bfloat16(), qtarget.Head(weight.detach().clone()))

    def step(loss: Loss) -> None:
        hidden.grad = weight.grad = None
        loss(hidden, weight, labels).backward()

    return {name: partial(step, loss) for name, loss in losses(other, compiled).items()}


def losses(other: qtarget.Reference, compiled: bool) -> dict[str, Loss]:
    """name → the summed loss; other people's where their package is installed."""
    found: dict[str, Loss] = {PLAIN: fused.plain}
    if hasattr(F, "linear_cross_entropy"):
        found["torch's linear_cross_entropy"] = partial(F.linear_cross_entropy, reduction="sum")
    for module, name, loss in (
        ("liger_kernel", "Liger", fused.liger),
        ("cut_cross_entropy", "cut cross-entropy", fused.cut),
    ):
        if importlib.util.find_spec(module):
            found[name] = loss
    for name in OURS:
        found[name] = ours(qtarget.load_design(name), other, compiled)
    return found


def ours(design: Any, other: qtarget.Reference, compiled: bool) -> Loss:
    references = dict.fromkeys(needs(design), other)

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return qtarget.linear_loss(hidden, weight, labels, design, references=references, compiled=compiled).total

    return loss
