"""Hydra around `run_job`: one job or a multirun, errors in plain words, and a summary of what came of it.

`qtarget train …` is `launch`. Hydra composes the configuration and calls the task of `_make_task` with it: once, or for
each job of a multirun. A launcher of processes (launcher.py) starts `qtarget train` for each job instead.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from qtarget.config.arguments import Arguments, parse_train_arguments
from qtarget.config.composing import (
    VERSION_BASE,
    check_keyed,
    compose_config,
    conf_dir,
    config_error,
    nearest,
    with_search_path,
)
from qtarget.config.identity import register_resolvers
from qtarget.config.names import as_typed
from qtarget.config.overrides import check_ranges
from qtarget.errors import FULL_ERROR, SET_FOR_HYDRA, QTargetError, with_tracebacks
from qtarget.launch.announcing import Announcer, print_results, speaks
from qtarget.launch.launcher import check_no_agent, launchers_by_class
from qtarget.launch.outcome import Outcome
from qtarget.launch.slots import check_composed_alike
from qtarget.run.rank_report import LostError
from qtarget.run.shared_models import sharing
from qtarget.uncollected import uncollected

if TYPE_CHECKING:
    from qtarget.run.rank_agreement import RankAgreement


def launch(words: Sequence[str]) -> int:
    """`qtarget train WORDS`. Returns the exit code."""
    arguments = parse_train_arguments(as_typed(words))
    check_keyed(arguments.overrides)
    register_resolvers()
    outcomes: list[Outcome] = []
    task = hydra.main(config_path=str(conf_dir()), config_name="train", **VERSION_BASE)
    raises = with_tracebacks()
    try:
        if arguments.runs:
            overrides = with_search_path(arguments.overrides, arguments.config_dir)
            arguments = arguments.with_multirun(check_ranges(overrides, multirun=arguments.multirun))
        with _hydra_raises(arguments), launchers_by_class(), sharing():
            task(_make_task(outcomes, raises))()
    except SystemExit as ended:
        if "--help" in arguments.options:
            from qtarget.config.manual import keys_and_meanings  # torch and transformers come in here

            print(keys_and_meanings())
        raise _package_error(ended, arguments) from ended
    except (HydraException, OmegaConfBaseException) as error:
        raise config_error(error, "train", with_search_path(arguments.overrides, arguments.config_dir)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        if outcomes:
            raise
        raise QTargetError(
            f"can't make the folder for results: {error}. Set output_dir=FOLDER to one you can write"
        ) from error
    return _summary(outcomes)


def _package_error(ended: SystemExit, arguments: Arguments) -> BaseException:
    """Hydra 1.3 ends with 1 where --package names nothing."""
    if not ended.code or arguments.package is None:
        return ended
    known = compose_config("train", with_search_path(arguments.overrides, arguments.config_dir))
    return QTargetError(f"--package {arguments.package}: no such part{nearest(arguments.package, map(str, known))}")


def _make_task(outcomes: list[Outcome], raises: bool) -> Callable[[Any], Any]:
    """The function Hydra runs per job. It notes what became of the job: one that fails doesn't stop the others."""

    def job(composed: Any) -> Any:
        from qtarget.run.environment import environment

        settings = HydraConfig.get()
        if settings.mode == RunMode.MULTIRUN:
            check_no_agent()
        folder = Path(settings.runtime.output_dir)
        folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        overrides = list(settings.overrides.task)
        choices = {group: option for group, option in settings.runtime.choices.items() if "hydra/" not in group}
        label = " ".join(overrides) or "defaults"
        of_ranks = _agreement(settings)
        try:
            with _announced(job, settings), of_ranks.agreeing() if of_ranks else nullcontext():
                result = _run_or_dry(composed, folder, choices, overrides, of_ranks)
            if result is None:
                return None
        except Exception as error:
            is_one = bool(environment()) and of_ranks is None
            if raises or is_one or isinstance(error, LostError) or not _in_this_process(settings):
                raise  # whoever started this process learns of failures in no other way
            is_input = isinstance(error, QTargetError)
            text = str(error) if is_input else f"{type(error).__name__}: {error}"
            outcomes.append(Outcome(folder, label, text, is_input))
            return None
        outcomes.append(Outcome(folder, label))
        return result

    job.outcomes = outcomes  # type: ignore[attr-defined]  # where a launcher of processes notes what became of them
    return job


def _in_this_process(settings: Any) -> bool:
    return bool(settings.launcher._target_.endswith("BasicLauncher"))


def _agreement(settings: Any) -> RankAgreement | None:
    """Of the ranks of a multirun that torchrun or srun started, on its next job."""
    from qtarget.run.environment import environment

    if settings.mode != RunMode.MULTIRUN or not _in_this_process(settings) or environment() is None:
        return None
    from qtarget.run.rank_agreement import RankAgreement  # torch comes in here

    return RankAgreement.of_job(f"job {settings.job.num}")


@contextmanager
def _announced(task: Any, settings: Any) -> Iterator[None]:
    """Say which job of a multirun in this process begins, and note how long it takes."""
    announcer: Announcer | None = getattr(task, "announcer", None)
    if announcer is None:
        yield
        return
    number, began = int(settings.job.num), time.monotonic()
    if speaks():
        print(announcer.begins(number))
    try:
        yield
    finally:
        announcer.ended(number, time.monotonic() - began)


def _run_or_dry(
    composed: Any, folder: Path, choices: Mapping[str, Any], overrides: list[str], of_ranks: RankAgreement | None
) -> dict[str, Any] | None:
    """The result of a job; None of one with trainer=dry, which only says what it would do."""
    from qtarget.config.composing import config_container
    from qtarget.config.model_folders import check_folders
    from qtarget.config.run_config import RunConfig
    from qtarget.run.job_record import record_rejected

    if "tracker" not in choices:  # Hydra 1.3 merges the options of a list into one node, and records none of them
        raise QTargetError(
            "a list of trackers is for the command line; in yaml files they are one of conf/tracker: defaults: "
            "[wandb@wandb, csv@csv, _self_] and _target_: qtarget.record.trackers.SeveralTrackers"
        )
    if composed.trainer.dry:
        with suppress(OSError):
            folder.rmdir()  # Hydra made it
        check_folders(config_container(composed))
        cfg = RunConfig.read(composed)
        from qtarget.run.estimate import dry_run  # torch and transformers come in here, and below

        dry_run(cfg, cfg.name or choices["target"])
        return None
    with uncollected():
        config, settings = config_container(composed), cast(Any, HydraConfig.get())
        try:
            check_composed_alike(config, settings.job.get("id"))
            check_folders(config)
            cfg = RunConfig.read(composed)
        except QTargetError as error:
            return record_rejected(config, folder, choices, overrides, error)
        from qtarget.run.train import run_job

    return run_job(cfg, folder, choices, overrides, of_ranks)


@contextmanager
def _hydra_raises(arguments: Arguments) -> Iterator[None]:
    """Hydra reads sys.argv, and prints and exits on errors unless told to raise them; both are put back."""
    argv, ours = sys.argv, [] if os.environ.get(FULL_ERROR) else [FULL_ERROR, SET_FOR_HYDRA]
    sys.argv = ["qtarget train", *with_search_path(arguments.overrides, arguments.config_dir), *arguments.options]
    os.environ |= dict.fromkeys(ours, "1")
    # Hydra's own plugins for Slurm and Ray, where installed, have configurations of the same names; ours count
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore")
    try:
        yield
    finally:
        sys.argv = argv
        for name in ours:
            del os.environ[name]


def _summary(outcomes: list[Outcome]) -> int:
    """Say where results are, which jobs failed, and what to do next. 0, or 1 for a crash, or 2 for bad input only.

    Of ranks that torchrun or srun started rank 0 says it, and all return the same.
    """
    from qtarget.run.environment import environment

    several = environment() is not None
    failed = [outcome for outcome in outcomes if outcome.error]
    if len(outcomes) == 1 and failed and failed[0].is_input and not several:
        raise QTargetError(failed[0].error)
    if speaks():
        _say_outcomes([outcome for outcome in outcomes if not outcome.error], failed, outcomes)
    if several and failed:
        _leave_after_rank_0()
    if not failed:
        return 0
    return 2 if all(outcome.is_input for outcome in failed) else 1


def _say_outcomes(done: list[Outcome], failed: list[Outcome], outcomes: list[Outcome]) -> None:
    for outcome in done:
        print(f"finished  {outcome}")
    print_results(outcomes)
    for outcome in failed:
        trace = outcome.folder / "traceback.txt"
        print(f"FAILED    {outcome}", file=sys.stderr)
        if trace.is_file():
            print(f"          traceback: {trace}", file=sys.stderr)
    if done:
        print(f"next: {shlex.join(['qtarget', 'compare', *sorted({str(outcome.folder.parent) for outcome in done})])}")
    if failed:
        print(f"{len(failed)} of {len(outcomes)} jobs failed; the same command runs only those again", file=sys.stderr)


def _leave_after_rank_0() -> None:
    from qtarget.run.rank_agreement import RankAgreement

    sys.stdout.flush()
    RankAgreement.of_job("summary").after_rank_0()
