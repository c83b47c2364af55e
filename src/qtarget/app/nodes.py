"""The nodes of a configuration as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def nodes(node: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted place, mapping): the node itself, and those below it; keys may be taken from what is given meanwhile."""
    yield place, node
    for key, value in list(node.items()):
        if isinstance(value, Mapping):
            yield from nodes(value, f"{place}.{key}".lstrip("."))
