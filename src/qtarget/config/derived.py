"""Whether a design is one that ships with qtarget, or derived from it: then its formula may be another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qtarget.config.composing import compose_target, shipped_designs
from qtarget.record.runs import flatten

ABSENT = "none"


@dataclass(frozen=True)
class Derived:
    """name: of the shipped design. changed: KEY=VALUE (the shipped value), of the fields that differ."""

    name: str
    changed: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}, changed: {', '.join(self.changed)}"


def derived(target: Mapping[str, Any]) -> Derived | None:
    """What a composed `target` is derived from; None where it is as shipped, or has a formula of its own.

    A yaml that begins with a shipped one (`defaults: [dft, _self_]`), or a change on the command line, keeps its
    `about`: that tells where it comes from.
    """
    own = target.get("about") or {}
    origins = [name for name, about in shipped_designs().items() if own.get("formula") == about["formula"]]
    candidates = [Derived(name, tuple(_changed(target, name))) for name in origins]
    nearest = min(candidates, key=lambda one: len(one.changed), default=None)
    return nearest if nearest and nearest.changed else None


def _changed(target: Mapping[str, Any], name: str) -> Iterator[str]:
    ours, theirs = (
        {key: value for key, value in flatten(one).items() if not key.startswith("about.")}
        for one in (target, compose_target(name))
    )
    for key in dict.fromkeys((*theirs, *ours)):
        now, shipped = ours.get(key, ABSENT), theirs.get(key, ABSENT)
        if now != shipped:
            yield f"{key.removesuffix('._target_')}={_class(now)} (was {_class(shipped)})"


def _class(value: Any) -> str:
    """A class by its own name."""
    text = str(value)
    return text.rpartition(".")[2] if text.startswith("qtarget.") else text
