"""Folders of runs as a sweep over designs, noise rates and seeds leaves them: for pages of many runs."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import test_runs

DESIGNS = ("sft", "dft", "label_smoothing", "target_sft", "one_minus_prior")
LOGGED = ("train/loss", "train/nll", "train/entropy", "train/lr", "target/trust_clean", "target/trust_noisy")
LOGGED += ("target/reliance", "target/weight", "target/gap", "detection/auroc", "detection/average_precision")
EVALUATED = ("val/nll", "val/accuracy", "val/ece", "val/kl_prior", "val/length")
STEPS = 200


def write_many(
    folder: Path, designs: Sequence[str] = DESIGNS, rates: Sequence[float] = (0.0, 0.4), seeds: int = 5
) -> None:
    """One run for each design, rate and seed, with STEPS logged steps and an evaluation every tenth."""
    for number, (design, rate, seed) in enumerate((d, r, s) for d in designs for r in rates for s in range(seeds)):
        values = random.Random(number)
        config: dict[str, Any] = {"seed": seed, "data": {"noise": {"rate": rate}}, "target": {"name": design}}
        history = "\n".join(json.dumps(row) for row in _rows(values, designs.index(design), rate))
        accuracy = 0.9 - rate / 2 - designs.index(design) / 20 + values.gauss(0, 0.02)
        test_runs.write_run(folder, design, f"{number:012x}", accuracy, history, seed=seed, config=config)


def _rows(values: random.Random, design: int, rate: float) -> list[dict[str, float]]:
    rows, tokens = [], 0
    for step in range(1, STEPS + 1):
        level = (1 + design / 5) * math.exp(-step / 60) + rate + 0.05
        tokens += values.randint(3000, 5000)
        row = {"step": step, "time": 0.4 * step * values.uniform(0.95, 1.05)}
        row |= {"train/tokens": tokens, "train/supervised_tokens": tokens // 3}
        row |= {name: level * values.uniform(0.9, 1.1) / (1 + index) for index, name in enumerate(LOGGED)}
        if step % 10 == 0:
            row |= {name: level * values.uniform(0.9, 1.1) / (2 + index) for index, name in enumerate(EVALUATED)}
        rows.append(row)
    return rows
