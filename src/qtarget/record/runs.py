"""Run folders on disk → runs, named apart and in table order.

A run folder holds `result.json` (what ran and its final numbers), `metrics.jsonl` (the numbers over training) and
`config.yaml` (the resolved config). Everything is read once, here. Paths of the machine are shortened while reading,
but for those of the command itself: what is built from a run doesn't carry them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from qtarget.errors import QTargetError
from qtarget.resume_folders import STATE, newest, step_of

SETTLED = ("finished", "stopped")
"""Runs that have had their say: a sweep doesn't run them again, and a crashed one's best so far may be luck."""
BESIDE_RUNS = ("report.html", "comparison.png", "multirun.yaml", "sweep.json", "study.db")
"""Files that qtarget itself writes into a folder of runs: a shell's * names them, too."""
REASON = 120
"""Characters, at most, of the first sentence of an error, which a line names."""
SENTENCE_END = re.compile(r"(?<=[^\s.]{2})[.!?]\s+(?=[A-Z])")  # no dot of an initial, an abbreviation or a file's name
STALE = timedelta(minutes=10)  # a heartbeat comes every minute; a silence this long is no pause
ROLE_ORDER = {"base": 0, "teacher": 1}  # designs and controls follow, sorted by accuracy
ABSOLUTE_PATH = re.compile(r"(?:(?<![\w./\\…~])|(?<=file://))(?:~|[A-Za-z]:)?(?:[/\\][\w.@+=-]+){2,}[/\\]?")
# Config keys, or parts of keys, that name, place or describe a run without changing its numbers.
CONFIG_NOISE = (
    "about",
    "hydra",
    "paths",
    "tracker",
    "_target_",
    "output_dir",
    "experiment_name",
    "checkpoint",
    "resume",
)


@dataclass(frozen=True)
class Run:
    """One run folder. `metrics` are the final numbers, `history` the lines of metrics.jsonl merged by step."""

    folder: Path
    name: str
    label: str  # the name, made unique among the runs compared
    role: str = "design"  # base, teacher, design or control
    task: str = "train"  # the command that made it: train or evaluate
    status: str = "finished"  # finished, running, interrupted, failed, or stopped by a sweep
    experiment: str = ""
    seed: int | None = None
    error: str = ""
    git: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    design: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)  # flattened to dotted keys
    but_seed: str = (
        ""  # a hash of the whole configuration but its seeds: runs of one such hash are seeds of one another
    )
    history: tuple[Mapping[str, float], ...] = ()
    resume_step: int | None = None  # the optimizer step that an unfinished run would go on from
    outdated: tuple[str, ...] = ()  # what this build computes in another way than the one that made the run
    only_listed: bool = False  # a failed run, of which no table and no plot shows numbers

    @property
    def short_path(self) -> str:
        """Experiment folder and hash: enough to find the run, without the machine's own path."""
        return _printable(f"{self.folder.parent.name}/{self.folder.name}")

    @property
    def reason(self) -> str:
        """The first sentence of its error, for one line: its folder and the page hold the whole."""
        lines = self.error.strip().splitlines() or [""]
        sentence = SENTENCE_END.split(lines[0].removeprefix("QTargetError: "), 1)[0]
        return textwrap.shorten(sentence, REASON, placeholder=" …")

    @property
    def command(self) -> str:
        """The command line that made this run, as it was typed."""
        return shlex.join(["qtarget", self.task, *self.overrides])

    @property
    def shareable_command(self) -> str:
        """The command without the machine's own paths, for a page that travels."""
        return without_absolute_paths(self.command)

    @property
    def status_text(self) -> str:
        """The status, how far training came, and what is left to do: `interrupted after step 70`."""
        text = f"{self.status} after step {self.history[-1]['step']:.0f}" if self.history else self.status
        if self.resume_step is None or self.status == "running":
            return text
        return f"{text}, the same command goes on from step {self.resume_step}"

    @property
    def display_name(self) -> str:
        """The label with whatever sets this run apart from a finished design."""
        asides = [self.role] if self.role == "control" else []
        asides += [self.status] if self.status != "finished" else []
        asides += ["earlier build"] if self.outdated else []
        return f"{self.label} · {', '.join(asides)}" if asides else self.label


# Reading


def read_runs(paths: str | Path | Sequence[str | Path], now: datetime | None = None) -> list[Run]:
    """All runs under a folder, or under several, in table order; `now` decides which running ones have gone quiet.

    Raises QTargetError where there are none.
    """
    now = now or datetime.now(UTC)
    paths = [paths] if isinstance(paths, str | Path) else paths
    folders = run_folders(paths)
    if not folders:
        searched = ", ".join(str(path) for path in paths) or "(no folder was named)"
        raise QTargetError(
            f"No runs found: looked for result.json under {searched}. "
            "Train something first, for example: qtarget train target=sft"
        )
    return sorted(with_labels([read_run(folder, now) for folder in folders]), key=_table_order)


def run_folders(paths: Sequence[str | Path]) -> list[Path]:
    """Folders with a result.json under `paths`, each once."""
    folders: set[Path] = set()
    for path in map(Path, without_own_files(paths)):
        if not path.exists():
            raise QTargetError(f"No folder {path}: name a run folder or a folder of runs, such as outputs/demo.")
        result = path.parent / "result.json"  # any file of a run stands for it
        if path.is_file() and not result.is_file():
            raise QTargetError(f"{path} is no run: name run folders, or folders of runs")
        results = [result] if path.is_file() else files_below(path, ("result.json",))
        folders.update(result.resolve().parent for result in results)
    return sorted(folders, key=lambda folder: (folder.parent.name, folder.name, str(folder)))


def without_own_files(paths: Sequence[str | Path]) -> list[str | Path]:
    """`paths` without the files that qtarget writes beside runs."""
    return [path for path in paths if not (Path(path).name in BESIDE_RUNS and Path(path).is_file())]


def files_below(path: Path, names: Sequence[str]) -> Iterator[Path]:
    """Files of these names below a folder. What a run at work removes meanwhile, and a run's weights, are passed by."""
    for folder, folders, files in os.walk(path):  # pathlib's rglob raises where a folder goes while it looks
        if "result.json" in files:
            folders[:] = [name for name in folders if name not in (STATE, "checkpoint")]
        yield from (Path(folder) / name for name in names if name in files)


def read_run(folder: Path, now: datetime) -> Run:
    """One run folder; a result.json that cannot be read makes a failed run that says so."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if not isinstance(result, dict):
            raise ValueError("not a mapping")
    except (OSError, ValueError) as error:
        result = {"status": "failed", "error": f"result.json cannot be read: {error}"}
    name = without_absolute_paths(_printable(str(result.get("name") or folder.name)))
    config = _config(folder / "config.yaml")
    seed = result.get("seed")
    return Run(
        folder=folder,
        name=name,
        label=name,
        role=str(result.get("role") or "design"),
        task=str(result.get("task") or "train"),
        status=_status(result, now),
        experiment=str(result.get("experiment") or folder.parent.name),
        seed=seed if isinstance(seed, int) else None,
        error=without_absolute_paths(str(result.get("error") or "")),
        git=str(result.get("git") or ""),
        choices=_texts(result.get("choices")),
        overrides=tuple(str(override) for override in result.get("overrides") or ()),
        design=_texts(result.get("design")),
        rows={key: int(value) for key, value in _numbers(result.get("rows")).items()},
        metrics=_numbers(result.get("metrics")),
        versions=_texts(result.get("versions")),
        config={key: without_absolute_paths(value) for key, value in config.items()},
        but_seed=_hash_but_seeds(config, str(result.get("task") or "train")),
        history=_history(folder / "metrics.jsonl"),
        resume_step=_resume_step(folder, result),
    )


def without_absolute_paths(text: str) -> str:
    """`text` with absolute paths cut to their last part: a report travels, the folders of a machine don't.

    >>> without_absolute_paths("no file /home/ada/data/rows.jsonl")
    'no file …/rows.jsonl'
    """
    return ABSOLUTE_PATH.sub(lambda match: "…/" + re.split(r"[/\\]", match[0].rstrip("/\\"))[-1], text)


def _status(result: Mapping[str, Any], now: datetime) -> str:
    status = str(result.get("status") or "failed")
    if status != "running":
        return status
    try:
        beat = datetime.fromisoformat(str(result.get("heartbeat") or result.get("started")))
    except ValueError:
        return "interrupted"
    beat = beat if beat.tzinfo else beat.replace(tzinfo=UTC)
    return "interrupted" if now - beat > STALE else "running"


def _resume_step(folder: Path, result: Mapping[str, Any]) -> int | None:
    state = None if result.get("status") == "finished" else newest(folder / STATE)
    return step_of(state) if state else None


def _texts(mapping: object) -> dict[str, str]:
    items = mapping.items() if isinstance(mapping, dict) else ()
    return {str(key): without_absolute_paths(str(value)) for key, value in items if value is not None}


def _numbers(mapping: object) -> dict[str, float]:
    items = mapping.items() if isinstance(mapping, dict) else ()
    return {str(k): float(v) for k, v in items if isinstance(v, int | float) and not isinstance(v, bool)}


def _history(path: Path) -> tuple[Mapping[str, float], ...]:
    """Lines of metrics.jsonl merged by step; a resumed run repeats steps, and the later line is the one that counts."""
    merged: dict[float, dict[str, float]] = {}
    for line in logged(path):
        numbers = _numbers(line)
        if "step" in numbers:
            merged.setdefault(numbers["step"], {}).update(numbers)
    return tuple(merged[step] for step in sorted(merged))


def logged(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl as they were written, null for what was no number; a line cut short is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        with suppress(ValueError):  # the last line of a killed run is often half a line
            yield json.loads(line)


def _config(path: Path) -> dict[str, str]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # the table stands without it; only "what differs" is poorer
    values = flatten(config) if isinstance(config, dict) else {}
    return {key: "null" if value is None else str(value) for key, value in values.items()}


def _hash_but_seeds(config: Mapping[str, str], task: str) -> str:
    """Of classes and whole paths too, and for an evaluation of the checkpoint; "" where there is no config.yaml."""
    passed = {*CONFIG_NOISE} - {"_target_"} - ({"checkpoint"} if task == "evaluate" else set())
    parts = {key: re.split(r"[./@]", key) for key in config if key not in ("name", "role") and not is_seed(key)}
    same = sorted((key, config[key]) for key, words in parts.items() if passed.isdisjoint(words))
    return hashlib.sha256(repr(same).encode("utf-8", "surrogateescape")).hexdigest()[:16] if config else ""


def is_seed(key: str) -> bool:
    """Whether a configuration key is a seed: of the run, of its data or of its noise."""
    return key.rpartition(".")[2] == "seed"


def _printable(text: str) -> str:
    """A name of the file system with bytes that are no UTF-8 shown as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}; lists and empty mappings stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat


# Names and order


def with_labels(runs: Sequence[Run]) -> list[Run]:
    """Runs of one name get what tells them apart: `sft (seed=1)`, or the start of their hash where much differs."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    keys = {name: differing_keys(namesakes) for name, namesakes in by_name.items() if len(namesakes) > 1}
    return [_with_distinct_label(run, keys[run.name]) if run.name in keys else run for run in runs]


def _with_distinct_label(run: Run, keys: Sequence[str]) -> Run:
    """keys: those that differ between the runs of its name."""
    if not 1 <= len(keys) <= 2:
        return replace(run, label=f"{run.name} ({run.folder.name[:6]})")
    values = dict.fromkeys(f"{key.rsplit('.', 1)[-1]}={run.config.get(key, '–')}" for key in keys)
    return replace(run, label=f"{run.name} ({', '.join(values)})")


def differing_keys(runs: Iterable[Run]) -> list[str]:
    """Config keys whose values differ between `runs`: those outside the target design first, they matter most."""
    return sorted(differing([run.config for run in runs if run.config]), key=lambda key: (of_design(key), key))


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of flat configs whose values differ, but for those that only name, place or describe a run."""
    keys = {key for config in configs for key in config if not describes_only(key)}
    return [key for key in keys if len({str(config.get(key)) for config in configs}) > 1]


def differing_but_seeds(runs: Sequence[Run]) -> list[str]:
    """What else differs between runs that are taken for seeds of one another: keys and options."""
    if len({run.but_seed for run in runs if run.but_seed}) < 2:
        return []
    keys = [key for key in differing_keys(runs) if not is_seed(key)]
    return keys + sorted(differing([run.choices for run in runs])) or ["a path or a class"]


def of_design(key: str) -> bool:
    """Whether a config key belongs to the target design itself."""
    return key == "target" or key.startswith("target.")


def describes_only(key: str) -> bool:
    """Whether a config key, or a group, names, places or describes a run without changing its numbers."""
    return key in ("name", "role") or any(part in CONFIG_NOISE for part in re.split(r"[./@]", key))


def _table_order(run: Run) -> tuple[int, float, float, str, str]:
    accuracy = run.metrics.get("test/accuracy", math.nan)
    rank = math.inf if math.isnan(accuracy) else -accuracy
    return ROLE_ORDER.get(run.role, 2), rank, run.metrics.get("test/nll", math.inf), run.label, run.short_path


def finished(runs: Iterable[Run]) -> list[Run]:
    """The rows of the table."""
    return [run for run in runs if run.status == "finished"]


def check_metric(runs: Iterable[Run], metric: str) -> None:
    """Raises QTargetError where no finished run has the metric, with those they have."""
    metrics = sorted({name for run in finished(runs) for name in run.metrics})
    if metric not in metrics:
        raise QTargetError(f"no finished run holds the metric {metric!r}; they hold {', '.join(metrics) or 'none'}")


def unfinished(runs: Iterable[Run]) -> list[Run]:
    """What is listed under the table: running, interrupted, failed and stopped runs."""
    return [run for run in runs if run.status != "finished"]
