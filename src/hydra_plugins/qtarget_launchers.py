"""hydra/launcher=slots, submitit_slurm, ray. Hydra finds launchers in packages of this name only: qtarget.launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from qtarget.config.launchers import LAUNCHER, RayInit, RayRemote, SlotsSettings, SlurmSettings
from qtarget.launch.launcher import JobsLauncher
from qtarget.settings import check_values

if TYPE_CHECKING:
    from qtarget.launch.outcome import Outcome
    from qtarget.launch.slots import Job


class SlotsLauncher(JobsLauncher):
    """A queue over slots of this machine."""

    def __init__(self, slots: int | None = None, devices: Sequence[int] | None = None, retry: int = 0) -> None:
        given = _plain({"slots": slots, "devices": devices, "retry": retry})
        check_values(LAUNCHER, SlotsSettings, given)
        self.slots, self.devices, self.retry = slots, devices, retry

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        from qtarget.launch.slots import make_slots, run_jobs

        return run_jobs(jobs, make_slots(self.slots, self.devices), self.retry)


class SlurmLauncher(JobsLauncher):
    """A Slurm job array. settings: submitit's, under the names that its Hydra plugin gives them."""

    def __init__(self, **settings: Any) -> None:
        self.settings = _plain(settings)
        check_values(LAUNCHER, SlurmSettings, self.settings)

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        from qtarget.launch.slurm import run_on_slurm

        return run_on_slurm(jobs, self.settings)


class RayLauncher(JobsLauncher):
    """Tasks of a Ray cluster. ray: what ray.init and ray.remote are given."""

    def __init__(self, ray: DictConfig) -> None:
        self.ray = _plain(ray)
        for part in (RayInit, RayRemote):
            check_values(part.NODE_KEY, part, self.ray.get(part.NODE_KEY.rpartition(".")[2]) or {})

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        from qtarget.launch.ray import run_on_ray

        return run_on_ray(jobs, **self.ray)


def _plain(settings: Any) -> dict[str, Any]:
    made = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)
    assert isinstance(made, dict)
    return {str(key): value for key, value in made.items()}
