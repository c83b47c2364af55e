"""Which launcher made this process one of several."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qtarget.errors import QTargetError

if TYPE_CHECKING:
    from lightning.pytorch.plugins.environments import ClusterEnvironment


def environment() -> ClusterEnvironment | None:
    """Which launcher made this process one of several: torchrun (`start` sets its variables), srun, or None."""
    if {"RANK", "LOCAL_RANK"} <= set(os.environ) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from lightning.pytorch.plugins.environments import TorchElasticEnvironment  # torch comes in there

        return TorchElasticEnvironment()
    # of this step: an allocation for many tasks says nothing of a command that srun did not start
    return _slurm() if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 else None


def _slurm() -> ClusterEnvironment | None:
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    try:
        return SLURMEnvironment() if SLURMEnvironment.detect() else None
    except RuntimeError as error:  # srun was told of tasks in a way that leaves open where they are
        raise QTargetError(str(error)) from error
