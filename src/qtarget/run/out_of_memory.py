"""Out of memory: what would fit, by the names of the keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qtarget.errors import QTargetError
from qtarget.math.target import needs
from qtarget.math.tokens import default_chunk
from qtarget.run.build import Plan
from qtarget.units import in_bytes

CPU_ALLOCATOR = "can't allocate memory"


@contextmanager
def explain_out_of_memory(plan: Plan) -> Iterator[None]:
    """Turns an allocator's error into advice; everything else passes."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if isinstance(error, torch.OutOfMemoryError) or CPU_ALLOCATOR in str(error):
            first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise QTargetError(f"out of memory ({first_line}). What takes less: {advice(plan)}") from error
        raise


def advice(plan: Plan) -> str:
    """What to set, the cheapest first; none of it changes the target."""
    return "; ".join(_ways(plan))


def _ways(plan: Plan) -> Iterator[str]:
    cfg = plan.cfg
    yield from _references(plan)
    yield from _parts(plan)
    if plan.attention == "eager":
        yield "model.attention=sdpa, which keeps no rows × length² (now eager)"
    if not cfg.model.gradient_checkpointing:
        yield "model.gradient_checkpointing=true, slower by a third"
    if not cfg.model.adapter:
        yield "model/adapter=lora, or trainer.strategy=fsdp2 on several devices"


def _references(plan: Plan) -> Iterator[str]:
    for role in sorted({"prior", "teacher"} & needs(plan.design).keys()):
        yield from plan.cfg.references[role].smaller(plan.cfg)


def _parts(plan: Plan) -> Iterator[str]:
    trainer, vocab = plan.cfg.trainer, len(plan.tokenizer)
    chunk = plan.cfg.loss.chunk_size or default_chunk(vocab)
    if chunk > 64:
        size = in_bytes(4 * chunk * vocab)
        yield (
            f"loss.chunk_size={max(64, chunk // 4)} (now {chunk} tokens: {size} for each of its tensors of "
            "chunk × vocabulary)"
        )
    if trainer.batch_size % 2 == 0:
        half, twice = trainer.batch_size // 2, trainer.accumulate * 2
        more = "" if trainer.rows_per_step else f" trainer.accumulate={twice}"
        yield f"trainer.batch_size={half}{more}, the same step in more parts"
