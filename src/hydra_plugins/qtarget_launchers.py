"""hydra/launcher=slots, submitit_slurm, ray. Hydra finds launchers in packages of this name only: qtarget.launch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from qtarget.launch.multirun import Outcome
    from qtarget.launch.slots import Job


class JobsLauncher(Launcher):
    """A process of its own for every job of a multirun, which is `qtarget train` with the job's overrides."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What became of each job stands in the task's `outcomes`; a failed one doesn't stop the others."""
        from qtarget.errors import QTargetError
        from qtarget.launch.multirun import check_no_agent
        from qtarget.launch.slots import Job

        if self.config.trainer.dry:
            raise QTargetError("trainer=dry runs nothing and needs no launcher: leave hydra/launcher=… out")
        check_no_agent()
        settings = [self._composed(list(overrides), initial_job_idx + n) for n, overrides in enumerate(job_overrides)]
        jobs = [Job.of(config, list(overrides)) for config, overrides in zip(settings, job_overrides, strict=True)]
        outcomes: Any = self.task.outcomes  # type: ignore[attr-defined]
        outcomes += self.run(jobs)
        return [JobReturn(overrides=overrides, status=JobStatus.COMPLETED) for overrides in job_overrides]

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """What became of each, in their order; finished ones are not run again."""

    def _composed(self, overrides: list[str], number: int) -> DictConfig:
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        config.hydra.job.num = number
        return config


class SlotsLauncher(JobsLauncher):
    """A queue over slots of this machine."""

    def __init__(self, slots: int | None = None, devices: Sequence[int] | None = None, retry: int = 0) -> None:
        self.slots, self.devices, self.retry = slots, devices, retry

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        from qtarget.launch.slots import run_jobs, slots

        return run_jobs(jobs, slots(self.slots, self.devices), self.retry)


class SlurmLauncher(JobsLauncher):
    """A Slurm job array. settings: submitit's, under the names that its Hydra plugin gives them."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        from qtarget.launch.slurm import run_on_slurm

        return run_on_slurm(jobs, _plain(self.settings))


class RayLauncher(JobsLauncher):
    """Tasks of a Ray cluster. ray: what ray.init and ray.remote are given."""

    def __init__(self, ray: DictConfig) -> None:
        self.ray = ray

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        from qtarget.launch.ray import run_on_ray

        return run_on_ray(jobs, **_plain(self.ray))


def _plain(settings: Any) -> dict[str, Any]:
    made = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)
    assert isinstance(made, dict)
    return {str(key): value for key, value in made.items()}
