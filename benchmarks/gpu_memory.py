"""Part memory: the peak of an optimizer step, weights and optimizer included, by what stands beside the policy."""

from __future__ import annotations

import gc
from typing import Any

import peak
import steps
import torch

from qtarget.errors import QTargetError

VARIANTS: dict[str, tuple[str, ...]] = {
    "sft": ("target=sft",),
    "sft, gradient checkpointing": ("target=sft", "model.gradient_checkpointing=true"),
    "sft, LoRA": ("target=sft", *steps.LORA),
    "asft, live prior": ("target=asft",),
    "asft, prior in bf16": ("target=asft", "references.prior.dtype=bfloat16"),
    "asft, prior offloaded": ("target=asft", "references.prior.offload=true"),
    "asft, cached prior": ("target=asft", *steps.CACHED_PRIOR),
    "asft, LoRA, prior = adapter off": ("target=asft", *steps.LORA, "reference@references.prior=adapter_off"),
}


def measure(device: str, quick: bool, keep: Any) -> None:
    rows = steps.Rows("arithmetic", 2) if quick else steps.Rows("gsm_symbolic", 32)
    model = "model=tiny" if quick else "model=smollm2_135m"
    more = (model, f"trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}", *steps.engine(quick))
    names = list(VARIANTS)[:1] + list(VARIANTS)[4:6] if quick else list(VARIANTS)
    found = [row(name, (*rows.overrides, *more), device) for name in names]
    size = "the tiny model" if quick else "SmolLM2-135M"
    keep(f"{size}, bf16-mixed, {rows.batch_size} rows of {rows.data}: peak of loading and two steps", found)


def row(name: str, overrides: tuple[str, ...], device: str) -> dict[str, Any]:
    def work() -> None:
        made = steps.trained((*overrides, *VARIANTS[name]))
        made()
        made()

    try:
        megabytes: Any = peak.megabytes(work, device)
    except QTargetError as error:
        megabytes = str(error)
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return {"variant": name, "peak MB": megabytes}
