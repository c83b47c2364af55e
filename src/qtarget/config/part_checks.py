"""Values of parts: each key of a composed configuration whose class is qtarget's, checked under its own dotted name."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
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
from qtarget.config.names import is_ours, nodes
from qtarget.errors import QTargetError
from qtarget.settings import check_values, settings_of

DOCUMENTED = "about"
"""Key of a target that says what it is."""


def check_parts(config: Mapping[str, Any]) -> None:
    """Raise QTargetError for a part that names no class, a key that a part hasn't, and a value that it can't be.

    config: resolved, plain data; its target is left to `check_target`. Needs no torch. What a class of the user's takes
    is that class's to say, and references.py says it of a reference.
    """
    config = {key: node for key, node in config.items() if key != "target"}
    for group, dotted, node in _parts(config):
        _check_names_class(group, dotted, node)
    references = {f"references.{role}" for role in _node(config.get("references"))}
    _check_values(config, references)


def check_target(target: Mapping[str, Any], name: str | None = None) -> None:
    """The same of a target, whose parts are torch's. name: of its yaml; None: that of the job that Hydra runs."""
    check_is_design(target, name or _chosen("target"))
    _check_values({"target": target}, ())


def _check_values(config: Mapping[str, Any], but: Container[str]) -> None:
    for dotted, node in nodes(config):
        path = str(node.get("_target_", ""))
        if path.startswith("qtarget.") and dotted not in but:
            _check(dotted, located(f"{dotted}._target_", MOVED.get(path, path)), node)


def _parts(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(group of its options, dotted key, node) of every part that is built by its class, but a target's."""
    for group in ("optim", "tracker", "data"):
        yield group, group, config.get(group)
    data, evaluation = _node(config.get("data")), _node(config.get("eval"))
    yield "model/adapter", "model.adapter", _node(config.get("model")).get("adapter")
    for role, reference in _node(config.get("references")).items():
        yield "reference/flaw", f"references.{role}.flaw", _node(reference).get("flaw")
    sources = {f"data.{key}": data.get(key) for key in ("source", "heldout_source")}
    for name, benchmark in _node(evaluation.get("benchmarks")).items():
        sources[f"eval.benchmarks.{name}.source"] = _node(benchmark).get("source")
    sources["eval.retention.source"] = _node(evaluation.get("retention")).get("source")
    for dotted, node in sources.items():
        yield from _with_parts("data/source", dotted, node)
    yield from _with_parts("data/noise", "data.noise", data.get("noise"))


def _with_parts(group: str, dotted: str, node: Any) -> Iterator[tuple[str, str, Any]]:
    """A part and, of a mixture or a row of them that is qtarget's, those that it is made of."""
    yield group, dotted, node
    if is_ours(_node(node)):
        for name, part in _node(_node(node).get("parts")).items():
            yield from _with_parts(group, f"{dotted}.parts.{name}", part)


def _node(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _check_names_class(group: str, dotted: str, node: Any) -> None:
    """An empty node is what a group's `none` may be, and where something else stands the field itself says so."""
    if not isinstance(node, Mapping) or not node or isinstance(node.get("_target_"), str):
        return
    key = group if group.replace("/", ".") == dotted else f"{group}@{dotted}"
    name = _chosen(key)
    place = f"{key}={name}: conf/{group}/{name}.yaml" if name else f"{dotted}: its yaml, conf/{group}/NAME.yaml,"
    raise QTargetError(
        f"{place} has no _target_; write _target_: MODULE.CLASS, yours or one of {', '.join(_classes(group))}"
    )


def _classes(group: str) -> list[str]:
    """Those that the shipped options of a group name."""
    texts = [file.read_text(encoding="utf-8") for file in sorted((conf_dir() / group).glob("*.yaml"))]
    named = [str(node["_target_"]) for node in map(yaml.safe_load, texts) if node and "_target_" in node]
    return list(dict.fromkeys(named)) or ["qtarget.data.module.DataConfig"]


def checked_design(name: str, changes: Sequence[str]) -> Any:
    """The design of a yaml, with overrides as `compose_target` takes them. Raises QTargetError as `check_parts`."""
    return checked_target(name, compose_target(name, changes))


def checked_target(name: str, target: Mapping[str, Any]) -> Any:
    """The design of a composed target. Raises QTargetError as `check_parts`."""
    check_target(target, name)
    return instantiate_design(target)


def _chosen(group: str) -> str | None:
    """The option of a group that the job that Hydra runs has; None outside of one."""
    return HydraConfig.get().runtime.choices.get(group) if HydraConfig.initialized() else None


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
