"""Whose probability a part reads: wherever a rule uses one, its source is a field."""

from __future__ import annotations

from collections.abc import Mapping

from qtarget import checks

SOURCES = ("policy", "prior", "teacher", "old")


def check(value: object, legal: tuple[str, ...] = SOURCES) -> None:
    """Raise unless `value` names a distribution that holds a probability of the label."""
    checks.choice("source", value, legal)


def label_needs(source: str) -> Mapping[str, str]:
    """What a part needs that reads only scalars of `source`."""
    return {} if source == "policy" else {source: "label"}


def shown(source: str) -> str:
    """p(y) in words, where it is not the policy's."""
    return "p(y)" if source == "policy" else f"p_{source}(y)"
