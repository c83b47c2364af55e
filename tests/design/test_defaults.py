"""A part made in Python without its numbers is the part that a yaml names; each number has its limits."""

from __future__ import annotations

import importlib
from collections import defaultdict
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from qtarget.design import objective, reliance, residual, weight
from qtarget.errors import QTargetError

PARTS: dict[str, list[dict[str, Any]]] = defaultdict(list)
"""Class → its yaml files."""
for path in sorted((Path(__file__).parents[2] / "conf" / "target").glob("*/*.yaml")):
    node = yaml.safe_load(path.read_text())
    PARTS[node.pop("_target_")].append(node)


def annealed(value: object, default: object) -> bool:
    """A schedule where Python's default is a number: what a yaml adds for training."""
    return isinstance(value, str) and isinstance(default, float)


@pytest.mark.parametrize("name", PARTS)
def test_a_parts_defaults_are_those_of_one_of_its_yaml_files(name: str) -> None:
    module, _, cls = name.rpartition(".")
    defaults = {
        field.name: field.default
        for field in fields(getattr(importlib.import_module(module), cls))
        if field.init and field.default is not MISSING
    }
    shipped = [
        {
            field: node[field]
            for field, default in defaults.items()
            if field in node and not annealed(node[field], default)
        }
        for node in PARTS[name]
    ]
    assert any(node.items() <= defaults.items() for node in shipped), (defaults, shipped)


LEGAL: list[tuple[type, str, float, float | None]] = [
    (objective.JensenShannon, "beta", 0, 1),
    (objective.SkewKL, "alpha", 0, 0.99),
    (objective.SkewReverseKL, "alpha", 0, 0.99),
    (objective.TemperedKL, "temperature", 1e-2, None),
    (objective.Unlikelihood, "floor", 1e-7, 1),
    (reliance.Constant, "value", 0, 1),
    (reliance.Smoothing, "smoothing", 0, 1),
    (reliance.Power, "alpha", 0, None),
    (reliance.OneMinus, "power", 0, None),
    (reliance.OneMinus, "floor", 0, 1),
    (reliance.Threshold, "threshold", 0, 1),
    (reliance.Threshold, "alpha", 0, None),
    (reliance.LogOdds, "ceiling", 0.6, 1),
    (reliance.RandomDrop, "drop", 0, 1),
    (reliance.MassAbove, "threshold", 0, 1),
    (reliance.Tempered, "floor", 0, 1),
    (reliance.ExcessLoss, "keep", 0, 1),
    (reliance.EntropyPower, "beta", 1e-6, None),
    (reliance.EntropyPower, "ramp", 0, 1),
    (reliance.Gibbs, "beta", 0, 80),
    (reliance.Gibbs, "floor", 0, 1),
    (reliance.Concentration, "eps", 0, None),
    (residual.Guided, "eta", 0, 1),
    *((residual.Pool, exponent, -100, 100) for exponent in ("policy", "prior", "teacher")),
    (residual.Sharpened, "beta", 1e-2, None),
    (weight.Constant, "value", 0, None),
    (weight.SequenceRatio, "temperature", 0, None),
    (weight.ProximalRatio, "epsilon", 0, None),
    (weight.Inverse, "clip", 0, None),
    (weight.HighestEntropy, "keep", 0, 1),
    (weight.Position, "first", 0, None),
    (weight.Position, "last", 0, None),
    (weight.HalfPenalty, "strength", 0, 1),
    (weight.HalfPenalty, "mass", 0, 1),
    (weight.FocalGradient, "gamma", 0, None),
]
"""Class, field, the lowest and the highest legal number; None: no end above."""


@pytest.mark.parametrize(
    ("cls", "field", "low", "high"), LEGAL, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_a_number_on_its_limit_is_legal_and_one_beyond_is_refused(
    cls: type, field: str, low: float, high: float | None
) -> None:
    assert getattr(cls(**{field: low}), field) == low
    assert getattr(cls(**{field: 1000.0 if high is None else high}), field) == (high or 1000.0)
    for beyond in [low - 1e-9, *([] if high is None else [high + 1e-9])]:
        with pytest.raises(QTargetError, match=field):
            cls(**{field: beyond})
