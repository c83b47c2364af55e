"""The identity of a job: which configuration it is, and so which folder it has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from qtarget.errors import QTargetError
from qtarget.model.folders import model_folder, names_a_folder

NOT_IDENTITY = ("hydra", "output_dir", "tracker", "role")
"""Where results go, who else sees them and how they are labelled don't change a run."""


def config_container(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain data, without Hydra's own node."""
    visible = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    container = OmegaConf.to_container(visible, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def config_hash(cfg: DictConfig) -> str:
    """12 hex digits of what makes a run what it is."""
    identity = {key: value for key, value in config_container(cfg).items() if key not in NOT_IDENTITY}
    identity["files"] = [_fingerprint(path) for path in _input_files(identity)]
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:12]


def register_resolvers() -> None:
    """${qtarget_job:} in hydra.run.dir: one folder per configuration, whatever launched it."""
    OmegaConf.register_new_resolver("qtarget_job", lambda *, _root_: config_hash(_root_), replace=True)


def _input_files(identity: dict[str, Any]) -> Iterator[Path]:
    """Local files a run reads: their names in the configuration don't tell when what they hold has changed."""
    for holder in (identity["model"], *(identity.get("references") or {}).values()):
        name = holder.get("name") if isinstance(holder, dict) else None
        if name and names_a_folder(name):
            try:
                yield from sorted(model_folder(name).glob("*.safetensors"))
            except QTargetError:
                continue  # the job itself says what is missing, and how to get it
    rows = identity["data"]["source"].get("path")
    if rows and Path(rows).is_file():
        yield Path(rows)


def _fingerprint(path: Path) -> tuple[str, int, int]:
    """Place, size and time of change: a name that stands for another run's checkpoint resolves to another place."""
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns
