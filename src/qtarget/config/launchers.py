"""What launchers of multiruns are told: `hydra/launcher=NAME`, and its keys below hydra.launcher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from qtarget.settings import FLAG, ByName, Either, Listed, Nullable, Number, Part, Text, Whole, setting

LAUNCHER = "hydra.launcher"
NAME = Nullable(Text())
COUNT = Nullable(Whole(1))
MEMORY = Nullable(Number(0))
GPUS = Nullable(Either((Whole(0), Text("TYPE:COUNT"))))


@dataclass(frozen=True)
class SlotsSettings:
    """A process of this machine for every job, as many at once as there are slots."""

    NODE_KEY: ClassVar[str] = LAUNCHER
    slots: int | None = setting(None, COUNT, "jobs at once; null: one a CUDA device, or one where there is none")
    devices: Sequence[int] | None = setting(
        None, Nullable(Listed(Whole(0))), "CUDA devices, such as [0, 1]; null: all that are visible"
    )
    retry: int = setting(0, Whole(0), "how often a job that crashed is started again; bad input is not")


@dataclass(frozen=True)
class SlurmSettings:
    """A Slurm job array, a GPU a job. The names are those of submitit's plugin for Hydra."""

    NODE_KEY: ClassVar[str] = LAUNCHER
    submitit_folder: str = setting(
        "${hydra.sweep.dir}/.submitit/%j", Text("a folder"), "scripts and first output of the jobs; all nodes see it"
    )
    name: str = setting("qtarget", Text(), "of the jobs")
    timeout_min: int = setting(
        240, Whole(1), "minutes; a job that needs more saves its state, is queued again, goes on"
    )
    max_num_timeout: int = setting(20, Whole(0), "how often it is queued again")
    signal_delay_s: int = setting(120, Whole(0), "seconds before its time is up at which a job is told to stop")
    array_parallelism: int = setting(256, Whole(1), "jobs at once")
    gpus_per_node: int | str | None = setting(1, GPUS, "0: none, and the job sees none; null: not asked for")
    cpus_per_task: int | None = setting(None, COUNT, "cores")
    nodes: int = setting(1, Whole(1), "nodes of a job")
    tasks_per_node: int = setting(1, Whole(1), "processes; several devices of one node need one")
    mem_gb: float | None = setting(None, MEMORY, "GB of a node")
    mem_per_gpu: float | str | None = setting(None, Nullable(Text("Slurm's size")), "such as 32G")
    mem_per_cpu: float | str | None = setting(None, Nullable(Text("Slurm's size")), "such as 4G")
    cpus_per_gpu: int | None = setting(None, COUNT, "cores")
    gpus_per_task: int | str | None = setting(None, GPUS, "GPUs of a process")
    gres: str | None = setting(None, NAME, "generic resources, such as gpu:a100:2")
    partition: str | None = setting(None, NAME, "partition")
    qos: str | None = setting(None, NAME, "quality of service")
    account: str | None = setting(None, NAME, "account that is charged")
    constraint: str | None = setting(None, NAME, "features of the nodes")
    exclude: str | None = setting(None, NAME, "nodes that are left out")
    comment: str | None = setting(None, NAME, "comment")
    setup: Sequence[str] | None = setting(
        None, Nullable(Listed(Text())), "shell commands before the job, such as [module load cuda]"
    )
    stderr_to_stdout: bool = setting(True, FLAG, "one log for both")
    additional_parameters: Mapping[str, Any] = setting({}, ByName(Part("options of sbatch")), "further options")


@dataclass(frozen=True)
class RayInit:
    """Which Ray cluster: arguments of ray.init. `+hydra.launcher.ray.init.KEY=VALUE` adds others."""

    NODE_KEY: ClassVar[str] = "hydra.launcher.ray.init"
    address: str | None = setting(
        None, NAME, "of a running cluster, or auto; null: that of RAY_ADDRESS, or this machine alone"
    )


@dataclass(frozen=True)
class RayRemote:
    """What a job takes of the cluster: arguments of ray.remote. `+hydra.launcher.ray.remote.KEY=VALUE` adds others."""

    NODE_KEY: ClassVar[str] = "hydra.launcher.ray.remote"
    num_gpus: float = setting(1, Number(0), "GPUs of a job; 0: none")
    max_retries: int = setting(0, Whole(-1), "how often a job whose node was lost is started again; −1: always")


LAUNCHERS: dict[str, tuple[type, ...]] = {
    "slots": (SlotsSettings,),
    "submitit_slurm": (SlurmSettings,),
    "ray": (RayInit, RayRemote),
}
"""Option of hydra/launcher → what it is told."""
