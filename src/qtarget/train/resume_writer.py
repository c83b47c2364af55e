"""Writes states beside the training: a thread of each rank writes its part, and rank 0 makes them the last state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from qtarget import resume_folders
from qtarget.errors import QTargetError
from qtarget.parallel import all_gather_objects, all_reduce_max, is_rank_zero, rank_and_world
from qtarget.train.resume_state import StatePart

FORMAT = 3
UNWRITABLE = (OSError, RuntimeError, SafetensorError)
"""A full disk is any of them."""
T = TypeVar("T")


@dataclass
class Write:
    """A part on its way to disk: a thread that ends with the bytes of its files, or with an error."""

    step: int
    facts: Mapping[str, Any]
    parts: dict[str, int] = field(default_factory=dict)
    error: BaseException | None = None
    thread: Thread | None = None

    def start(self, write: Callable[[], dict[str, int]]) -> None:
        self.thread = Thread(target=self._run, args=(write,), name="state")
        self.thread.start()

    def _run(self, write: Callable[[], dict[str, int]]) -> None:
        try:
            self.parts = write()
        except BaseException as error:
            self.error = error

    @property
    def is_under_way(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


class StateWriter:
    """One state at a time. Its collective methods raise QTargetError on every rank where one of them can't write.

    The state before is there until a new one is whole: all ranks have written their parts.
    """

    def __init__(self, holder: Path) -> None:
        self.holder = holder
        self._write: Write | None = None

    def save(self, step: int, capture: Callable[[], StatePart], facts: Mapping[str, Any]) -> None:
        """Copy the run, and have the copy written. Waits for the one before. Collective."""
        self.finish()
        opened = self._together(lambda: resume_folders.open_scratch(self.holder, step) if is_rank_zero() else None)
        if opened[0] is None:
            return
        part, write = capture(), Write(step, facts)
        alone = rank_and_world()[1] == 1
        folder = self.holder / resume_folders.SCRATCH
        self._write = write

        def run() -> dict[str, int]:
            parts = part.write(folder)
            if alone:
                self._publish(write, parts)
            return parts

        write.start(run)

    def poll(self, asked: bool) -> bool:
        """Publish what every rank has written. Returns whether any rank was asked to stop. Collective."""
        write = self._write
        flags = torch.tensor([asked, write is not None and write.is_under_way], dtype=torch.int64)
        any_asked, any_busy = all_reduce_max(flags).tolist()
        if not any_busy:
            self.finish()
        return bool(any_asked)

    def finish(self) -> None:
        """Wait until the state that is being written is whole. Collective."""
        write, self._write = self._write, None
        if write is None:
            return
        parts: dict[str, int] = {}
        for one in self._together(lambda: _written(write)):
            parts |= one
        if rank_and_world()[1] > 1:
            self._together(lambda: self._publish(write, parts) if is_rank_zero() else None)

    def close(self) -> None:
        """Wait for this rank's own part, for an end that the other ranks may not know of."""
        if self._write is not None and self._write.thread is not None:
            self._write.thread.join()

    def _publish(self, write: Write, parts: Mapping[str, int]) -> None:
        _, world = rank_and_world()
        manifest = {"format": FORMAT, **write.facts, "step": write.step, "world": world}
        folder = self.holder / resume_folders.SCRATCH
        if lost := [name for name, size in parts.items() if _size(folder / name) != size]:
            raise OSError(f"rank 0 doesn't see {lost[0]}, which another rank has written: all nodes need one folder")
        resume_folders.publish(self.holder, write.step, manifest | {resume_folders.PARTS: dict(parts)})

    def _together(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns, by rank; where it fails on one, QTargetError on all."""
        result, problem = None, ""
        try:
            result = work()
        except UNWRITABLE as error:
            problem = f"rank {rank_and_world()[0]}: {error}" if rank_and_world()[1] > 1 else str(error)
        answers: list[tuple[Any, str]] = all_gather_objects((result, problem))
        problems = [text for _, text in answers if text]
        if problems:
            if is_rank_zero():
                resume_folders.drop_scratch(self.holder)
            raise QTargetError(
                f"can't save the run's state in {self.holder}: {problems[0]}. Make room, and the same command goes on "
                "from the state before; or set checkpoint.every=null"
            )
        return [answer for answer, _ in answers]


def _written(write: Write) -> dict[str, int]:
    """The files of this rank's part, and their bytes, once they are on disk."""
    assert write.thread is not None
    write.thread.join()
    if write.error is not None:
        raise write.error
    return write.parts


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
