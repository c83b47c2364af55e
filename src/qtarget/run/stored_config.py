"""The configuration that a run was trained with, from its record or from a model: read again, with overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from qtarget.config.composing import compose_config, config_container, nearest, options
from qtarget.config.heldout_changes import FILES
from qtarget.config.names import OF_A_RUN, as_typed
from qtarget.config.references import read_references
from qtarget.config.run_config import NODES, RunConfig
from qtarget.errors import QTargetError
from qtarget.evaluate.server_settings import ServerConfig
from qtarget.model import chat_template
from qtarget.model.fingerprint import model_folder, names_a_folder
from qtarget.model.gguf_file import is_gguf
from qtarget.record.record import stored_result
from qtarget.settings import Node

SERVED: type[Node] = ServerConfig
OF_EARLIER_RUNS: dict[str, type[Node]] = {kind.NODE_KEY: kind for kind in (*NODES, SERVED)}
"""Nodes of which an earlier run's record may know fewer keys."""


def run_config(where: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The training configuration that a checkpoint is read with."""
    cfg = trained_config(where, overrides, **{"optim.allow_bf16_rounding": True})  # nothing is trained
    nothing = {**cfg.eval.retention, "source": None}
    return replace(
        cfg,
        eval=replace(cfg.eval, kl_prior=True, benchmarks={}, retention=nothing),  # the prior is loaded, nothing asked
        data=cfg.data if _shares(cfg.data) else {**cfg.data, "heldout_rows": 0},
        trainer=replace(cfg.trainer, precision="32-true"),
    )


def trained_config(where: str, overrides: Sequence[str] = (), **changes: Any) -> RunConfig:
    """How a run was trained, or would be from a model, its references live and the policy what is to be looked at.

    changes: values by dotted key.
    """
    run = run_folder(where)
    composed = _of_model(where, overrides) if run is None else _of_run(run, overrides)
    for key, value in changes.items():
        _put(composed, key, value)
    return RunConfig.read(composed)


def check_not_trained_on(data: Mapping[str, Any], run: Path) -> None:
    """Raise QTargetError where rows are to be evaluated that the run was trained on.

    Of a share of the training rows a run trains on those behind its data.heldout_rows; runs of 0.1.0 did not.
    """
    trained = _saved(run / "config.yaml").get("data") or {}
    source, kept = trained.get("source") or {}, trained.get("heldout_rows")
    is_newer = source.get("_target_") == FILES or "heldout" in ((stored_result(run) or {}).get("mends") or {})
    if not is_newer or kept is None or not _shares(trained):
        return
    if data.get("source") != source or data.get("heldout_source"):
        return
    wanted = data.get("heldout_rows")
    if wanted is None or wanted > kept:
        raise QTargetError(
            f"the run in {run} held out {kept} rows and was trained on all others, so {wanted or 'all'} rows of its "
            f"share can't judge it: leave data.heldout_rows at {kept}, or name other rows with data.heldout_source"
        )


def _shares(data: Mapping[str, Any]) -> bool:
    """Whether held-out rows are a share of the training rows, so that how many are held out says what is trained on."""
    source = data.get("source") or {}
    is_default = source.get("_target_") == FILES and source.get("heldout_share", 0) is None
    shares = is_default or bool(source.get("heldout_share"))
    return shares and not source.get("heldout") and not data.get("heldout_source")


def _run_live(cfg: dict[str, Any]) -> None:
    """A few rows are read by the models themselves: no cache holds them, and a checkpoint's adapter is merged."""
    for role, node in read_references(cfg["references"]).items():
        cfg["references"][role] = node.live(cfg["model"]["name"]).container()


def run_folder(where: str) -> Path | None:
    """The folder of a run of qtarget; None for any other model. Raises QTargetError where there is no model."""
    if is_gguf(where) or not names_a_folder(where):
        return None
    folder = model_folder(where)
    is_run = folder.name == "checkpoint" and (folder.parent / "config.yaml").is_file()
    return folder.parent if is_run else None


def _of_model(where: str, overrides: Sequence[str]) -> dict[str, Any]:
    if any(override.partition("=")[0] == "model" for override in overrides):
        raise QTargetError("checkpoint=WHERE names the model: leave model=… away")
    cfg = config_container(compose_config("train", [*overrides, "model=path"]))
    cfg["model"]["name"] = where
    _run_live(cfg)
    return cfg


def _of_run(run: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """As the run was configured, with its trained weights as policy; its prior stays where training started."""
    cfg = _saved(run / "config.yaml")
    _run_live(cfg)
    for role, node in read_references(cfg["references"]).items():
        cfg["references"][role] = node.pinned(cfg["model"]["name"]).container()
    cfg["model"] |= {"name": str(run / "checkpoint"), "adapter": {}}
    if cfg["model"].get("chat_template") in chat_template.SHIPPED:
        cfg["model"]["chat_template"] = None  # the checkpoint has the one that was taught
    for override in sorted(overrides, key=lambda override: not _picks_option(override)):
        path, value = (_option if _picks_option(override) else _field)(cfg, override)
        _put(cfg, path, value)
    return cfg


def _put(cfg: dict[str, Any], key: str, value: Any) -> None:
    """Set a value by its dotted key."""
    *path, name = key.split(".")
    for part in path:
        cfg = cfg.setdefault(part, {})
    cfg[name] = value


def _at(cfg: Any, key: str) -> Any:
    """The value of a dotted key, None where there is none."""
    for part in key.split(".") if key else ():
        cfg = cfg.get(part) if isinstance(cfg, dict) else None
    return cfg


def _saved(file: Path) -> dict[str, Any]:
    """The configuration that a record holds, text as the text it is: OmegaConf's own reader takes 1e5 for a number."""
    saved = yaml.safe_load(file.read_text(encoding="utf-8"))
    numbers = {key: str(saved[key]) for key in OF_A_RUN if saved.get(key) is not None}  # in runs of earlier builds
    return config_container(saved | numbers)


def _picks_option(override: str) -> bool:
    """data=jsonl and reference@references.teacher=frozen, as against data.rows=8."""
    return bool(options(override.lstrip("+").partition("=")[0].partition("@")[0]))


def _option(cfg: dict[str, Any], override: str) -> tuple[str, Any]:
    key, _, _ = override.lstrip("+").partition("=")
    group, _, package = key.partition("@")
    path = package or group.replace("/", ".")
    value = _at(config_container(compose_config("train", [override])), path)
    if value is None or path == "model":
        raise QTargetError(
            f"{override} can't be changed: the run in {cfg['model']['name']} says it. Give a model's folder instead"
        )
    return path, value


def _field(cfg: dict[str, Any], override: str) -> tuple[str, Any]:
    override, is_new = override.removeprefix("+"), override.startswith("+")
    key, _, _ = override.partition("=")
    parent, _, name = key.rpartition(".")
    holder = _at(cfg, parent)
    known = list(map(str, holder if isinstance(holder, dict) else cfg))
    if parent in OF_EARLIER_RUNS:
        holder = {} if holder is None else holder
        known += [one.key for one in OF_EARLIER_RUNS[parent].settings()]
    if not isinstance(holder, dict) or (name not in known and not is_new):
        raise QTargetError(f"unknown key {key!r} in the run's config.yaml{nearest(name, known)}")
    return key, _value(override)


def _value(override: str) -> Any:
    """As `qtarget train` reads it."""
    try:
        return OverridesParser.create().parse_override(*as_typed([override])).value()
    except HydraException as error:
        raise QTargetError(f"{override} can't be read: {str(error).splitlines()[0]}") from error
