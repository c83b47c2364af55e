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
        run = test_runs.write_run(folder, design, f"{number:012x}", accuracy, history, seed=seed, config=config)
        write_spreads(run, values)


def write_spreads(run: Path, values: random.Random) -> None:
    """Histograms of two evaluations, and the bins of a reliability curve, the first of which hold no token."""
    ranges = {"reliance": 1.0, "weight": 4.0, "p": 1.0}
    lines = [
        {"step": step, "time": 1.0}
        | {
            f"histogram/{name}": {"low": 0.0, "high": high, "counts": [values.randint(0, 999) for _ in range(40)]}
            for name, high in ranges.items()
        }
        for step in (STEPS // 2, STEPS)
    ]
    (run / "histograms.jsonl").write_text("\n".join(map(json.dumps, lines)))
    bins = [
        {"low": place / 15, "high": (place + 1) / 15, "tokens": 9 * (place > 2), "confidence": None, "accuracy": None}
        | ({"confidence": (place + 0.5) / 15, "accuracy": values.random()} if place > 2 else {})
        for place in range(15)
    ]
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"calibration": bins}))


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
