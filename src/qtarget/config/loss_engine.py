"""What may be chosen of how the loss and attention run, and the attention of a run."""

from __future__ import annotations

CHOICES = ("auto", "on", "off")
AUTO = "auto"
PRODUCTS = (AUTO, "torch", "onednn")
ATTENTIONS = ("auto", "sdpa", "eager", "flash_attention_2")
EAGER_UP_TO = 1 << 20
"""Rows × (longest row)² up to which `auto` takes eager attention on a CPU.

There, in bf16, PyTorch's fused attention spends longer on a batch of short rows than the plain products do: a step of
SmolLM2-135M took 0.84 times as long with eager on 8 rows of up to 231 tokens, 0.67 times on 16 rows of up to 36. But
eager keeps rows × heads × length² numbers a layer for the backward: about 3 GB for that model at most.
"""


def attention(setting: str, *, on_gpu: bool, rows: int, longest: int) -> str:
    """transformers' name of the attention for `model.attention`. rows: of a micro-batch."""
    if setting != "auto":
        return setting
    return "eager" if not on_gpu and rows * longest**2 <= EAGER_UP_TO else "sdpa"


def on_gpu(accelerator: str) -> bool:
    """Whether Lightning would train on a CUDA device."""
    if accelerator not in ("auto", "gpu", "cuda"):
        return False
    import torch  # a configuration is read without it

    return torch.cuda.is_available()
