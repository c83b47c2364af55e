"""What a launcher is: a class of ours or of the user's, by the `_target_` of conf/hydra/launcher/NAME.yaml."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from qtarget.checks import class_name, implements
from qtarget.errors import QTargetError
from qtarget.launch.announcing import Announcer, JobChecks
from qtarget.launch.outcome import Outcome

if TYPE_CHECKING:
    from qtarget.launch.slots import Job


class JobsLauncher(Launcher):
    """A process of its own for every job of a multirun, which is `qtarget train` with the job's overrides.

    A subclass has `run`, and an `__init__` that takes what its yaml sets, as plain values.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What became of each job stands in the task's `outcomes`; a failed one doesn't stop the others."""
        from qtarget.launch.slots import Job

        if self.config.trainer.dry:
            raise QTargetError("trainer=dry runs nothing and needs no launcher: leave hydra/launcher=… out")
        check_no_agent()
        settings = [self._composed(list(overrides), initial_job_idx + n) for n, overrides in enumerate(job_overrides)]
        jobs = [
            Job.from_config(config, list(overrides)) for config, overrides in zip(settings, job_overrides, strict=True)
        ]
        outcomes: Any = self.task.outcomes  # type: ignore[attr-defined]
        outcomes += self._checked(jobs, self.run(jobs))
        return [JobReturn(overrides=overrides, status=JobStatus.COMPLETED) for overrides in job_overrides]

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run those that aren't finished. Returns what became of each, in their order.

        A job has `command`, what to start in the working folder; `finished`, whether its folder holds the result
        already; `folder`; and `label`. Its outcome is `qtarget.launch.slots.outcome(job, exit_code)`, or one in your
        words: `Outcome(job.folder, job.label, error)`.
        """

    def _composed(self, overrides: list[str], number: int) -> DictConfig:
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        config.hydra.job.num = number
        return config

    def _checked(self, jobs: Sequence[Job], outcomes: Any) -> list[Outcome]:
        returned = list(outcomes) if isinstance(outcomes, list | tuple) else []
        if len(returned) == len(jobs) and all(isinstance(outcome, Outcome) for outcome in returned):
            return returned
        raise QTargetError(
            f"{class_name(self)}.run returns a list with the qtarget.launch.outcome.Outcome of each of {len(jobs)} "
            f"jobs, got {type(outcomes).__name__}{f' of {len(returned)}' * bool(returned)}"
        )


def check_no_agent() -> None:
    """Raise QTargetError for a multirun that a W&B agent started: all of its jobs would be the agent's one run."""
    from qtarget.record.wandb_sweep import under_agent

    if under_agent():
        raise QTargetError(
            "a W&B agent started this multirun (WANDB_SWEEP_ID and WANDB_RUN_ID are set), and its jobs would overwrite "
            "each other in one run: let the sweep say what varies, and leave -m and experiments that are multiruns away"
        )


@contextmanager
def launchers_by_class() -> Iterator[None]:
    """Meanwhile hydra/launcher=NAME may name a `JobsLauncher` of any module.

    Hydra (1.3.8, 1.4.0rc3) makes only those of the package hydra_plugins, which it imports as a whole when it starts.
    """
    plugins: Any = Plugins.instance()
    original = plugins.instantiate_launcher

    def instantiate_launcher(hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> Launcher:
        node = config.hydra.launcher
        if node and str(node.get("_target_")) in plugins.class_name_to_class:
            launcher: Launcher = original(hydra_context=hydra_context, task_function=task_function, config=config)
        else:
            launcher = _users_launcher(node)
            launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        return announced(launcher, hydra_context, task_function, config)

    plugins.instantiate_launcher = instantiate_launcher  # of this one object
    try:
        yield
    finally:
        plugins.instantiate_launcher = original


def announced(launcher: Launcher, context: HydraContext, task: TaskFunction, config: DictConfig) -> Launcher:
    """The launcher, which looks at all of its jobs before it starts one; the task has an `Announcer` from then on."""
    checks, launch = JobChecks(context), launcher.launch

    def launch_checked(job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        if len(job_overrides) == 1:
            return launch(job_overrides, initial_job_idx=initial_job_idx)
        announcer, folder = Announcer.of(job_overrides, checks.of(config, job_overrides)), Path(config.output_dir)
        if config.trainer.dry:
            launched = launch(job_overrides, initial_job_idx=initial_job_idx)
            announcer.say_what_is_written(folder)
            announcer.say_what_a_choice_lacks()
            return launched
        task.announcer = announcer  # type: ignore[attr-defined]
        announcer.say_what_cannot_run()
        announcer.say_what_is_written(folder)
        announcer.say_what_a_choice_lacks()
        return launch(job_overrides, initial_job_idx=initial_job_idx)

    launcher.launch = launch_checked  # type: ignore[method-assign]
    return launcher


def _users_launcher(node: Any) -> JobsLauncher:
    from qtarget.config.parts import make_part

    launcher = make_part("hydra.launcher", node)
    if not isinstance(launcher, JobsLauncher):
        raise QTargetError(
            f"hydra.launcher: {class_name(launcher)} is no launcher: derive it from {class_name(JobsLauncher)}, with "
            "run(jobs)"
        )
    implements("hydra.launcher", launcher, JobsLauncher)
    return launcher
