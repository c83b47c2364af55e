"""Values of parts: each key of a composed configuration whose class is qtarget's, checked under its own dotted name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from qtarget.config.composing import MOVED, located, nearest
from qtarget.config.names import nodes
from qtarget.errors import QTargetError
from qtarget.settings import check_values, settings_of

DOCUMENTED = "about"
"""Key of a target that says what it is."""


def check_parts(config: Mapping[str, Any]) -> None:
    """Raise QTargetError for a key that a part hasn't, and for a value that it can't be. config: resolved, plain data.

    What a class of the user's takes is that class's to say, and references.py says it of a reference.
    """
    references = {f"references.{role}" for role in config.get("references", ())}
    for dotted, node in nodes(config):
        path = str(node.get("_target_", ""))
        if path.startswith("qtarget.") and dotted not in references:
            _check(dotted, located(f"{dotted}._target_", MOVED.get(path, path)), node)


def _check(dotted: str, part: Any, node: Mapping[str, Any]) -> None:
    if not isinstance(part, type) or not any(settings_of(part)):
        return
    known = [one.name for one in fields(part) if one.init]
    for key in node:
        if key not in known and not key.startswith("_") and key != DOCUMENTED:
            raise QTargetError(f"unknown key '{dotted}.{key}'{nearest(key, known)}")
    check_values(dotted, part, node)
