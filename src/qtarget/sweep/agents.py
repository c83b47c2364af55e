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
from qtarget.launch.slots import Slot, exit_code_in_words, make_slots, start
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
    slots = [_with_this_python(slot) for slot in make_slots(options.agents, options.gpus)]
    folder = LOGS / sweep.path.rpartition("/")[2]
    make_folder(folder)
    with Stop():
        logs = [folder / f"agent-{index}.log" for index in range(len(slots))]
        lengths = [_length(log) for log in logs]
        agents_well = Supervisor(command(sweep, options.count), options.restarts, options.pause).run_all(slots, logs)
        runs_well = all_well(sweep, runs_in(map(_written_since, lengths, logs)))
    return 0 if agents_well and runs_well else 1


def command(sweep: WandbSweep, count: int | None) -> list[str]:
    """W&B's own agent, which passes signals on to its run and gives it time to end."""
    limit = [] if count is None else ["--count", str(count)]
    stopping = ["--forward-signals", "--term-timeout", str(int(GRACE))]
    return [sys.executable, "-m", "wandb", "agent", *stopping, *limit, sweep.path]


def _with_this_python(slot: Slot) -> Slot:
    """The sweep's command is `qtarget`: the one beside this Python, also where its environment isn't activated."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    kill_delay = {"WANDB_AGENT_KILL_DELAY": str(int(GRACE))}  # of a run that early stopping has asked to end
    return replace(slot, environment=slot.environment | kill_delay | {"PATH": path})


@dataclass
class Supervisor:
    """Starts agents, and starts those again that crash, `pause` seconds later and at most `restarts` times each."""

    command: Sequence[str]
    restarts: int
    pause: float
    running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    stopped: Event = field(default_factory=Event)

    def run_all(self, slots: Sequence[Slot], logs: Sequence[Path]) -> bool:
        """Run an agent in each slot to its end. Returns whether all have ended well."""
        with ThreadPoolExecutor(len(slots)) as pool:
            try:
                futures = [pool.submit(self._supervise, slot, log) for slot, log in zip(slots, logs, strict=True)]
                ended_well = [future.result() for future in futures]
            except BaseException:
                self.stop()
                raise
        return all(ended_well)

    def _supervise(self, slot: Slot, log: Path) -> bool:
        """Whether the agent of a slot ended well, after at most `restarts` fresh starts."""
        for left in range(self.restarts, -1, -1):
            code, output = self._run(slot, log)
            if code == 0 or self.stopped.is_set():
                gave_up = GAVE_UP.search(output)
                _print(slot, f"gave up: {gave_up[0]}; see {log}" if gave_up else f"ended; log: {log}")
                return not gave_up
            again = f"starts again in {self.pause:g} s, {left} left" if left else "gives up"
            _print(slot, f"{exit_code_in_words(code)}; {again}; its last words are in {log}")
            if left and self.stopped.wait(self.pause):
                break
        return False

    def _run(self, slot: Slot, log: Path) -> tuple[int, str]:
        """One agent's exit code and what it wrote."""
        length = _length(log)
        process = start(self.command, slot, log)
        self.running.add(process)
        if self.stopped.is_set():  # it was, while this one started
            process.terminate()
        _print(slot, f"agent {process.pid} starts; log: {log}")
        try:
            code = process.wait()
        finally:
            self.running.discard(process)
        if code:
            end_session(process.pid)  # the run of an agent that crashed would hold the device
        return code, _written_since(length, log)

    def stop(self) -> None:
        """Ask all agents to stop, which pass it on to their runs; end those that don't."""
        self.stopped.set()
        running = list(self.running)
        for process in running:
            process.terminate()
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(2 * GRACE)
            end_session(process.pid)


def end_session(leader: int) -> None:
    """End what is left of a process that led a session: an agent's run has a process group of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in _members(leader):
            with suppress(ProcessLookupError):
                os.kill(process, number)
        deadline = time.monotonic() + GRACE
        while _members(leader) and time.monotonic() < deadline:
            time.sleep(0.1)


def _members(leader: int) -> list[int]:
    """The processes of a session; one that is dead and waits for its parent holds nothing."""
    living = (
        process.pid for process in psutil.process_iter(["status"]) if process.info["status"] != psutil.STATUS_ZOMBIE
    )
    return [process for process in living if _session(process) == leader]


def _session(process: int) -> int | None:
    try:
        return os.getsid(process)
    except OSError:
        return None


def _length(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _written_since(length: int, log: Path) -> str:
    with log.open("rb") as file:
        file.seek(length)
        return file.read().decode(errors="replace")


def _print(slot: Slot, what: str) -> None:
    print(f"[{slot.name}] {what}", file=sys.stderr, flush=True)
