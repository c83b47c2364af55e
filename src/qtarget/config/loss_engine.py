"""Which way the loss runs: eagerly, or through torch.compile. It is never another objective, and always recorded."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from qtarget.errors import QTargetError

CHOICES = ("auto", "on", "off")
AUTO = "auto"
PRODUCTS = (AUTO, "torch", "onednn")
PAYS_FROM = 6e9
"""Scored tokens × vocabulary from which, on a CPU, the compiled loss has saved the time it took to compile.

Compiling took 4 to 20 s, most of it once in a process. A scored token × vocabulary entry costs 1.7 ns processor time
less where only the label is pulled (dft), 7 to 9 ns where a residual is (label_smoothing, target_sft). Spread over two
cores that earns back 10 s at 12e9 and at 2.2e9 to 2.9e9; this stands between, on a logarithmic scale.
"""


@dataclass(frozen=True)
class Engine:
    """Whether the loss is compiled, and how to describe that to a user."""

    compiled: bool
    description: str


def choose(setting: str, *, on_gpu: bool, scored: float) -> Engine:
    """The engine for `loss.compile`. scored: supervised tokens of the whole run × vocabulary.

    Raises QTargetError where compilation is asked for and there is no C++ compiler.
    """
    missing = not on_gpu and compiler() is None
    if setting == "on" and missing:
        raise QTargetError(
            "loss.compile=on needs a C++ compiler (g++, clang++ or CXX=…) and there is none: install one"
        )
    if setting == "on" or (setting == "auto" and on_gpu):
        return Engine(True, "compiled")
    if setting == "off":
        return Engine(False, "eager")
    if missing:
        return Engine(False, "eager: no C++ compiler")
    return Engine(True, "compiled") if scored >= PAYS_FROM else Engine(False, "eager: too short for compiling to pay")


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


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use on a CPU."""
    compilers = (shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
    return next(filter(None, compilers), None)


def on_gpu(accelerator: str) -> bool:
    """Whether Lightning would train on a CUDA device."""
    if accelerator not in ("auto", "gpu", "cuda"):
        return False
    import torch  # a configuration is read without it

    return torch.cuda.is_available()
