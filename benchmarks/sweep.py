"""(d) Eight short runs with cached references beside eight with live ones, through the real command line."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import timing
from table import Row, Section

from qtarget.errors import QTargetError
from qtarget.files import cache_dir

COMMAND = "from qtarget.cli import main; main()"


@dataclass(frozen=True)
class Sweep:
    """Targets × learning rates, each run `steps` optimizer steps on `rows` rows."""

    targets: tuple[str, ...] = ("asft", "target_sft")
    rates: tuple[str, ...] = ("1e-5", "2e-5", "5e-5", "1e-4")
    rows: int = 16
    batch_size: int = 8
    steps: int = 10

    @property
    def runs(self) -> int:
        return len(self.targets) * len(self.rates)

    @property
    def overrides(self) -> tuple[str, ...]:
        return (
            f"target={','.join(self.targets)}",
            f"optim.lr={','.join(self.rates)}",
            "data=gsm_symbolic",
            f"data.rows={self.rows}",
            "data.heldout_rows=4",
            f"trainer.batch_size={self.batch_size}",
            f"trainer.max_steps={self.steps}",
            "trainer.eval_every=0",
            "eval.new_tokens=8",
            "eval.kl_prior=false",
            "checkpoint.save=false",
            "references.teacher.name=${model.name}",
        )


def references(kind: str) -> tuple[str, ...]:
    return (f"reference@references.prior={kind}", f"reference@references.teacher={kind}")


def wall_seconds(sweep: Sweep, kind: str, more: Sequence[str] = ()) -> float:
    """Wall time of `qtarget train -m`, from the shell's return key to its return, into an empty cache."""
    with tempfile.TemporaryDirectory() as folder, empty_cache() as cache:
        command = [sys.executable, "-c", COMMAND, "train", "-m", *sweep.overrides, *references(kind), *more]
        environment = os.environ | {"QTARGET_CACHE": str(cache)}
        lap = timing.Lap()
        lap.start()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        taken = lap.stop()
    if done.returncode:
        raise QTargetError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return taken


@contextmanager
def empty_cache() -> Iterator[Path]:
    """A cache folder that holds the converted models, so that they aren't converted again, and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        models = cache_dir() / "models"
        if models.is_dir():
            (Path(folder) / "models").symlink_to(models)
        yield Path(folder)


def measure(sweep: Sweep, kinds: Sequence[str] = ("frozen", "cached"), more: Sequence[str] = ()) -> list[Row]:
    """One row per kind of reference, with its wall time by that of live references."""
    taken: dict[str, float] = {}
    for kind in kinds:
        timing.progress(f"(d) {sweep.runs} runs with {kind} references")
        taken[kind] = wall_seconds(sweep, kind, more)
    timing.progress("")
    return [
        {
            "references": "live" if kind == "frozen" else kind,
            "runs": sweep.runs,
            "seconds": seconds,
            "ratio": seconds / taken[kinds[0]],
            "aim": None if kind == "frozen" else "≤ 0.75",
        }
        for kind, seconds in taken.items()
    ]


def section(quick: bool) -> Section:
    sweep = Sweep(rates=("1e-5",), steps=4) if quick else Sweep()
    return Section("d", "A sweep with live and with cached references", [(caption(sweep), measure(sweep))])


def caption(sweep: Sweep) -> str:
    epochs = sweep.steps * sweep.batch_size / sweep.rows
    return (
        f"Wall time of one `qtarget train -m {' '.join((*sweep.overrides, *references('frozen')))}`, and of the same "
        f"with `cached` in place of `frozen`, the building of the caches included: {sweep.runs} runs of {epochs:.3g} "
        "epochs each, with everything a run does: starting, loading, training, evaluating, recording."
    )
