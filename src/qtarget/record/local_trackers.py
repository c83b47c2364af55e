"""Trackers that need no account: trackio, TensorBoard, and a CSV file of each run.

What a run that goes on has measured before is written anew: each of them holds what the record holds, once.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from qtarget.errors import QTargetError
from qtarget.extras import require
from qtarget.files import remove
from qtarget.record.trackers import NoTracker, as_sent, bin_edges, counted_before, measured_before, name_before
from qtarget.settings import Text, setting

FLUSH_SECONDS = 10
"""How long TensorBoard's file may be behind the run."""


class Local(NoTracker):
    """A tracker that begins with what the record holds already, and gets the closing metrics at the last step.

    Of a metric that has a curve the closing value is a mean over the whole run: it is called closing/NAME here, as a
    summary of its own is what none of these has.
    """

    def __init__(self) -> None:
        self._step = 0
        self._logged: set[str] = set()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._step = step
        self._logged |= metrics.keys()
        self._write(step, metrics)

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        raise NotImplementedError

    def _closing(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return {f"closing/{name}" if name in self._logged else name: value for name, value in metrics.items()}

    def _replay(self, folder: Path) -> None:
        for step, metrics in measured_before(folder):
            self.log(step, metrics)
        for step, counted in counted_before(folder):
            self.histograms(step, counted)


@dataclass
class Trackio(Local):
    """A run of trackio's, in the project's SQLite file below TRACKIO_DIR; `trackio show` draws it.

    The run has the record's name, its group is the experiment, its configuration has dotted keys. Of trackio 0.43: a
    run has no summary, so closing metrics are a row at the last step, and no state, so a run that failed has an alert.
    """

    project: str = setting("qtarget", Text(), "the project of trackio that runs go to")
    _run: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__init__()
        require("trackio", "tracker=trackio", "trackio")

    def start(self, folder: Path, info: Mapping[str, Any], config: Mapping[str, Any]) -> str:
        self._forget(name_before(info, "trackio"))
        self._run = self._begin(info, config)
        self._replay(folder)
        return str(self._run.id)

    def _begin(self, info: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
        import trackio

        sent = as_sent(config, info["choices"])
        try:
            with redirect_stdout(StringIO()):
                return trackio.init(
                    project=self.project,
                    name=info["name"],
                    group=info["experiment"],
                    config={key: value for key, value in sent.items() if not key.startswith("_")},  # reserved
                    embed=False,
                )
        except (ValueError, OSError) as error:
            raise QTargetError(f"trackio can't begin a run in tracker.project={self.project}: {error}") from error

    def _forget(self, run_id: str | None) -> None:
        """Remove the earlier attempt of a run that goes on."""
        import trackio

        try:
            runs = list(trackio.Api().runs(self.project)) if run_id else []
        except ValueError:  # no such project
            return
        for run in runs:
            if run.id == run_id:
                run.delete()

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def histograms(self, step: int, counted: Mapping[str, Mapping[str, Any]]) -> None:
        import trackio

        shown = {name: (np.array(one["counts"]), bin_edges(one)) for name, one in counted.items()}
        self._run.log({name: trackio.Histogram(np_histogram=one) for name, one in shown.items()}, step=step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        import trackio

        values = [list(row.values()) for row in rows]
        self._run.log({name: trackio.Table(columns=list(rows[0]), data=values)}, step=self._step)

    def finish(self, metrics: Mapping[str, float], *, failed: bool) -> None:
        import trackio

        if self._run is None:
            return
        if metrics:
            self._write(self._step, self._closing(metrics))
        with redirect_stdout(StringIO()):
            if failed:
                self._run.alert("the run failed", "result.json of its folder says why", trackio.AlertLevel.ERROR)
            trackio.finish()
        print(f'trackio: look at it with: trackio show --project "{self.project}"')


@dataclass
class TensorBoard(Local):
    """TensorBoard's event file, by Lightning's logger, in FOLDER/tensorboard/NAME of a run's folder.

    Scalars and histograms at their steps, tables as text, the configuration with the closing metrics under HPARAMS. The
    sums of a histogram are those of its bins' middles. Two lines of one step may hold the same count of tokens; it is
    written once.
    """

    _logger: Any = field(default=None, init=False, repr=False)
    _written: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _sent: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__init__()
        require("tensorboard", "tracker=tensorboard", "tensorboard")

    def start(self, folder: Path, info: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        from lightning.pytorch.loggers import TensorBoardLogger

        remove(folder / "tensorboard")
        name = re.sub(r"^\.|[^\w.=,+-]", "_", info["name"])
        options: Any = {"default_hp_metric": False, "flush_secs": FLUSH_SECONDS}
        self._logger = TensorBoardLogger(folder, name="tensorboard", version=name, **options)
        self._written = {}
        self._sent = as_sent(config, info["choices"])
        self._replay(folder)

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        new = {name: value for name, value in metrics.items() if self._written.get(name) != step}
        self._written |= dict.fromkeys(new, step)
        self._logger.log_metrics(new, step)

    def histograms(self, step: int, counted: Mapping[str, Mapping[str, Any]]) -> None:
        for name, one in counted.items():
            edges, counts = bin_edges(one), np.array(one["counts"])
            middles = (edges[:-1] + edges[1:]) / 2
            self._logger.experiment.add_histogram_raw(
                name,
                min=one["low"],
                max=one["high"],
                num=int(counts.sum()),
                sum=float(counts @ middles),
                sum_squares=float(counts @ middles**2),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        lines: list[list[Any]] = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
        text = "\n".join(f"| {' | '.join(map(_in_cell, line))} |" for line in lines)
        self._logger.experiment.add_text(name, text, self._step)

    def finish(self, metrics: Mapping[str, float], *, failed: bool) -> None:
        if self._logger is None:
            return
        self._logger.log_hyperparams(self._sent, self._closing(metrics), self._step)
        self._logger.finalize("failed" if failed else "success")


def _in_cell(value: Any) -> str:
    """A value in a table of Markdown."""
    return str(value).replace("|", "\\|").replace("\n", " ")


@dataclass
class CSV(Local):
    """metrics.csv and hparams.yaml by Lightning's logger, and NAME.csv of each table, in FOLDER/csv of a run's folder.

    A line a measurement, the closing metrics in the last; histograms stay in histograms.jsonl alone.
    """

    _logger: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__init__()

    def start(self, folder: Path, info: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        from lightning.pytorch.loggers import CSVLogger

        remove(folder / "csv")
        self._logger = CSVLogger(folder, name="", version="csv", flush_logs_every_n_steps=1)
        self._logger.log_hyperparams(as_sent(config, info["choices"]))
        self._replay(folder)

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._logger.log_metrics(metrics, step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        with (Path(self._logger.log_dir) / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def finish(self, metrics: Mapping[str, float], *, failed: bool) -> None:
        if self._logger is None:
            return
        if metrics:
            self._write(self._step, self._closing(metrics))
        self._logger.finalize("failed" if failed else "success")
