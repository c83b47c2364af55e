"""What the ranks of a multirun know together of one of its jobs, through a store that outlasts the job.

The processes that torchrun or srun started hold no model and no process group: each runs its rank of a job in a process
of its own (ranks.start_one), and what that leaves behind, on a device or in a collective, ends with it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache

import torch.distributed as dist

from qtarget.run.environment import environment
from qtarget.run.rank_report import LostError, RankError, Report
from qtarget.signals import GRACE, Terminated

POLL = 0.2
"""Seconds between looks at the store."""
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""Set to True by torchrun where its own process keeps a store."""


class OtherRankError(RankError):
    """Another rank has failed, and has said how."""


class RankAgreement:
    """Of one job. Every value is written once, under a name of its own, so ranks may come in any order.

    What a rank waits for ends by OtherRankError once another has failed, and by Terminated once one was asked to stop.
    """

    def __init__(self, name: str, store: dist.Store, rank: int, world: int) -> None:
        self.name, self.rank, self.world = name, rank, world
        self._store = store
        self._settled = False

    @classmethod
    def of_job(cls, name: str, *, keeps_store: bool = True) -> RankAgreement:
        """name: of the job, within the multirun.

        keeps_store: of a process that the launcher started, where rank 0 keeps the store unless torchrun does.
        """
        here = environment()
        assert here is not None
        is_keeper = keeps_store and here.global_rank() == 0 and os.environ.get(AGENT_STORE) != "True"
        store = dist.PrefixStore(name, _store(here.main_address, here.main_port, is_keeper))
        return cls(name, store, here.global_rank(), here.world_size())

    @property
    def group_store(self) -> dist.Store:
        """Where the processes of this job meet."""
        return dist.PrefixStore("group", self._store)

    @property
    def failed(self) -> bool:
        """Whether a rank has."""
        return self._has("report/1")

    def report(self, report: Report) -> None:
        with _lost():
            self._store.set(f"report/{self._store.add('reports', 1)}", json.dumps(asdict(report)))

    def all_gather(self, name: str, value: str) -> list[str]:
        """What every rank has under this name, in rank order."""
        with _lost():
            self._store.set(f"{name}/{self.rank}", value)
            return [self._value(f"{name}/{rank}") for rank in range(self.world)]

    def _value(self, key: str) -> str:
        while not self._has(key):
            if self.failed:
                raise OtherRankError("another rank failed")
            self.pause()
        return self._read(key)

    def pause(self) -> None:
        """Raises Terminated where another rank was asked to stop."""
        if self._has("stopped"):
            raise Terminated("by SIGTERM, of another rank")
        time.sleep(POLL)

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """What is within ends alike on every rank: it returns, or raises the error of the rank that failed first.

        Once, the outermost of several only passes on what the first to end has raised.
        """
        try:
            yield
        except LostError:
            raise
        except Exception as error:
            self._settle(error)
            raise
        except BaseException:
            with suppress(LostError):
                self._set("stopped")
            raise
        self._settle(None)

    def _settle(self, error: Exception | None) -> None:
        if self._settled:
            return
        self._settled = True
        if error is not None and not isinstance(error, RankError):  # which has been reported
            self.report(Report.of(self.rank, error))
        self._set(f"ended/{self.rank}")
        self._wait_for(lambda: self._has(*self._of_all("ended")))
        first = self._first_report()
        self._set(f"read/{self.rank}")
        if self.rank == 0:  # which may keep the store
            self._wait_for(lambda: self._has(*self._of_all("read")), GRACE)
        if first is not None:
            raise first.error(self.world) from RankError(f"in rank {first.rank}\n\n{first.trace}")

    def _wait_for(self, done: Callable[[], bool], patience: float = float("inf")) -> None:
        deadline = time.monotonic() + patience
        while not done() and time.monotonic() < deadline:
            self.pause()

    def _first_report(self) -> Report | None:
        """A rank that was killed said nothing itself, and what the others said is that it was gone."""
        with _lost():
            count = self._store.add("reports", 0)
        reports = [Report(**json.loads(self._read(f"report/{number}"))) for number in range(1, count + 1)]
        return next((report for report in reports if report.by_signal), reports[0] if reports else None)

    def after_rank_0(self) -> None:
        """Rank 0 passes; the others wait for it to come by, or to be gone.

        The first process that ends with a failure has the launcher end the others, also in the middle of a word.
        """
        with suppress(LostError):
            if self.rank == 0:
                self._set("passed")
            self._wait_for(lambda: self._has("passed"), GRACE)

    def _of_all(self, name: str) -> list[str]:
        return [f"{name}/{rank}" for rank in range(self.world)]

    def _has(self, *keys: str) -> bool:
        with _lost():
            return bool(self._store.check(list(keys)))

    def _set(self, key: str) -> None:
        with _lost():
            self._store.set(key, "")

    def _read(self, key: str) -> str:
        with _lost():
            return self._store.get(key).decode()


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except dist.DistError as error:
        raise LostError(f"the ranks of this multirun have lost each other: {error}") from error


@cache
def _store(address: str, port: int, is_keeper: bool) -> dist.Store:
    with _lost():
        store = dist.TCPStore(address, port, is_master=is_keeper, wait_for_workers=False)
    return dist.PrefixStore(f"qtarget/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
