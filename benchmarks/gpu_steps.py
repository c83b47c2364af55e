"""Part steps: an optimizer step of SmolLM2-135M, and of a model of 1.5B parameters, beside plain SFT's."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import steps
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from qtarget.model import provide

SHAPE = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
"""Of Qwen2.5-1.5B (its config.json); the weights are drawn at random, a step takes as long on any."""
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 1, "vocab_size": 512, "tie_word_embeddings": True}
NAMES = ("sft", "dft", "asft, live prior", "asft, cached hidden states", "target_sft, live teacher")
CACHED_AIM = "≤ 1.05"
LARGE = ("sft", "dft", "asft, cached hidden states")


def measure(device: str, quick: bool, keep: Any) -> None:
    rounds, model = (1, "model=tiny") if quick else (7, "model=smollm2_135m")
    rows = steps.Rows("arithmetic", 2) if quick else steps.Rows("gsm_symbolic", 32)
    more = (model, f"trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}", *steps.engine(quick))
    keep(
        caption("the tiny model" if quick else "SmolLM2-135M", rows, rounds),
        measured(rows, rounds, NAMES[:2] if quick else NAMES, more),
    )
    with tempfile.TemporaryDirectory() as folder:
        shaped(Path(folder), quick, "tiny" if quick else "smollm2_135m")
        rows = steps.Rows("arithmetic" if quick else "gsm_symbolic", 2 if quick else 8)
        more = ("model=path", f"model.name={folder}", *more[1:])
        title = "a model of the shape of Qwen2.5-1.5B, drawn at random"
        keep(caption(title, rows, rounds), measured(rows, rounds, LARGE[:2] if quick else LARGE, more))


def measured(rows: steps.Rows, rounds: int, names: Sequence[str], more: Sequence[str]) -> list[dict[str, Any]]:
    found = steps.measure(rows, rounds, names, more)
    return [{**row, "aim": CACHED_AIM if "cached" in str(row["variant"]) else row["aim"]} for row in found]


def caption(model: str, rows: steps.Rows, rounds: int) -> str:
    read = f"{rows.batch_size} rows of {rows.data} a step"
    how = f"every variant in turn on the same batch, ratios in the median of {rounds} rounds"
    return f"{model}, all weights trained, bf16-mixed, {read}; {how}"


def shaped(folder: Path, quick: bool, tokenizer: str) -> None:
    """A folder with a model of the shape, and the tokenizer of another one: its ids are a part of the vocabulary."""
    config = Qwen2Config(**(SMALL if quick else SHAPE), max_position_embeddings=2048)
    with torch.device("cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    provide.load_tokenizer(provide.resolve(tokenizer)).save_pretrained(folder)
