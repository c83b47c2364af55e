"""The identity of a job: which configuration it is, and so which folder it has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from qtarget.model.digest import fingerprint

NOT_IDENTITY = ("hydra", "output_dir", "tracker")
"""Where results go and who else sees them don't change a run."""


def config_container(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain data, without Hydra's own node."""
    visible = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    container = OmegaConf.to_container(visible, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def config_hash(cfg: DictConfig) -> str:
    """12 hex digits of what makes a run what it is."""
    identity = {key: value for key, value in config_container(cfg).items() if key not in NOT_IDENTITY}
    identity["target"].pop("about", None)
    for holder, key in _named_inputs(identity):
        holder[key] = fingerprint(holder[key])
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:12]


def register_resolvers() -> None:
    """${qtarget_job:} in hydra.run.dir: one folder per configuration, whatever launched it."""
    OmegaConf.register_new_resolver("qtarget_job", lambda *, _root_: config_hash(_root_), replace=True)


def _named_inputs(identity: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """(mapping, key) of everything in a configuration that names what is read from disk."""
    for holder in (identity["model"], *(identity.get("references") or {}).values()):
        if isinstance(holder, dict) and holder.get("name"):
            yield holder, "name"
    for node in (identity["data"], *_judged(identity["eval"])):
        source = node.get("source") if isinstance(node, dict) else None
        if isinstance(source, dict) and source.get("path"):
            yield source, "path"


def _judged(node: dict[str, Any]) -> list[Any]:
    """What is read beside the held-out rows."""
    benchmarks = node["benchmarks"]
    return [node["retention"], *(benchmarks.values() if isinstance(benchmarks, dict) else ())]
