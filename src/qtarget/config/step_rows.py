"""How many rows an optimizer step reads, however they are spread over devices: what of that is a run's identity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pkgutil import resolve_name
from typing import Any

SPREAD = ("batch_size", "accumulate", "devices", "num_nodes")
"""Keys of trainer whose product is the rows of a step."""


def without_devices(identity: dict[str, Any]) -> None:
    """Take out of a configuration how its steps are spread over devices: the same rows make the same run.

    A run on several devices stands as the one-device run whose micro-batches are as large, and as many more; one with
    rows_per_step has that number alone. A design that looks at micro-batches keeps everything: on other devices they
    are others. So do values that are refused later.
    """
    trainer = identity["trainer"]
    rows = trainer.pop("rows_per_step", None)
    spread = {key: trainer.get(key, 1) for key in SPREAD}
    if not all(isinstance(value, int) and value >= 1 for value in (*spread.values(), 1 if rows is None else rows)):
        trainer |= {} if rows is None else {"rows_per_step": rows}
        return
    ranks = spread["devices"] * spread["num_nodes"]
    if ranks == 1 and rows is None:
        return
    if looks_at_micro_batches(identity["target"]):
        trainer |= {} if rows is None else {"accumulate": rows // (spread["batch_size"] * ranks)}
        return
    if rows is None:
        trainer["accumulate"] = spread["accumulate"] * ranks
    else:
        trainer["rows_per_step"] = rows
        for key in ("batch_size", "accumulate"):
            trainer.pop(key, None)
    trainer |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}


def looks_at_micro_batches(target: Mapping[str, Any]) -> bool:
    """Whether a part of a design has the scope "batch", by its field or for good. Needs torch: it imports the parts."""
    return any(str(part.get("scope", _scope(str(part["_target_"])))) == "batch" for part in _parts(target))


def _parts(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from _parts(value)


def _scope(target: str) -> str:
    try:
        return str(getattr(resolve_name(target), "scope", ""))
    except (ImportError, AttributeError, ValueError):  # refused later, by its name
        return ""
