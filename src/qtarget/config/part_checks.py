"""Values of parts: each key of a composed configuration whose class is qtarget's, checked under its own dotted name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig

from qtarget.config.composing import (
    MOVED,
    check_is_design,
    compose_target,
    conf_dir,
    instantiate_design,
    located,
    nearest,
    options,
    user_conf_dir,
)
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
    if target := config.get("target"):
        check_is_design(target, _chosen_target())
    for dotted, node in nodes(config):
        path = str(node.get("_target_", ""))
        if path.startswith("qtarget.") and dotted not in references:
            _check(dotted, located(f"{dotted}._target_", MOVED.get(path, path)), node)


def checked_design(name: str, changes: Sequence[str]) -> Any:
    """The design of a yaml, with overrides as `compose_target` takes them. Raises QTargetError as `check_parts`."""
    target = compose_target(name, changes)
    check_is_design(target, name)
    check_parts({"target": target})
    return instantiate_design(target)


def _chosen_target() -> str | None:
    """Of the job that Hydra runs; None outside of one."""
    return HydraConfig.get().runtime.choices.get("target") if HydraConfig.initialized() else None


def _check(dotted: str, part: Any, node: Mapping[str, Any]) -> None:
    if not isinstance(part, type) or not any(settings_of(part)):
        return
    known = [one.name for one in fields(part) if one.init]
    for key in node:
        if key not in known and not key.startswith("_") and key != DOCUMENTED:
            raise QTargetError(f"unknown key '{dotted}.{key}'{nearest(key, known)}{_options_with(dotted, key)}")
    check_values(dotted, part, node)


def _options_with(dotted: str, key: str) -> str:
    """The options of a design's part that have a key, and how one is chosen; empty where there are none."""
    group, _, part = dotted.partition(".")
    having = [name for name in options(f"target/{part}") if key in _option_keys(f"target/{part}", name)]
    if group != "target" or not having:
        return ""
    return (
        f". Options with {key}: {', '.join(having)}; write `override {part}: {having[0]}` into the defaults of the "
        f"yaml, or target/{part}={having[0]}"
    )


def _option_keys(group: str, name: str) -> list[str]:
    """The keys that the yaml of an option sets itself."""
    folders = filter(None, (conf_dir(), user_conf_dir()))
    files = (folder / group / f"{name}.yaml" for folder in folders)
    node = yaml.safe_load(next(file for file in files if file.is_file()).read_text(encoding="utf-8"))
    return [str(key) for key in node] if isinstance(node, dict) else []
