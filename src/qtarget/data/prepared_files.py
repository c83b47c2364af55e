"""Data that is prepared once: the examples of a recipe on disk, for all runs and ranks on the same data.

FOLDER/manifest.json                       the recipe, and all that is known of the rows; written last, so that a
                                           folder with one is whole
FOLDER/train.arrow, heldout.arrow          the examples: see qtarget.data.stored
FOLDER/heldout_rows.arrow                  the held-out demonstrations
FOLDER/.building                           what a build has written so far; the next one begins anew
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from qtarget.cache_layout import BUILDING, LOCK, MANIFEST, READING
from qtarget.cache_layout import PREPARED_FILES as FILES
from qtarget.data.in_files import InFiles
from qtarget.data.module import DataConfig, Prepared, prepare
from qtarget.data.packing import Packs
from qtarget.data.stored import StoredExamples, StoredRows, write_rows
from qtarget.errors import QTargetError
from qtarget.files import lock_shared, locked, replacing, settle
from qtarget.forked import KilledError, can_fork, in_forks

FORMAT = 1
BLOCK = 1 << 22
AGAIN = "remove the folder to have it prepared again"


def is_whole(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


# Building


@dataclass(frozen=True)
class Build:
    """A preparation, as it goes into a folder."""

    config: DataConfig
    tokenizer: PreTrainedTokenizerBase
    context: int

    def into(self, folder: Path) -> dict[str, Any]:
        """What is known of the rows, beside the files. Raises NotStorableError."""
        storage = InFiles(folder, self.config.workers or _cores())
        prepared = prepare(self.config, self.tokenizer, self.context, storage)
        write_rows(folder / "heldout_rows.arrow", prepared.heldout_rows)
        packs = prepared.rows.members if isinstance(prepared.rows, Packs) else None
        return {
            "counts": prepared.counts,
            "described": prepared.described,
            "notes": list(prepared.notes),
            "roles": dict(prepared.roles),
            "packs": packs,
        }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Reader:
    """Holds a folder's READING as long as it lives, which no command prunes meanwhile."""


def build_missing(folder: Path, made_by: Mapping[str, str], build: Build, say: Callable[[str], object]) -> Reader:
    """Of several processes one builds and the others wait. Raises QTargetError, and NotStorableError.

    The folder is held before it is looked at: what is there, or is built, is there when it is opened.
    """
    reader = Reader()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_shared(folder / READING, reader)
        if not is_whole(folder):
            busy = f"another process is preparing the data in {folder}: waiting for it"
            with locked(folder / LOCK, busy, wait=0, say=say):
                if not is_whole(folder):
                    _build(folder, made_by, build)
    except KilledError as error:
        raise QTargetError(f"a process that prepared the data was ended by {error}: was memory short?") from error
    except OSError as error:  # pyarrow's errors of a full disk are such too
        raise QTargetError(
            f"can't write prepared data to {folder}: {error}; set QTARGET_CACHE=FOLDER to a place that has room, or "
            "data.keep=false, which prepares it in memory for this run alone"
        ) from error
    return reader


def _build(folder: Path, made_by: Mapping[str, str], build: Build) -> None:
    """In a process of its own, whose memory goes with it."""
    scratch = folder / BUILDING
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        (known,) = in_forks([lambda: build.into(scratch)]) if can_fork() else [build.into(scratch)]
        files = [_facts(scratch / name) for name in FILES]
        for name in FILES:
            settle(scratch / name)
            os.replace(scratch / name, folder / name)
        manifest = {"format": FORMAT, "identity": dict(made_by), "made_from": _shown(build.config)}
        text = json.dumps({**manifest, "prepared": known, "files": files})
        with replacing(folder / MANIFEST, durable=True) as path:
            path.write_text(text, encoding="utf-8")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _shown(config: DataConfig) -> dict[str, str]:
    """What was prepared, in words."""
    return {"data": str(config.source), "noise": str(config.noise)}


def _facts(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "digest": _digest(path)}


def _digest(path: Path) -> str:
    """Of a file of ours: of all of it up to 256 MiB, and of 64 blocks of a larger one."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in range(0, size, max(BLOCK, size // 64)):
            file.seek(start)
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


# Reading


def opened(folder: Path, made_by: Mapping[str, str], reader: Reader) -> Prepared:
    """What is prepared there. Raises QTargetError for a folder that is damaged, or made by another recipe."""
    known = _checked(folder, made_by)["prepared"]
    try:
        train, heldout = (StoredExamples(folder / name) for name in FILES[:2])
        heldout_rows = StoredRows(folder / FILES[2])
    except (OSError, pa.ArrowException) as error:
        raise QTargetError(f"the prepared data {folder} is damaged: {error}; {AGAIN}") from error
    train.reader = reader
    rows = train if known["packs"] is None else Packs(train, known["packs"])
    words = {name: known[name] for name in ("counts", "described", "notes", "roles")}
    return Prepared(train, heldout, heldout_rows, rows=rows, heldout_of=heldout.of, **words)


def _checked(folder: Path, made_by: Mapping[str, str]) -> dict[str, Any]:
    """The manifest."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        identity, files = manifest["identity"], {facts["file"]: facts for facts in manifest["files"]}
        missing = {"counts", "described", "notes", "roles", "packs"} - manifest["prepared"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise QTargetError(f"the prepared data {folder} has no readable manifest.json ({error}); {AGAIN}") from error
    other = [name for name in made_by if identity.get(name) != made_by[name]]
    if manifest.get("format") != FORMAT or other or missing:
        named = ", ".join(other or ["format"])
        raise QTargetError(f"the prepared data {folder} is of other {named}; {AGAIN}")
    for name in FILES:
        _check_file(folder / name, files.get(name, {}))
    return manifest


def _check_file(path: Path, facts: Mapping[str, Any]) -> None:
    damaged = f"the prepared data {path.parent} is damaged: {path.name}"
    if not path.is_file():
        raise QTargetError(f"{damaged} is missing; {AGAIN}")
    size = path.stat().st_size
    if size != facts.get("bytes"):
        raise QTargetError(f"{damaged} has {size} bytes instead of {facts.get('bytes')}; {AGAIN}")
    if _digest(path) != facts["digest"]:
        raise QTargetError(f"{damaged} was changed after it was made; {AGAIN}")
