"""The folder of a job and what its record says of it from the start, also where its configuration can't be read.

Without torch: a wrong value is answered before it is imported, which takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qtarget.config.identity import config_hash, job_hash
from qtarget.config.names import check_names
from qtarget.config.own_source import own_sources
from qtarget.config.parts import make_tracker
from qtarget.config.versions import versions
from qtarget.errors import QTargetError
from qtarget.files import locked
from qtarget.record.record import METRICS, Record, make_folder, stored_result
from qtarget.record.trackers import NoTracker
from qtarget.record.wandb_sweep import under_agent
from qtarget.resume_folders import STATE, newest
from qtarget.run.environment import environment
from qtarget.signals import folder_timeout


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """The job's folder, to this process alone."""
    make_folder(folder)
    # a sweep may hand out values twice: the second run waits, and tells what the first measured
    wait = -1 if under_agent() else folder_timeout()
    busy = f"another process is running this job in {folder}: wait for it, or stop it"
    with locked(folder / ".lock", busy, wait=wait):
        yield


def finished_result(identity: str, folder: Path, done: str) -> dict[str, Any] | None:
    """Of a finished job of the same configuration; refuses a folder of another one. done: what a job is."""
    result = stored_result(folder)
    if result is None:
        return None
    if result.get("config_hash") != identity:
        raise QTargetError(
            f"{folder} holds a run of another configuration ({result.get('name')}): choose another folder with "
            "hydra.run.dir, or remove it"
        )
    if result["status"] != "finished":
        return None
    print(f"{result['name']}: finished already, not {done} again; remove {folder} to have it run anew")
    return result


def record_rejected(
    config: Mapping[str, Any], folder: Path, choices: Mapping[str, Any], overrides: list[str], error: QTargetError
) -> dict[str, Any]:
    """What becomes of a configuration that can't be read: its record says why, and the error is raised.

    A finished run of an earlier build, which read it, is returned. What an earlier attempt has measured or saved stays:
    the mistake may be in a key that isn't a part of the run. config: composed, as plain data.
    """
    rank = environment()
    if rank and rank.global_rank():
        raise error
    with lock_folder(folder):
        if stored := finished_result(job_hash(config), folder, "trained"):
            return stored
        if _has_begun(folder):
            raise error
        record = Record(folder, _tracker_or_none(config))
        record.start(run_info(config, choices, overrides), config)
        record.fail(error)
    raise error


def _has_begun(folder: Path) -> bool:
    """Whether an attempt has measured something, or could go on."""
    measured = folder / METRICS
    return (measured.is_file() and measured.stat().st_size > 0) or newest(folder / STATE) is not None


def _tracker_or_none(config: Mapping[str, Any]) -> Any:
    try:
        check_names(config)
        return make_tracker(config["tracker"])
    except QTargetError:  # which may be what is wrong
        return NoTracker()


def run_info(config: Mapping[str, Any], choices: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """What the record says of a run from its start. config: as plain data."""
    return {
        "name": str(config["name"] or choices["target"]),
        "role": config["role"],
        "experiment": str(config["experiment_name"]),
        "choices": dict(choices),
        "overrides": overrides,
        "seed": config["seed"],
        "config_hash": job_hash(config),
        "mends": versions(config),
        **_own_sources(config),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def _own_sources(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of parts outside the package; nothing where there is none."""
    own = own_sources({key: value for key, value in config.items() if key != "tracker"})
    return {"sources": own, "hash_without_sources": config_hash(config, with_sources=False)} if own else {}
