"""Parts by the class that their yaml names, ours or the user's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtarget import checks
from qtarget.config.composing import instantiate
from qtarget.errors import QTargetError
from qtarget.record.record import Tracker


def make_part(key: str, node: Any) -> Any:
    """What a node of the configuration describes. key: its dotted key.

    Raises QTargetError for a node without `_target_`, and a class that can't be imported or made.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise QTargetError(f"{key} names no class: write _target_: MODULE.CLASS into its yaml")
    return instantiate(node)


def make_tracker(node: Any) -> Tracker:
    """The tracker of a run. Raises QTargetError, as above, and where it lacks a method of `Tracker`."""
    tracker: Tracker = make_part("tracker", node)
    checks.implements("tracker", tracker, Tracker)
    return tracker
