"""Out of memory: what would fit, by the names of the keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qtarget.app.compose import Plan
from qtarget.errors import QTargetError
from qtarget.math.target import needs
from qtarget.math.tokens import CHUNK_BYTES
from qtarget.model.cache import in_words

CPU_ALLOCATOR = "can't allocate memory"


@contextmanager
def explained(plan: Plan) -> Iterator[None]:
    """Turns an allocator's error into advice; everything else passes."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or CPU_ALLOCATOR in str(error):
            raise QTargetError(f"out of memory ({_first_line(error)}). What takes less: {advice(plan)}") from error
        raise


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def advice(plan: Plan) -> str:
    """What to set, the cheapest first; none of it changes the target."""
    return "; ".join(_ways(plan))


def _ways(plan: Plan) -> Iterator[str]:
    cfg, vocab = plan.cfg, len(plan.tokenizer)
    trainer, chunk = cfg.trainer, cfg.loss.chunk_size or max(1, CHUNK_BYTES // (4 * vocab))
    for role in needs(plan.design):
        if cfg.references[role].kind == "frozen":
            yield f"reference@references.{role}=cached, which keeps no second model (now frozen)"
            if role == "prior" and cfg.model.adapter:
                yield "or reference@references.prior=adapter_off, which shares the policy's weights"
    if chunk > 64:
        smaller = max(64, chunk // 4)
        yield (
            f"loss.chunk_size={smaller} (now {chunk} tokens: {in_words(4 * chunk * vocab)} for each of its tensors of "
            "chunk × vocabulary)"
        )
    if trainer.batch_size > 1:
        yield (
            f"trainer.batch_size={trainer.batch_size // 2} trainer.accumulate={trainer.accumulate * 2}, the same step "
            "in more parts"
        )
    if not cfg.model.gradient_checkpointing:
        yield "model.gradient_checkpointing=true, slower by a third"
    if not cfg.model.adapter:
        yield "model/adapter=lora, or trainer.strategy=fsdp2 on several devices"
