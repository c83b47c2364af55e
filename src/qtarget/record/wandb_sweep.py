"""A W&B sweep as an agent and its runs see it: where it is, what it maximizes, and what its runs have in common."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qtarget.errors import QTargetError

BEST = {"maximize": "max", "minimize": "min"}
"""The goal of a sweep → the summary that W&B keeps of its metric."""
CONNECT = "set WANDB_API_KEY (or run `wandb login`), and WANDB_BASE_URL for a server of your own"
HOW_TO_CONNECT = f"Agents need a W&B account or server: {CONNECT}. Without one, `qtarget sweep FILE` runs the same file"


@dataclass(frozen=True)
class WandbSweep:
    """ENTITY/PROJECT/ID and the configuration it was made from."""

    path: str
    state: str
    config: Mapping[str, Any]

    @property
    def metric(self) -> str | None:
        return (self.config.get("metric") or {}).get("name")

    @property
    def best(self) -> str:
        """Which of a metric's values is the best, as W&B's summaries call it; a sweep minimizes unless it says so."""
        return BEST[self.config["metric"].get("goal", "minimize")]


def under_agent() -> bool:
    """A W&B agent started this process: the run's id, its sweep and its values are given."""
    return bool(os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"))


def find_sweep(path: str) -> WandbSweep:
    """Ask the server for a sweep, ENTITY/PROJECT/ID or with fewer parts where W&B knows the rest.

    Raises QTargetError without a key, a server that answers, or such a sweep.
    """
    import wandb  # slow to import

    try:
        sweep = wandb.Api().sweep(path)
    except wandb.Error as error:
        if isinstance(getattr(error, "exc", None), ValueError):
            raise QTargetError(
                f"no sweep {path}: {error}. `wandb sweep FILE` makes one, and prints its ENTITY/PROJECT/ID"
            ) from error
        raise QTargetError(f"W&B can't be asked for the sweep {path}: {error}. {HOW_TO_CONNECT}") from error
    return WandbSweep("/".join((sweep.entity, sweep.project, sweep.id)), str(sweep.state), sweep.config)


def states(path: str) -> dict[str, str]:
    """Run → its state, of a sweep's runs, as the server has them now. Raises QTargetError where it doesn't answer."""
    import wandb

    try:
        return {str(run.id): str(run.state) for run in wandb.Api().sweep(path).runs}
    except (wandb.Error, ValueError) as error:
        raise QTargetError(f"W&B can't be asked for the runs of {path}: {error}") from error


def unlogged(metric: str, logged: Iterable[str]) -> str | None:
    """What to say of a sweep's metric that is not among the names logged by the first validation; None where it is.

    A closing metric (test/…) comes at the end, and is known by its twin during training (val/…).
    """
    names = sorted(logged)
    if metric in names or metric.replace("test/", "val/", 1) in names:
        return None
    never = f"the sweep's metric {metric!r} is not logged: W&B can neither compare runs nor stop them"
    return f"{never}. Logged: {', '.join(names)}"
