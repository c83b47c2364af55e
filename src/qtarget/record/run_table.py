"""`qtarget.read_runs`: finished and unfinished runs as rows, for one's own tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from qtarget.errors import QTargetError
from qtarget.extras import is_installed
from qtarget.record import runs as run_folders
from qtarget.record.runs import Run, describes_only, differing_keys, flatten

OWN = ("run", "status", "role", "task", "experiment", "seed", "step", "folder")
"""The first columns: what a run is called, whether it finished, the last step with a measurement, where it is."""


class RunTable(list[Run]):
    """Runs in the order of `qtarget compare`'s table; each has `metrics`, `history`, `config` and more."""

    def rows(self, *, differing: bool = False) -> list[dict[str, Any]]:
        """A mapping a run, all of the same keys; None where a run has no value.

        Its keys are those of `OWN`, groups with the option that was chosen (target, model, data.noise), closing metrics
        by name (test/nll) and the resolved configuration by dotted keys (optim.lr), with the types of config.yaml.
        differing: of groups and configuration only what differs between these runs.
        """
        values_by_run = [_values(run) for run in self]
        keys = dict.fromkeys(key for values in values_by_run for key in values)
        if differing:
            wanted = {*OWN, *differing_keys(self), *(key for run in self for key in run.metrics), *_groups(self)}
            keys = {key: None for key in keys if key in wanted}
        return [{key: values.get(key) for key in keys} for values in values_by_run]

    def history(self) -> list[dict[str, Any]]:
        """A mapping a step of a run: `run`, `step`, and what was measured there by name."""
        return [{"run": run.label, **line} for run in self for line in run.history]

    def to_pandas(self, *, differing: bool = False) -> Any:
        """`rows` as a pandas.DataFrame. Raises QTargetError where pandas is missing."""
        if not is_installed("pandas"):
            raise QTargetError("to_pandas() needs pandas: pip install pandas; rows() gives the same as dicts")
        import pandas

        return pandas.DataFrame(self.rows(differing=differing))


def read_runs(paths: str | Path | Sequence[str | Path]) -> RunTable:
    """All runs under a folder, or under several, whatever their state. Raises QTargetError where there are none."""
    return RunTable(run_folders.read_runs(paths))


def _values(run: Run) -> dict[str, Any]:
    own = {
        "run": run.label,
        "status": run.status,
        "role": run.role,
        "task": run.task,
        "experiment": run.experiment,
        "seed": run.seed,
        "step": int(run.history[-1]["step"]) if run.history else None,
        "folder": str(run.folder),
    }
    config = _typed_config(run.folder / "config.yaml")
    return {**own, **_chosen(run), **run.metrics, **{key: config[key] for key in config if config[key] != {}}, **own}


def _chosen(run: Run) -> dict[str, str]:
    """Where an option stands in the configuration → its name. With dots: target/reliance is a metric, too."""
    plain = {group.replace("/", "."): option for group, option in run.choices.items() if "@" not in group}
    placed = {group.partition("@")[2]: option for group, option in run.choices.items() if "@" in group}
    return placed | plain


def _typed_config(path: Path) -> dict[str, Any]:
    """By dotted keys; empty where the file can't be read, as `Run.config` is."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return flatten(config) if isinstance(config, dict) else {}


def _groups(runs: Sequence[Run]) -> set[str]:
    """Places of which not all runs have the same option."""
    chosen = [_chosen(run) for run in runs]
    places = {place for one in chosen for place in one if not describes_only(place)}
    return {place for place in places if len({one.get(place) for one in chosen}) > 1}
