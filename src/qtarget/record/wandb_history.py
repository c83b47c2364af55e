"""What W&B has of earlier attempts of a run that goes on, so that every row reaches it once.

`wandb sync` appends the rows of a folder to what the run has at the server. It leaves a marker beside the file that it
has sent, and skips a folder that has one (0.31.0). An attempt that goes on holds the whole run: the folders before it
get the marker too, so that they aren't sent. Where one has been sent already, its rows are not repeated.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtarget.errors import QTargetError

Row = tuple[int, frozenset[str]]
"""A row of a history: its step, and what it measures."""
MARKER = ".wandb.synced"
"""The marker of run-ID.wandb, which `wandb sync` leaves empty."""
REPLACED = "all of it is in "
"""What the marker begins with where it is ours."""


@dataclass(frozen=True)
class Sent:
    """rows: what W&B has been sent of a run. next_step: W&B's own number of the row that follows."""

    rows: frozenset[Row] = frozenset()
    next_step: int | None = None


def row(step: int, names: Iterable[str]) -> Row:
    return step, frozenset(names)


def earlier(folder: Path, run_id: str | None) -> list[Path]:
    """The files of the attempts so far of an offline run, oldest first."""
    return sorted(folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb")) if run_id else []


def sent(files: Iterable[Path]) -> Sent:
    """What W&B has of these, as its own reader of offline runs tells it."""
    items = [item for file in files if _is_synced(file) for item in _rows(file)]
    rows = frozenset(row(int(item["step"]), _names(item)) for item in items if "step" in item)
    return Sent(rows, max(int(item["_step"]) for item in items) + 1 if items else None)


def at_server(path: str) -> Sent:
    """What the server has of a run, ENTITY/PROJECT/ID. Raises QTargetError where it doesn't answer."""
    import wandb  # slow to import

    try:
        items = list(wandb.Api().run(path).scan_history())
    except (wandb.Error, ValueError) as error:
        raise QTargetError(
            f"W&B doesn't say which rows it has of {path} ({error}): some may stand there twice; the record is whole"
        ) from error
    return Sent(frozenset(row(int(item["step"]), _names(item)) for item in items if "step" in item))


def replace(files: Iterable[Path], by: Path) -> None:
    """Have `wandb sync` pass over what it hasn't sent: a newer attempt holds it too."""
    for file in files:
        if not _is_synced(file):
            _marker(file).write_text(f"{REPLACED}{by.name}\n", encoding="utf-8")


def _is_synced(file: Path) -> bool:
    marker = _marker(file)
    return marker.exists() and not marker.read_text(encoding="utf-8").startswith(REPLACED)


def _marker(file: Path) -> Path:
    return file.with_suffix(MARKER)


def _rows(file: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise QTargetError(
            f"what W&B has been sent of this run can't be read from {file} ({done.stderr.strip()[-200:]}): remove "
            f"{file.parent}, and this run at W&B, to have all of it sent again"
        )
    records = [json.loads(line) for line in done.stdout.split("\n") if line.startswith("{")]
    return [record["history"]["item"] for record in records if "history" in record]


def _names(item: Mapping[str, Any]) -> set[str]:
    """What a row measures; a histogram's parts stand for the whole."""
    names = {name for name in item if name != "step" and not name.startswith("_")}
    return {name.partition(".")[0] if name.startswith("histogram/") else name for name in names}
