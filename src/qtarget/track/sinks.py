"""Where a run's values go besides its own record: nowhere, or to Weights & Biases."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qtarget.errors import QTargetError

MODES = ("offline", "online", "shared", "disabled")


class Nothing:
    """The local record is enough."""

    def start(self, folder: Path, info: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        return None

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None: ...
    def finish(self, metrics: Mapping[str, float], *, failed: bool) -> None: ...


@dataclass
class Wandb:
    """A W&B run with the same values. offline writes beside the record (`wandb sync` uploads it later).

    The config is sent flattened to dotted keys, each group's choice under the group's name: a sweep that sets a group
    would otherwise destroy everything nested under it. A run that goes on after an end keeps its id.
    """

    project: str = "qtarget"
    entity: str | None = None
    mode: str = "offline"
    tags: Sequence[str] = ()
    _run: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise QTargetError(f"tracker.mode must be one of {', '.join(MODES)}, got {self.mode!r}")

    def start(self, folder: Path, info: Mapping[str, Any], config: Mapping[str, Any]) -> str:
        import wandb  # slow to import, and optional

        try:
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                mode=self.mode,  # type: ignore[arg-type]
                name=info["name"],
                id=info.get("tracked_as"),
                resume="allow" if info.get("tracked_as") and self.mode != "offline" else None,
                group=info["experiment"],
                job_type=info["role"],
                tags=list(self.tags),
                config=flatten(config) | dict(info["choices"]),
                dir=folder.absolute(),  # W&B's service may run in another folder
                reinit="finish_previous",
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise QTargetError(
                f"W&B did not start ({error}). tracker.mode=online needs an account: WANDB_API_KEY, or `wandb login`; "
                "tracker.mode=offline needs none, and `wandb sync` uploads later"
            ) from error
        self._run.define_metric("*", step_metric="step")
        if info.get("tracked_as") and self.mode == "offline":
            self._repeat(folder / "metrics.jsonl")
        return str(self._run.id)

    def _repeat(self, path: Path) -> None:
        """Log what earlier attempts have measured, so that this one's folder holds the whole run."""
        for line in path.read_text(encoding="utf-8").splitlines():
            measured = {name: math.nan if value is None else value for name, value in json.loads(line).items()}
            self._run.log({name: value for name, value in measured.items() if name != "time"})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        columns: list[str | int] = list(rows[0])
        self._run.log({name: wandb.Table(columns=columns, data=[list(row.values()) for row in rows])})

    def finish(self, metrics: Mapping[str, float], *, failed: bool) -> None:
        if self._run is None:
            return
        if self.mode == "offline":
            print(f"W&B: recorded offline, upload with: wandb sync {Path(self._run.dir).parent}")
        self._run.summary.update(dict(metrics))
        self._run.finish(exit_code=1 if failed else 0)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
