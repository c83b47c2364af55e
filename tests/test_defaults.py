"""A part made in Python without its numbers is the part that a yaml names."""

from __future__ import annotations

import importlib
from collections import defaultdict
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

PARTS: dict[str, list[dict[str, Any]]] = defaultdict(list)
"""Class → its yaml files."""
for path in sorted((Path(__file__).parents[1] / "conf" / "target").glob("*/*.yaml")):
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
