"""A design from a yaml file, wherever it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from qtarget.config.composing import (
    compose_config,
    conf_dir,
    config_container,
    instantiate_design,
    load_design,
    search_path,
)
from qtarget.errors import QTargetError

SUFFIXES = (".yaml", ".yml")


def design_of(design: Any) -> Any:
    """A design from its name, the path of its yaml, or itself.

    A path is that of FOLDER/target/NAME.yaml, with a defaults list as in conf/target; of a yaml that names `_target_`
    for every part; or a run's config.yaml. Raises QTargetError for anything else.
    """
    if isinstance(design, Path) or (isinstance(design, str) and design.endswith(SUFFIXES)):
        return _from_file(Path(design).expanduser())
    if isinstance(design, str):
        return load_design(design)
    if callable(design):
        return design
    raise QTargetError(
        f"a design is a name (qtarget.list_designs() lists them), the path of a yaml, or what qtarget.load_design "
        f"gives; got {type(design).__name__}"
    )


def _from_file(path: Path) -> Any:
    node = _read(path)
    node = node["target"] if isinstance(node.get("target"), dict) else node
    if "defaults" in node:
        return instantiate_design(_composed(path.resolve()))
    if "_target_" not in node:
        raise QTargetError(
            f"{path} is no design: it has neither a defaults list, as the files of conf/target have, nor _target_"
        )
    return instantiate_design(node)


def _read(path: Path) -> dict[str, Any]:
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise QTargetError(f"can't read the design {path}: {error}") from error
    if not isinstance(node, dict):
        raise QTargetError(f"{path} is no design: it holds {type(node).__name__}, not keys")
    return node


def _composed(path: Path) -> dict[str, Any]:
    """Of a yaml with a defaults list: its parts are looked for beside it, and among ours."""
    ours = conf_dir() / "target" / path.name
    if path.parent.name != "target" or path.suffix != ".yaml":
        raise QTargetError(
            f"{path} has a defaults list, whose parts are looked for in FOLDER/target: move it to "
            f"{path.parent / 'target' / path.stem}.yaml, with parts of its own in target/reliance and its neighbours"
        )
    if ours.is_file() and ours.resolve() != path:
        raise QTargetError(f"a design that ships with qtarget is called {path.stem!r} too: give {path} another name")
    folder = search_path([f"file://{path.parents[1]}"])
    target: dict[str, Any] = config_container(compose_config("design", [f"target={path.stem}", folder]))["target"]
    return target
