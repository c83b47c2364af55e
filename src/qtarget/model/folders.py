"""Which folder a model name stands for."""

from __future__ import annotations

import json
from pathlib import Path

from qtarget.errors import QTargetError

OUTPUTS = ("outputs",)
"""Where runs lie unless output_dir says otherwise: a name below it is never asked of the hub."""


def names_a_folder(name: str) -> bool:
    """A path, rather than the name of a hub model (OWNER/NAME): it exists here, or is written as only a path is."""
    path = Path(name)
    return name.startswith((".", "/", "~")) or len(path.parts) > 2 or path.exists() or path.parts[0] in OUTPUTS


def model_folder(name: str) -> Path:
    """The model in a folder: the folder itself, a run's `checkpoint`, or that of the only finished run below it."""
    path = Path(name).expanduser()
    for folder in (path, path / "checkpoint"):
        if (folder / "config.json").is_file():
            return folder
    found = [run.parent for run in sorted(path.glob("*/result.json")) if _has_model(run)]
    if len(found) == 1:
        return found[0] / "checkpoint"
    if found:
        raise QTargetError(f"{path} holds {len(found)} finished runs; name one: {', '.join(map(str, found))}")
    raise QTargetError(
        f"no model at {path}: expected a folder with config.json (as save_pretrained writes), a run's folder, or a "
        "folder with one finished run"
    )


def _has_model(result: Path) -> bool:
    finished = json.loads(result.read_text()).get("status") == "finished"
    return finished and (result.parent / "checkpoint" / "config.json").is_file()
