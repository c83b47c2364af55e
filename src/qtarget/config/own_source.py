"""The source of parts that a configuration names outside the package: an edited one makes another run."""

from __future__ import annotations

import importlib.util
import json
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

STDLIB = Path(sysconfig.get_path("stdlib")).resolve()


def own_sources(config: Mapping[str, Any]) -> dict[str, str]:
    """Module → 12 hex digits of its file, of every `_target_` whose module is neither qtarget's nor installed.

    It is the file that defines the part: what that imports in its turn is not looked at.
    """
    found = [_located(name) for name in sorted(set(_targets(config))) if not name.startswith("qtarget.")]
    return {module: sha256(file.read_bytes()).hexdigest()[:12] for module, file in filter(None, found)}


def edited_since(sources: Mapping[str, str], config_hash: str, folder: Path) -> list[str]:
    """What to say of a new run: which file was edited since which run, of those beside its folder, that is configured
    alike. config_hash: without the sources, as the record keeps it.
    """
    if not sources:
        return []
    lines = []
    for path in sorted(folder.parent.glob("*/result.json")):
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if path.parent.name != folder.name and before.get("hash_without_sources") == config_hash:
            edited = [name for name, digest in sources.items() if before.get("sources", {}).get(name) != digest]
            lines += [
                f"{name.replace('.', '/')}.py was edited since {path.parent}: this is a new run" for name in edited
            ]
    return lines


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        node = list(node.values())
    if isinstance(node, Sequence) and not isinstance(node, str):
        for value in node:
            yield from _targets(value)


def _located(target: str) -> tuple[str, Path] | None:
    """The module of `myparts.Floored` and its file, if that is the user's; a class may stand in another one."""
    module = target.rpartition(".")[0]
    while module:
        try:
            origin = getattr(sys.modules.get(module), "__file__", None) or _origin(module)
        except Exception:  # a package of the user's that can't be imported is refused where its part is made
            return None
        if origin and Path(origin).is_file():
            file = Path(origin).resolve()
            return None if _is_installed(file) else (module, file)
        module = module.rpartition(".")[0]
    return None


def _is_installed(file: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(file.parts)) or file.is_relative_to(STDLIB)


def _origin(module: str) -> str | None:
    try:
        return getattr(importlib.util.find_spec(module), "origin", None)
    except ModuleNotFoundError:
        return None
