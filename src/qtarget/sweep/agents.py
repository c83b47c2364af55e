"""`qtarget agents`: a W&B agent in every slot, a GPU each or a share of the cores, started again where one crashes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

import psutil

from qtarget import checks
from qtarget.config.parsers import agents_parser
from qtarget.errors import QTargetError
from qtarget.launch.slots import Slot, exit_code_in_words, slots, start
from qtarget.record.record import make_folder
from qtarget.record.wandb_sweep import WandbSweep, find_sweep
from qtarget.signals import GRACE, Stop
from qtarget.sweep.agent_runs import all_well, runs_in

LOGS = Path("outputs", "agents")
OVER = ("FINISHED", "CANCELED", "CANCELLED")
GAVE_UP = re.compile(r"Detected .*, shutting down")
"""What an agent writes when its runs fail one after another; it exits with 0 all the same."""


def agents(arguments: Sequence[str]) -> int:
    """Run agents until the sweep is over. 0, or 1 where one gave up, or a run of theirs has failed or was lost."""
    options = agents_parser().parse_args(arguments)
    if options.agents is not None:
        checks.whole("--agents", options.agents, 1)
    if options.count is not None:
        checks.whole("--count", options.count, 1)
    checks.whole("--restarts", options.restarts, 0)
    checks.number("--pause", options.pause, 0.0)
    sweep = find_sweep(options.sweep)
    if sweep.state.upper() in OVER:
        raise QTargetError(f"the sweep {sweep.path} is {sweep.state.lower()}: `wandb sweep --resume {sweep.path}`")
    places = [_with_this_python(place) for place in slots(options.agents, options.gpus)]
    folder = LOGS / sweep.path.rpartition("/")[2]
    make_folder(folder)
    with Stop():
        logs = [folder / f"agent-{index}.log" for index in range(len(places))]
        before = [log.stat().st_size if log.exists() else 0 for log in logs]
        ended = _kept(Keeper(command(sweep, options.count), options.restarts, options.pause), places, logs)
        well = all_well(sweep, runs_in(map(_written_since, before, logs)))
    return 0 if ended and well else 1


def command(sweep: WandbSweep, count: int | None) -> list[str]:
    """W&B's own agent, which passes signals on to its run and gives it time to end."""
    counted = [] if count is None else ["--count", str(count)]
    patience = ["--forward-signals", "--term-timeout", str(int(GRACE))]
    return [sys.executable, "-m", "wandb", "agent", *patience, *counted, sweep.path]


def _with_this_python(place: Slot) -> Slot:
    """The sweep's command is `qtarget`: the one beside this Python, also where its environment isn't activated."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    patience = {"WANDB_AGENT_KILL_DELAY": str(int(GRACE))}  # of a run that early stopping has asked to end
    return replace(place, environment=place.environment | patience | {"PATH": path})


def _kept(keeper: Keeper, places: Sequence[Slot], logs: Sequence[Path]) -> bool:
    """Whether all agents have ended well."""
    with ThreadPoolExecutor(len(places)) as pool:
        try:
            futures = [pool.submit(keeper.keep, place, log) for place, log in zip(places, logs, strict=True)]
            ended = [future.result() for future in futures]
        except BaseException:
            keeper.stop()
            raise
    return all(ended)


@dataclass
class Keeper:
    """Agents, and when they are started again."""

    command: Sequence[str]
    restarts: int
    pause: float
    running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    stopped: Event = field(default_factory=Event)

    def keep(self, place: Slot, log: Path) -> bool:
        """Whether an agent ended well, after at most `restarts` fresh starts."""
        for left in range(self.restarts, -1, -1):
            code, wrote = self._run(place, log)
            if code == 0 or self.stopped.is_set():
                return _ended(place, log, wrote)
            again = f"starts again in {self.pause:g} s, {left} left" if left else "gives up"
            _say(place, f"{exit_code_in_words(code)}; {again}; its last words are in {log}")
            if left and self.stopped.wait(self.pause):
                break
        return False

    def _run(self, place: Slot, log: Path) -> tuple[int, str]:
        """One agent's exit code and what it wrote."""
        before = log.stat().st_size if log.exists() else 0
        process = start(self.command, place, log)
        self.running.add(process)
        if self.stopped.is_set():  # it was, while this one started
            process.terminate()
        _say(place, f"agent {process.pid} starts; log: {log}")
        try:
            code = process.wait()
        finally:
            self.running.discard(process)
        if code:
            end_session(process.pid)  # the run of an agent that crashed would hold the device
        return code, _written_since(before, log)

    def stop(self) -> None:
        """Ask all to stop, which pass it on to their runs; make those that don't."""
        self.stopped.set()
        held = list(self.running)
        for process in held:
            process.terminate()
        for process in held:
            with suppress(subprocess.TimeoutExpired):
                process.wait(2 * GRACE)
            end_session(process.pid)


def end_session(leader: int) -> None:
    """End what is left of a process that led a session: an agent's run has a process group of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in _left(leader):
            with suppress(ProcessLookupError):
                os.kill(process, number)
        until = time.monotonic() + GRACE
        while _left(leader) and time.monotonic() < until:
            time.sleep(0.1)


def _left(leader: int) -> list[int]:
    """Processes of a session; one that is dead and waits for its parent holds nothing."""
    living = (
        process.pid for process in psutil.process_iter(["status"]) if process.info["status"] != psutil.STATUS_ZOMBIE
    )
    return [process for process in living if _session(process) == leader]


def _session(process: int) -> int | None:
    try:
        return os.getsid(process)
    except OSError:
        return None


def _written_since(length: int, log: Path) -> str:
    with log.open("rb") as file:
        file.seek(length)
        return file.read().decode(errors="replace")


def _ended(place: Slot, log: Path, wrote: str) -> bool:
    gave_up = GAVE_UP.search(wrote)
    _say(place, f"gave up: {gave_up[0]}; see {log}" if gave_up else f"ended; log: {log}")
    return not gave_up


def _say(place: Slot, what: str) -> None:
    print(f"[{place.name}] {what}", file=sys.stderr, flush=True)
