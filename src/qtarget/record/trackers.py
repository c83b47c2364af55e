"""Where a run's values go besides its own record: nowhere, to Weights & Biases, or to several trackers."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from qtarget import checks
from qtarget.errors import QTargetError
from qtarget.measures import validation_direction
from qtarget.record.record import HISTOGRAMS, METRICS, Tracker
from qtarget.record.runs import flatten, logged
from qtarget.record.wandb_history import Sent, at_server, earlier, replace, row, sent
from qtarget.record.wandb_sweep import WandbSweep, find_sweep, under_agent, unlogged
from qtarget.settings import FLAG, Checked, Choice, Listed, Nullable, Text, setting

BETTER = {"min": min, "max": max}


def finite(value: float | None) -> bool:
    """Whether a measurement is a number; null is what a record holds of NaN and ±inf."""
    return value is not None and math.isfinite(value)


def shown(value: float | None) -> float | str:
    """A measurement as W&B's summaries show it: text for NaN and ±inf, which its client drops as numbers (0.31.0).

    >>> shown(0.5), shown(math.nan), shown(-math.inf)
    (0.5, 'NaN', '-Infinity')
    """
    if value is None or math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


@dataclass
class Best:
    """metric → its better end ("min" or "max") → the best so far, and "last" → the last, for those in `ends`.

    W&B's own `define_metric(summary="min")` compares with NaN and keeps it for good (0.31.0), so the best is taken
    here: NaN and ±inf never win, and are seen as the last value.
    """

    ends: dict[str, str] = field(default_factory=dict)
    _best: dict[str, float] = field(default_factory=dict)

    def update(self, metrics: Mapping[str, float]) -> dict[str, dict[str, float | str]]:
        """What a summary holds from now on of the metrics with a better end among these."""
        return {name: self._kept(name, value) for name, value in metrics.items() if name in self.ends}

    def _kept(self, name: str, value: float) -> dict[str, float | str]:
        end = self.ends[name]
        if finite(value):
            self._best[name] = BETTER[end](value, self._best.get(name, value))
        best: dict[str, float | str] = {end: self._best[name]} if name in self._best else {}
        return {**best, "last": shown(value)}


MODES = ("offline", "online", "shared", "disabled")
DRAWN = {"calibration": ("confidence", "accuracy", "Reliability: how often tokens are right, by confidence")}
"""Tables that are curves too: name → the columns across and up, and a title."""


class NoTracker:
    """The local record is enough. A tracker of your own may take over from it what it doesn't need."""

    def start(self, folder: Path, info: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
        return None

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def histograms(self, step: int, counted: Mapping[str, Mapping[str, Any]]) -> None: ...
    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None: ...
    def checkpoint(self, folder: Path) -> None: ...
    def finish(self, metrics: Mapping[str, float], *, failed: bool) -> None: ...


Nothing = NoTracker
"""Its name in 0.1.0, which trackers of users' own derive from."""


class SeveralTrackers:
    """Trackers by their names in the configuration: each is sent everything, whatever becomes of the others."""

    def __init__(self, **trackers: Tracker) -> None:
        """Raises QTargetError without a tracker, and for one that lacks a method of `Tracker`."""
        if not trackers:
            raise QTargetError("tracker=several names no tracker: write tracker=[trackio,csv]")
        for name, tracker in trackers.items():
            checks.implements(f"tracker.{name}", tracker, Tracker)
        self.trackers = trackers

    def start(self, folder: Path, info: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
        """Names of the run, by tracker."""
        started = {
            name: tracker.start(folder, {**info, "tracked_as": name_before(info, name)}, config)
            for name, tracker in self.trackers.items()
        }
        return {name: str(run) for name, run in started.items() if run is not None}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._each("log", step, metrics)

    def histograms(self, step: int, counted: Mapping[str, Mapping[str, Any]]) -> None:
        self._each("histograms", step, counted)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._each("table", name, rows)

    def checkpoint(self, folder: Path) -> None:
        self._each("checkpoint", folder)

    def finish(self, metrics: Mapping[str, float], *, failed: bool) -> None:
        self._each("finish", metrics, failed=failed)

    def _each(self, method: str, *values: Any, **options: Any) -> None:
        """Call all of them, then say what went wrong and where."""
        errors: dict[str, Exception] = {}
        for name, tracker in self.trackers.items():
            try:
                getattr(tracker, method)(*values, **options)
            except Exception as error:
                errors[name] = error
        if errors:
            raise RuntimeError("; ".join(f"tracker.{name}: {error}" for name, error in errors.items()))


def name_before(info: Mapping[str, Any], tracker: str) -> str | None:
    """What a run that goes on was called by a tracker, which may have been one of several."""
    before = info.get("tracked_as")
    return before.get(tracker) if isinstance(before, Mapping) else before


def measured_before(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, metrics) of a record, NaN for what was no number."""
    for line in logged(folder / METRICS):
        values = {name: math.nan if value is None else value for name, value in line.items() if name != "time"}
        yield int(values.pop("step")), values


def counted_before(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(step, histograms) of a record."""
    for line in logged(folder / HISTOGRAMS):
        yield int(line["step"]), {name: line[name] for name in line.keys() - {"step", "time"}}


def as_sent(config: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration by dotted keys, each group's choice under the group's name.

    Without empty mappings, which W&B 0.31.0 drops.
    """
    return {key: value for key, value in flatten(config).items() if value != {}} | dict(choices)


def bin_edges(histogram: Mapping[str, Any]) -> np.ndarray:
    """The edges of a recorded histogram's bins, one more than there are counts."""
    return np.linspace(histogram["low"], histogram["high"], len(histogram["counts"]) + 1)


@dataclass
class Wandb(Checked):
    """A W&B run with the same values. offline writes beside the record (`wandb sync` uploads it later).

    The config is sent flattened to dotted keys, each group's choice under the group's name: a sweep that sets a group
    would otherwise destroy everything nested under it. Runs are grouped by their experiment.
    A run that goes on after an end keeps its id, and every row is sent once. Under an agent a run has the id that the
    agent gave it, and is grouped by its sweep.
    Of a metric with a better end the summary keeps the best finite value and the last.
    artifact: the checkpoint is sent too.
    """

    NODE_KEY: ClassVar[str] = "tracker"
    project: str = setting("qtarget", Text(), "the project of W&B that runs go to")
    entity: str | None = setting(None, Nullable(Text()), "user or team; null: the default of the account")
    mode: str = setting("offline", Choice(MODES), "online needs an account; offline: `wandb sync` sends it later")
    tags: Sequence[str] = setting((), Listed(Text()), "of the run")
    artifact: bool = setting(False, FLAG, "the checkpoint too, as an artifact of type model")
    _run: Any = field(default=None, init=False, repr=False)
    _sweep: WandbSweep | None = field(default=None, init=False, repr=False)
    _logged: set[str] = field(default_factory=set, init=False, repr=False)
    _best: Best = field(default_factory=Best, init=False, repr=False)
    _sent: Sent = field(default_factory=Sent, init=False, repr=False)
    _earlier: list[Path] = field(default_factory=list, init=False, repr=False)
    _begun: bool = field(default=False, init=False, repr=False)

    def start(self, folder: Path, info: Mapping[str, Any], config: Mapping[str, Any]) -> str:
        import wandb  # slow to import, and optional

        swept, before = under_agent(), name_before(info, "wandb")
        if self.mode == "offline":
            self._earlier = earlier(folder, before)
            self._sent = sent(self._earlier)
        try:
            self._run = wandb.init(
                project=None if swept else self.project,
                entity=None if swept else self.entity,
                group=os.environ["WANDB_SWEEP_ID"] if swept else info["experiment"],
                mode=self.mode,  # type: ignore[arg-type]
                name=info["name"],
                id=None if swept else before,
                resume="allow" if before and not swept and self.mode != "offline" else None,
                job_type=info["role"],
                tags=list(self.tags),
                config=as_sent(config, info["choices"]),
                dir=folder.absolute(),  # W&B's service may run in another folder
                reinit="finish_previous",
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise QTargetError(
                f"W&B did not start ({error}). tracker.mode=online needs an account: WANDB_API_KEY, or `wandb login`; "
                "tracker.mode=offline needs none, and `wandb sync` uploads later"
            ) from error
        self._run.define_metric("*", step_metric="step")
        if swept and self.mode == "online":
            self._sweep = self._asked_for()
        going_on = self.mode != "offline" and self._run.id == before
        missing = going_on and self._differs(folder)
        self._repeat(folder, send=missing or not going_on)
        return str(self._run.id)

    def _differs(self, folder: Path) -> bool:
        """Whether W&B has other rows than the record of a run that goes on, of which `_sent` then holds those it has.

        A run that was killed may have rows at W&B that its saved state is older than, or lack the last ones.
        """
        recorded = sum(len(list(logged(folder / name))) for name in (METRICS, HISTOGRAMS))
        if getattr(self._run, "starting_step", recorded) == recorded:
            return False
        try:
            self._sent = at_server(f"{self._run.entity}/{self._run.project}/{self._run.id}")
        except QTargetError as error:
            warnings.warn(str(error), stacklevel=2)
            return False
        return True

    def _repeat(self, folder: Path, *, send: bool) -> None:
        """What was measured before: log it, so that this run of W&B's holds the whole run, or only remember it."""
        for step, metrics in measured_before(folder):
            self._row(step, metrics, send=send)
        for step, counted in counted_before(folder) if send else ():
            self.histograms(step, counted)

    def _asked_for(self) -> WandbSweep | None:
        """The run's sweep; that it can't be had is no reason not to train."""
        try:
            return find_sweep(f"{self._run.entity}/{self._run.project}/{self._run.sweep_id}")
        except QTargetError as error:
            warnings.warn(f"whether the sweep's metric is logged can't be told: {error}", stacklevel=2)
            return None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._row(step, metrics)
        if any(name.startswith("val/") for name in metrics) and (step or self._measured_in_validation()):
            self._check_sweep()

    def _row(self, step: int, metrics: Mapping[str, float], *, send: bool = True) -> None:
        """A row of the history, where W&B hasn't been sent it before, and the summary that follows from it."""
        for name in sorted(metrics.keys() - self._logged):
            self._define(name)
        self._logged |= metrics.keys()
        summary: dict[str, Any] = self._best.update(metrics)
        if send and row(step, metrics) not in self._sent.rows:
            self._send({"step": step, **metrics})
        elif send:  # the run's earlier attempt, which W&B has, ends with a summary of its own
            summary = {name: shown(value) for name, value in metrics.items()} | summary
        if summary:
            self._run.summary.update(summary)

    def _send(self, values: Mapping[str, Any]) -> None:
        """One row; the first behind those that W&B has takes the next of its own numbers."""
        first, self._begun = not self._begun, True
        after = {"step": self._sent.next_step, "commit": True} if first and self._sent.next_step else {}
        self._run.log(dict(values), **after)

    def _define(self, name: str) -> None:
        """Have `_best` keep the best value of a metric that has one; the sweep says it of its own."""
        own = self._sweep is not None and name == self._sweep.metric
        end = self._sweep.best if self._sweep is not None and own else validation_direction(name)
        if end:
            self._run.define_metric(name, step_metric="step", summary="none")
            self._best.ends[name] = end

    def _measured_in_validation(self) -> bool:
        """The sweep's metric would have come before the first step."""
        return bool(self._sweep and self._sweep.metric and self._sweep.metric.startswith(("val/", "test/")))

    def _check_sweep(self) -> None:
        """Say once, and as early as can be known, that the sweep waits for a metric that never comes."""
        sweep, self._sweep = self._sweep, None
        message = unlogged(sweep.metric, self._logged) if sweep and sweep.metric else None
        if message:
            warnings.warn(message, stacklevel=2)

    def histograms(self, step: int, counted: Mapping[str, Mapping[str, Any]]) -> None:
        if row(step, counted) not in self._sent.rows:
            self._send({"step": step} | {name: _histogram(recorded) for name, recorded in counted.items()})

    def checkpoint(self, folder: Path) -> None:
        import wandb

        if self.artifact:
            kept = wandb.Artifact(f"checkpoint-{self._run.id}", type="model")
            kept.add_dir(str(folder), policy="immutable")  # else W&B copies all of it to a place of its own
            self._run.log_artifact(kept)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        self._send({name: _table(rows)})
        if name in DRAWN:
            x, y, title = DRAWN[name]
            drawn = [row for row in rows if row[x] is not None]
            self._send({f"{name}_curve": wandb.plot.line(_table(drawn), x, y, title=title)})

    def finish(self, metrics: Mapping[str, float], *, failed: bool) -> None:
        if self._run is None:
            return
        if self.mode == "offline":
            print(f"W&B: recorded offline, upload with: wandb sync {Path(self._run.dir).parent}")
        self._logged |= metrics.keys()
        if not failed:
            self._check_sweep()
        self._run.summary.update({name: shown(value) for name, value in metrics.items()})
        self._run.finish(exit_code=1 if failed else 0)
        if self._earlier:
            replace(self._earlier, by=Path(self._run.dir).parent)


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    columns: list[str | int] = list(rows[0])
    return wandb.Table(columns=columns, data=[list(row.values()) for row in rows])


def _histogram(recorded: Mapping[str, Any]) -> Any:
    """W&B's histogram of the same counts, between the same edges."""
    import wandb

    return wandb.Histogram(np_histogram=(np.array(recorded["counts"]), bin_edges(recorded)))
