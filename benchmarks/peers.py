"""(c) Tokens a second beside TRL's trainers and a plain PyTorch loop: same model, rows, precision and batch."""

from __future__ import annotations

import logging
import multiprocessing
import resource
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ours
import rivals
import timing
from ground import BATCH, CLIP, LR, Clock, Contender, ground
from steps import LIVE_TEACHER
from table import Row, Section
from transformers.utils import logging as transformers_logging

from qtarget.errors import QTargetError
from qtarget.train.memory import keep_freed_blocks

KD = ("target=kd", *LIVE_TEACHER)
EAGER, COMPILED = "loss.compile=off", "loss.compile=on"
TRL_SFT, TRL_DFT = "TRL SFTTrainer, nll", "TRL SFTTrainer, dft"
TRL_GKD, TRL_DISTILL = "TRL GKDTrainer", "TRL DistillationTrainer"


@dataclass(frozen=True)
class Entry:
    """A contender, the rival whose speed its own is compared with, and whether freed memory is kept as we keep it."""

    train: Contender
    beside: str | None = None
    aim: str | None = None
    keeps_memory: bool = True
    steps: int = 5


def rival(build: rivals.Build, *, keeps_memory: bool = False) -> Entry:
    return Entry(rivals.trl(build), keeps_memory=keeps_memory, steps=3)


ENTRIES = {
    TRL_SFT: rival(rivals.sft("nll")),
    "plain PyTorch loop": Entry(ours.plain, TRL_SFT, keeps_memory=False),
    "plain PyTorch loop, memory kept": Entry(ours.plain, TRL_SFT),
    "qtarget sft": Entry(ours.qtarget("target=sft", EAGER), TRL_SFT),
    "qtarget sft, compiled": Entry(ours.qtarget("target=sft", COMPILED), TRL_SFT),
    TRL_DFT: rival(rivals.sft("dft")),
    f"{TRL_DFT}, memory kept": rival(rivals.sft("dft"), keeps_memory=True),
    "qtarget dft": Entry(ours.qtarget("target=dft", EAGER), TRL_DFT, "≥ 3"),
    "qtarget dft, compiled": Entry(ours.qtarget("target=dft", COMPILED), TRL_DFT, "≥ 3"),
    TRL_DISTILL: rival(rivals.distillation),
    TRL_GKD: rival(rivals.gkd),
    "qtarget kd": Entry(ours.qtarget(*KD, EAGER), TRL_DISTILL, "≥ 3"),
    "qtarget kd, compiled": Entry(ours.qtarget(*KD, COMPILED), TRL_DISTILL, "≥ 3"),
}


def measure(names: Sequence[str] = tuple(ENTRIES), steps: int | None = None, more: Sequence[str] = ()) -> list[Row]:
    """One row per contender, each run in a process of its own. Raises where they don't supervise the same tokens."""
    where, rows = ground(more), {}
    tokens = sum(len(row) for row in where.rows)
    for name in names:
        timing.progress(f"(c) {name}")
        clock, peak = in_fresh_process(name, steps or ENTRIES[name].steps, more)
        _check_same_tokens(name, clock, where.batch.supervised)
        step = statistics.median(clock.seconds[1:])
        rows[name] = {"trainer": name, "supervised tokens": where.batch.supervised, "s/step": step}
        rows[name] |= {"tokens/s": tokens / step, "peak GB": peak} | _compared(name, rows)
    timing.progress("")
    return list(rows.values())


def _compared(name: str, rows: dict[str, dict[str, Any]]) -> Row:
    beside = ENTRIES[name].beside
    speedup = rows[beside]["s/step"] / rows[name]["s/step"] if beside in rows else None
    return {"beside": beside, "times as fast": speedup, "aim": ENTRIES[name].aim}


def _check_same_tokens(name: str, clock: Clock, supervised: int) -> None:
    if clock.supervised != {supervised}:
        raise QTargetError(f"{name} supervised {sorted(clock.supervised)} tokens a step where ours are {supervised}")


def in_fresh_process(name: str, steps: int, more: Sequence[str]) -> tuple[Clock, float]:
    """What a contender's steps took, and its process's peak memory in GB: no one else's allocator or threads."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_train, args=(name, steps, tuple(more), theirs))
    process.start()
    theirs.close()  # so that a child that dies is an EOFError here, not a wait
    found: tuple[Clock, float] = mine.recv()
    process.join()
    return found


def _train(name: str, steps: int, more: Sequence[str], pipe: Any) -> None:
    entry = ENTRIES[name]
    if entry.keeps_memory:
        keep_freed_blocks()
    transformers_logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    clock = entry.train(ground(more), steps)
    pipe.send((clock, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6))


def section(quick: bool) -> Section:
    return Section("c", "Tokens a second, beside other trainers", [(CAPTION, measure(steps=2 if quick else None))])


CAPTION = f"""\
SmolLM2-135M, all weights trained, the same {BATCH} rows of `data=gsm_symbolic` (tokenised once, by qtarget)
as the batch of every step; fp32 weights under bf16 autocast, no gradient checkpointing, completion tokens
supervised, fused AdamW at lr {LR}, clipping at {CLIP}, sdpa attention, no dropout, no packing, no logging. A
step is timed by each trainer's own callbacks from the batch at hand to the weights updated: the median after
a warm-up step (TRL: of 2, others: of 4). Tokens are real ones, padding aside. TRL's SFTTrainer:
`loss_type="nll"` or `"dft"`, `completion_only_loss=True`, its fused chunked head. DistillationTrainer:
`beta=0` (KL of the teacher to the policy), its generation replaced by the rows' completions, and autocast set
for it, which its own call of the models escapes; GKDTrainer: `lmbda=0, beta=0, seq_kd=False`; the teacher is
the same base model, in fp32 under the same autocast. The plain loop applies the head to supervised tokens
only. Every contender ran in a process of its own; *memory kept*: with the allocator setting that `qtarget
train` makes (glibc keeps freed blocks), which all of qtarget's rows have and the others otherwise don't."""
