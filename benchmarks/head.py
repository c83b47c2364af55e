"""The output layer and the loss: time and memory of plain cross-entropy and of target designs, forward and backward.

    python benchmarks/head.py [--tokens 512 2048 8192] [--rounds 7] [--precision bf16 fp32] [--no-compile]

Every way is timed in turn, round after round, and a ratio is that of the medians of one run, so that a machine's moods
fall on all alike. Seconds are the processor's, of all threads together. The base of `target_sft` is the same in plain
torch. The floor of a way is its matrix products alone, as a share of its base. Memory is the peak of a fresh process
above what it held before: gradients, and everything between.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

import qtarget
from qtarget.math.products import product
from qtarget.math.tokens import default_chunk, slices
from qtarget.train.fp32_products import processor
from qtarget.train.memory import keep_freed_blocks, return_freed_blocks
from qtarget.train.policy_loss import UNREAD

HIDDEN, VOCAB = 576, 49152
DESIGNS = ("sft", "dft", "label_smoothing", "target_sft")
PLAIN = "matmul + cross_entropy"
PLAIN_TARGET_SFT = "target_sft in plain torch"
FLOOR, FLOOR_WITH_TEACHER = "products alone", "products alone, with a teacher's"
TOKENS, PRECISIONS = (512, 2048, 8192), ("bf16", "fp32")
FEW = 64
Step = Callable[[], None]


class Row(TypedDict, total=False):
    """What one way took; the memory where it was asked for."""

    tokens: int
    precision: str
    way: str
    seconds: float
    time_ratio: float
    floor: float
    peak_mb: float
    memory_ratio: float


def problem(tokens: int, precision: str) -> tuple[Tensor, Tensor, Tensor, qtarget.Reference]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN, generator=generator)
    weight = 0.05 * torch.randn(VOCAB, HIDDEN, generator=generator)
    labels = torch.randint(VOCAB, (tokens,), generator=generator)
    teacher = qtarget.Reference.hidden(torch.randn(tokens, HIDDEN, generator=generator), qtarget.Head(weight.clone()))
    return hidden.requires_grad_(), weight.requires_grad_(), labels, teacher


def autocast(precision: str) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def dense(hidden: Tensor, weight: Tensor, labels: Tensor, precision: str) -> Tensor:
    """What a plain training loop does."""
    with autocast(precision):
        logits = hidden @ weight.T
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def dense_target_sft(
    hidden: Tensor, weight: Tensor, labels: Tensor, teacher: qtarget.Reference, precision: str
) -> Tensor:
    """Target-SFT as one would write it from the paper."""
    assert teacher.rows is not None
    assert teacher.head is not None
    with autocast(precision):
        logits = hidden @ weight.T
        with torch.no_grad():
            theirs = teacher.rows @ teacher.head.weight.T
    logp = logits.float().log_softmax(-1)
    with torch.no_grad():
        p = logp.gather(1, labels[:, None]).exp()
        target = (1 - p) * (0.5 * logp + 0.5 * theirs.float().log_softmax(-1)).softmax(-1)
        target.scatter_add_(1, labels[:, None], p)
    return -(target * logp).sum()


def products_alone(hidden: Tensor, weight: Tensor, precision: str, teachers: int = 0) -> None:
    """Logits, both gradients, and a teacher's logits, by the faster library: what no loss can do without."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    states, matrix = hidden.detach().to(dtype), weight.detach().to(dtype)
    for rows in slices(len(states), default_chunk(VOCAB)):
        for _ in range(1 + teachers):
            logits = product(states[rows], matrix)
        product(logits, matrix.T)
        product(logits.T, states[rows].T)


def base_of(way: str) -> str:
    """What a way is compared with."""
    return PLAIN_TARGET_SFT if way.startswith("target_sft") or way == FLOOR_WITH_TEACHER else PLAIN


def ways(tokens: int, precision: str, *, compiled: bool) -> dict[str, Step]:
    """name → one forward and backward pass."""
    hidden, weight, labels, teacher = problem(tokens, precision)

    def step(loss: Callable[[], Tensor]) -> None:
        hidden.grad = weight.grad = None
        loss().backward()

    def ours(name: str, compiled: bool) -> Tensor:
        references = {"teacher": teacher} if name == "target_sft" else {}
        with autocast(precision):
            design = qtarget.load_design(name) if name not in loaded else loaded[name]
            loaded[name] = design
            given: Any = {"references": references, "unmeasured": UNREAD}
            return qtarget.linear_loss(hidden, weight, labels, design, compiled=compiled, **given).total

    loaded: dict[str, Any] = {}
    found: dict[str, Step] = {
        PLAIN: partial(step, lambda: dense(hidden, weight, labels, precision)),
        PLAIN_TARGET_SFT: partial(step, lambda: dense_target_sft(hidden, weight, labels, teacher, precision)),
        FLOOR: partial(products_alone, hidden, weight, precision),
        FLOOR_WITH_TEACHER: partial(products_alone, hidden, weight, precision, teachers=1),
    }
    if precision == "fp32":
        fused = F.linear_cross_entropy
        found["torch's linear_cross_entropy"] = partial(step, lambda: fused(hidden, weight, labels, reduction="sum"))
    for name in DESIGNS:
        found[name] = partial(step, partial(ours, name, False))
        if compiled:
            found[f"{name}, compiled"] = partial(step, partial(ours, name, True))
    return found


def seconds(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median time of each by all threads of the processor, taken in turn."""
    for step in steps.values():
        step()  # compiles, and fills caches
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def _status(field: str) -> float:
    """A line of /proc/self/status, in MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def _peak(name: str, tokens: int, precision: str, compiled: bool, pipe: Any) -> None:
    return_freed_blocks()
    ways(FEW, precision, compiled=compiled)[name]()  # compiling takes memory of its own
    step = ways(tokens, precision, compiled=compiled)[name]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    step()
    pipe.send(_status("VmHWM") - before)


def peak_megabytes(name: str, tokens: int, precision: str, compiled: bool) -> float:
    """How far one pass raises the peak of a fresh process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_peak, args=(name, tokens, precision, compiled, theirs))
    process.start()
    megabytes = float(ours.recv())
    process.join()
    return megabytes


def measure(
    tokens: Sequence[int] = TOKENS,
    precisions: Sequence[str] = PRECISIONS,
    *,
    rounds: int = 7,
    compiled: bool = True,
    memory: bool = True,
) -> list[Row]:
    """A row for every way, ratios to its base at the same tokens and precision. Many tokens get fewer rounds."""
    keep_freed_blocks()
    cases = [(count, precision) for precision in precisions for count in tokens]
    return [row for case in cases for row in _rows(*case, rounds=rounds, compiled=compiled, memory=memory)]


def _rows(tokens: int, precision: str, *, rounds: int, compiled: bool, memory: bool) -> Iterator[Row]:
    taken = seconds(ways(tokens, precision, compiled=compiled), max(2, min(rounds, rounds * 2048 // tokens)))
    peaks = {name: peak_megabytes(name, tokens, precision, compiled) for name in taken} if memory else {}
    for name, value in taken.items():
        base = base_of(name)
        floor = taken[FLOOR_WITH_TEACHER if base == PLAIN_TARGET_SFT else FLOOR] / taken[base]
        ratio = value / taken[base]
        row = Row(tokens=tokens, precision=precision, way=name, seconds=value, time_ratio=ratio, floor=floor)
        if memory:
            row |= Row(peak_mb=peaks[name], memory_ratio=peaks[name] / peaks[base])
        yield row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    options = parser.parse_args(arguments)
    print(
        f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"hidden {HIDDEN}, vocabulary {VOCAB}"
    )
    print(f"ratios are to {PLAIN}, those of target_sft to {PLAIN_TARGET_SFT}; the floor is the products alone\n")
    columns = ("tokens", "precision", "way", "processor s", "time ratio", "floor", "peak MB", "memory ratio")
    print(f"| {' | '.join(columns)} |\n|---:|---|---|---:|---:|---:|---:|---:|")
    how = {"rounds": options.rounds, "compiled": not options.no_compile, "memory": not options.no_memory}
    for precision, tokens in itertools.product(options.precision, options.tokens):
        for row in measure([tokens], [precision], **how):
            print(line(row), flush=True)


def line(row: Row) -> str:
    """A row as a line of the table."""
    memory = f"{row['peak_mb']:.0f} | {row['memory_ratio']:.2f}" if "peak_mb" in row else "– | –"
    times = f"{row['seconds']:.3f} | {row['time_ratio']:.2f} | {row['floor']:.2f}"
    return f"| {row['tokens']} | {row['precision']} | {row['way']} | {times} | {memory} |"


if __name__ == "__main__":
    main()
