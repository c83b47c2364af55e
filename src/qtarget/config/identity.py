"""The identity of a job: which configuration it is, and so which folder it has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qtarget.config.composing import config_container, register_resolver
from qtarget.config.heldout_changes import names_heldout_file
from qtarget.config.names import LABELS, as_hashed, model_nodes
from qtarget.config.own_source import own_sources
from qtarget.config.step_rows import without_devices
from qtarget.config.versions import sources, versions, without_unchanged
from qtarget.files import local_files
from qtarget.model import chat_template
from qtarget.model.fingerprint import fingerprint, sampled_digest

NOT_IDENTITY = (
    "hydra",
    "output_dir",
    "tracker",
    "resume",
    "checkpoint.every",
    "checkpoint.optimizer",
    "lens",
    "data.keep",
    "data.workers",
    "target.about",
    "trainer.device_tflops",
    "trainer.utilisation",
)
"""Where results go, who else sees them, in how many attempts it came about, what is left or shown of it, who prepares
the data and what a dry run reckons with don't change a run.
"""

RESULT = "result.json"

SERVED: tuple[Any, ...] = (None, {}, "ids")
"""Values of eval.server that stand for themselves."""


def job_hash(cfg: Mapping[Any, Any]) -> str:
    """`config_hash`; or the name that an earlier build gave the job, where its results lie under that name alone.

    checkpoint.optimizer, which changes no number, counted in those builds, and stood at true; so did the devices.
    """
    now, holder = config_hash(cfg), Path(str(cfg["output_dir"]), str(cfg["experiment_name"]))
    if (holder / now / RESULT).is_file() or not holder.is_dir():
        return now
    for options in _earlier_rules(cfg):
        earlier = config_hash(cfg, **options)
        if (holder / earlier / RESULT).is_file():
            return earlier
    return now


def _earlier_rules(cfg: Mapping[Any, Any]) -> list[dict[str, bool]]:
    """By which an earlier build may have named this job, as options of `config_hash`."""
    trainer = cfg.get("trainer") or {}
    checkpoint = cfg.get("checkpoint")
    kept = {True, isinstance(checkpoint, Mapping) and bool(checkpoint.get("optimizer"))}
    several = (trainer.get("devices", 1), trainer.get("num_nodes", 1)) != (1, 1)
    rules = [{"kept_optimizer": keeps, "by_devices": by} for by in {False, several} for keeps in kept]
    return [rule for rule in rules if rule != {"kept_optimizer": True, "by_devices": False}]


def config_hash(
    cfg: Mapping[Any, Any], *, with_sources: bool = True, kept_optimizer: bool = True, by_devices: bool = False
) -> str:
    """12 hex digits of what makes a run what it is. cfg: composed, as plain data or as Hydra's.

    with_sources: with the source of parts outside the package. kept_optimizer: what stands for checkpoint.optimizer,
    whatever it is. by_devices: with the devices that the rows of a step are spread over.
    """
    identity = config_container(cfg)
    for key in NOT_IDENTITY:
        _leave_out(identity, *key.split("."))
    identity |= {key: as_hashed(identity[key]) for key in LABELS if key in identity}
    _leave_out_server(identity["eval"])
    identity["checkpoint"] = _as_in_earlier_builds(identity.get("checkpoint"), kept_optimizer)
    if template := identity["model"].get("chat_template"):
        identity["model"]["chat_template"] = chat_template.content(template)
    own = own_sources(identity) if with_sources else {}
    without_unchanged(identity)
    if not by_devices:
        without_devices(identity)
    changed = versions(identity)
    for holder, key in _named_inputs(identity):
        holder[key] = fingerprint(holder[key])
    for source in (*sources(identity["data"]), *sources(identity["eval"])):
        source |= {key: _content(source[key]) for key in ("path", "files") if source.get(key)}
        if names_heldout_file(source):
            source["heldout"] = _content(source["heldout"])
    if isinstance(identity["data"].get("heldout_source"), str):
        identity["data"]["heldout_source"] = _content(identity["data"]["heldout_source"])
    identity |= {key: value for key, value in {"versions": changed, "sources": own}.items() if value}
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _as_in_earlier_builds(checkpoint: Any, kept_optimizer: bool) -> Any:
    """The node with what later builds write otherwise, to the same numbers."""
    if not isinstance(checkpoint, dict):
        return checkpoint
    dtype = checkpoint.get("dtype")
    return {**checkpoint, "dtype": "float32" if dtype == "trained" else dtype, "optimizer": kept_optimizer}


def _leave_out_server(node: dict[str, Any]) -> None:
    """Of eval.server what may change an answer stays: not where it is, nor how it is asked again."""
    engine, server = node.pop("engine", "local"), node.pop("server", None) or {}
    if engine != "local":
        changing = {key: server.get(key) for key in ("command", "extra", "prompts")}
        node |= {"engine": engine, "server": {key: value for key, value in changing.items() if value not in SERVED}}


def _leave_out(node: dict[str, Any], *path: str) -> None:
    for key in path[:-1]:
        node = node.get(key) or {}
        if not isinstance(node, dict):  # that it may not be set to a value is said later, in words
            return
    node.pop(path[-1], None)


def register_resolvers() -> None:
    """${qtarget_job:} in hydra.run.dir: one folder per configuration, whatever launched it."""
    register_resolver("qtarget_job", job_hash)


def _named_inputs(identity: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """(mapping, key) of everything in a configuration that names what is read from disk."""
    for holder in model_nodes(identity):
        if holder.get("name"):
            yield holder, "name"


def _content(named: Any) -> Any:
    """Names of data files and folders → what they hold; other names, of the hub, as they are."""
    if isinstance(named, dict):
        return {key: _content(value) for key, value in named.items()}
    if isinstance(named, list):
        return [_content(value) for value in named]
    path = Path(str(named)).expanduser()
    return {str(file.relative_to(path)): sampled_digest(file) for file in local_files(path)} or named
