"""hydra/launcher=slots. Hydra finds launchers in packages of this name only; what it does is in qtarget.app.slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SlotsLauncher(Launcher):
    """A process of its own for every job of a multirun, a queue over slots."""

    def __init__(self, slots: int | None = None, devices: Sequence[int] | None = None, retry: int = 0) -> None:
        self.slots, self.devices, self.retry = slots, devices, retry

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What became of each job stands in the task's `outcomes`; a failed one doesn't stop the others."""
        from qtarget.app.launch import check_no_agent
        from qtarget.app.slots import Job, run_jobs, slots
        from qtarget.errors import QTargetError

        if self.config.trainer.dry:
            raise QTargetError("trainer=dry runs nothing and needs no slots: leave hydra/launcher=slots out")
        check_no_agent()
        settings = [self._composed(list(overrides), initial_job_idx + n) for n, overrides in enumerate(job_overrides)]
        jobs = [Job.of(config, list(overrides)) for config, overrides in zip(settings, job_overrides, strict=True)]
        outcomes: Any = self.task.outcomes  # type: ignore[attr-defined]
        outcomes += run_jobs(jobs, slots(self.slots, self.devices), self.retry)
        return [JobReturn(overrides=overrides, status=JobStatus.COMPLETED) for overrides in job_overrides]

    def _composed(self, overrides: list[str], number: int) -> DictConfig:
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        config.hydra.job.num = number
        return config
