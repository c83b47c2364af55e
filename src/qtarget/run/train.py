"""`qtarget train`: one job. Whether it has to run, in which processes, and its record; the run itself is run/fit.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qtarget.config.own_source import edited_since
from qtarget.config.parts import make_tracker
from qtarget.config.run_config import RunConfig
from qtarget.errors import QTargetError
from qtarget.parallel import all_gather_objects, is_rank_zero
from qtarget.record.record import NullRecord, Record, replay
from qtarget.record.trackers import NoTracker
from qtarget.record.wandb_sweep import under_agent
from qtarget.resume_folders import STATE, discard
from qtarget.run import ranks
from qtarget.run.closing import closing_line
from qtarget.run.disk import explain_full_disk
from qtarget.run.exported_model import CHECKPOINT, OPTIMIZER
from qtarget.run.fit import train_and_evaluate
from qtarget.run.job_record import finished_result, lock_folder, run_info
from qtarget.run.plan import check_design
from qtarget.run.rank_agreement import RankAgreement
from qtarget.signals import Stop
from qtarget.train.resume_callback import ResumeCallback
from qtarget.train.resume_saved import ResumeState, last_state


def run_job(
    cfg: RunConfig, folder: Path, choices: Mapping[str, Any], overrides: list[str], job: RankAgreement | None = None
) -> dict[str, Any]:
    """Train, evaluate and record one configuration; a finished one is returned, not trained again.

    One that was stopped goes on from its last state, if it has one.

    On several devices it runs in as many processes: those that torchrun or srun started, of which this is one, or else
    processes of its own. Rank 0 writes the record; only there is the result returned whole. job: of a multirun whose
    processes were started, what they know together of it.
    """
    if cfg.eval.engine != "local":
        raise QTargetError(
            "eval.engine=server answers for a checkpoint on disk: train with eval.engine=local, and then qtarget "
            "evaluate checkpoint=RUN eval.engine=server"
        )
    info = run_info(cfg.container(), choices, overrides)
    several = cfg.trainer.processes > 1
    ranks.check_started(cfg.trainer)
    if several and job:
        return _run_beside_others(cfg, folder, info, job)
    if several and ranks.environment():
        return _run_as_rank(cfg, folder, info)
    with lock_folder(folder), Stop() as stop:
        if stored := load_finished(cfg, folder):
            discard(folder / STATE)  # left where a kill came between the two
            if under_agent():
                replay(folder, make_tracker(cfg.tracker))  # the sweep waits for this run's values
            return stored
        ranks.check_devices(cfg.trainer)
        for line in edited_since(info.get("sources", {}), info.get("hash_without_sources", ""), folder):
            print(f"{info['name']}: {line}")
        if several:
            return _start_ranks(cfg, folder, info, partial(ranks.start, cfg.trainer.devices))
        return _run_with_record(cfg, folder, info, stop)


def _run_as_rank(cfg: RunConfig, folder: Path, info: dict[str, Any]) -> dict[str, Any]:
    """This process's part in a run whose processes are there already."""
    ranks.connect()
    ranks.check_same_configuration(all_gather_objects(cfg.hash))
    if not is_rank_zero():
        return {} if ranks.as_rank_0(None) else run_as_rank(cfg, folder, info)
    with lock_folder(folder):
        stored = load_finished(cfg, folder)
        ranks.as_rank_0(stored is not None)
        return stored or run_as_rank(cfg, folder, info)


def _run_beside_others(cfg: RunConfig, folder: Path, info: dict[str, Any], job: RankAgreement) -> dict[str, Any]:
    """This rank of a job of a multirun, in a process of its own, so that this one goes on whatever comes of it."""
    ranks.check_same_configuration(job.all_gather("identity", cfg.hash))
    start = partial(ranks.start_one, job)
    if job.rank:
        with Stop():
            if not job.all_gather("finished", "")[0]:
                start(run_as_rank, cfg, folder, info)
        return {}
    with lock_folder(folder), Stop():
        stored = load_finished(cfg, folder)
        job.all_gather("finished", "yes" * bool(stored))
        return stored or _start_ranks(cfg, folder, info, start)


def run_as_rank(cfg: RunConfig, folder: Path, info: dict[str, Any]) -> dict[str, Any]:
    """The run in one of its processes, which are connected."""
    with Stop() as stop:
        return _run_with_record(cfg, folder, info, stop)


def _start_ranks(cfg: RunConfig, folder: Path, info: dict[str, Any], start: Callable[..., None]) -> dict[str, Any]:
    """The run in processes of its own; here only what no rank can do, to record that one of them was lost.

    start: calls a function in them.
    """
    record = Record(folder, NoTracker())
    try:
        if _state_to_resume(cfg, folder):
            record.reread()  # rank 0 goes on from it
        else:
            record.start(info, cfg.container())
        check_design(cfg)  # said at once: processes take a while to start
        start(run_as_rank, cfg, folder, info)
    except BaseException as error:
        record.reread()
        record.fail(error)
        raise
    return record.reread()


def load_finished(cfg: RunConfig, folder: Path, done: str = "trained") -> dict[str, Any] | None:
    """The result of a finished job of the same configuration; refuses a folder of another one. done: what a job is."""
    stored = finished_result(cfg.hash, folder, done)
    kept = (folder / OPTIMIZER, folder / CHECKPOINT / OPTIMIZER)  # the latter of earlier builds
    if stored and done == "trained" and cfg.checkpoint.optimizer and not any(path.is_file() for path in kept):
        print(f"{stored['name']}: it has no {OPTIMIZER}, as it was trained without checkpoint.optimizer=true")
    return stored


def _run_with_record(cfg: RunConfig, folder: Path, info: dict[str, Any], stop: Stop) -> dict[str, Any]:
    """stop: what ends the run between two steps, with its state saved."""
    record = Record(folder, make_tracker(cfg.tracker)) if is_rank_zero() else NullRecord(folder)
    resume = _resume_callback(cfg, record, stop)
    try:
        with record.beating(), explain_full_disk(folder):
            record.start(info, cfg.container(), resume.state.facts if resume.state else None)
            result = record.finish(train_and_evaluate(cfg, record, resume, title=info["name"]))
    except BaseException as error:
        record.fail(error)
        raise
    if is_rank_zero():
        discard(resume.holder)
        print(closing_line(result, folder))
    return result


def _resume_callback(cfg: RunConfig, record: Record | NullRecord, stop: Stop) -> ResumeCallback:
    """With the state that the run goes on from, where there is one. Of several ranks, rank 0 says which."""
    state = ranks.from_rank_0(lambda: _state_to_resume(cfg, record.folder))
    # W&B gives a run that it has stopped to nobody again
    when_stopped = bool(cfg.checkpoint.every) or not under_agent()
    return ResumeCallback(record.folder / STATE, cfg.checkpoint.every, record, stop, state, when_stopped=when_stopped)


def _state_to_resume(cfg: RunConfig, folder: Path) -> ResumeState | None:
    holder = folder / STATE
    if cfg.resume == "never":
        discard(holder)
    state = last_state(holder)
    if state and state.facts.get("config_hash") != cfg.hash:
        raise QTargetError(f"{state.folder} is the state of another configuration: remove {holder}")
    return state
