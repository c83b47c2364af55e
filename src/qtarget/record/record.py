"""The record of a run: one folder, some files, the source of truth for every table and figure.

metrics.jsonl    one line a measurement, appended
histograms.jsonl one line an evaluation during training: how γ, w and p(y) are spread, appended
lens.jsonl       one line a step that `lens.every` names: what the design makes of a few rows, appended
config.yaml      the resolved configuration
result.json      status, design as run, metrics, versions; replaced atomically
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import subprocess
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from qtarget.errors import QTargetError
from qtarget.files import settle, write_atomically

if TYPE_CHECKING:
    from qtarget.train.histograms import Histogram  # torch comes in there

PACKAGES = (
    "qtarget",
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "jinja2",
    "peft",
    "datasets",
    "pyarrow",
    "numpy",
    "sympy",
    "math-verify",
    "reasoning-gym",
    "hydra-core",
    "wandb",
)
"""That a number of a run may depend on, beside Python."""
METRICS, HISTOGRAMS, LENS = "metrics.jsonl", "histograms.jsonl", "lens.jsonl"
APPENDED = {"metrics_bytes": METRICS, "histograms_bytes": HISTOGRAMS, "lens_bytes": LENS}
"""What `offsets` says of a file that grows: its length, and its name."""
BEAT = 60.0
"""Seconds between two heartbeats, whatever the run is doing."""


class Tracker(Protocol):
    """Somewhere else that wants to see the same values, in the process of rank 0.

    start: returns its own name of the run, or None; several trackers return their names by tracker. A run that goes on
    is given it again, as info["tracked_as"]: what the folder's metrics.jsonl and histograms.jsonl hold by then was
    measured before.
    log: a metric's name → a float, which may be NaN or ±inf.
    What `start` raises ends the run. What the other methods raise is a warning.
    """

    def start(
        self, folder: Path, info: Mapping[str, Any], config: Mapping[str, Any]
    ) -> str | Mapping[str, str] | None: ...
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def histograms(self, step: int, counted: Mapping[str, Mapping[str, Any]]) -> None: ...
    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None: ...
    def checkpoint(self, folder: Path) -> None: ...
    def finish(self, metrics: Mapping[str, float], *, failed: bool) -> None: ...


class Record:
    """Writes one run's folder and forwards the same values to a tracker."""

    def __init__(self, folder: Path, tracker: Tracker) -> None:
        self.folder, self.tracker = folder, tracker
        self._result: dict[str, Any] = {}
        self._began = time.monotonic()
        self._writing = threading.Lock()

    def start(
        self, info: Mapping[str, Any], config: Mapping[str, Any], offsets: Mapping[str, Any] | None = None
    ) -> None:
        """Begin. What an unfinished earlier attempt left in the folder is replaced.

        offsets: of a run that goes on from a saved state, what `offsets` returned when it was saved. Lines of the
        record that came later are cut off.
        """
        before = stored_result(self.folder) or {} if offsets else {}
        for leftover in ("traceback.txt", "samples.jsonl", "heldout_nll.jsonl"):
            (self.folder / leftover).unlink(missing_ok=True)
        write_atomically(self.folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        self._result = {
            "status": "running",
            **info,
            "metrics": {},
            "error": None,
            "started": before.get("started") or _now(),
            "attempts": before.get("attempts", 0) + 1,
            "tracked_as": before.get("tracked_as"),
            "versions": versions(),
            "git": git_commit(),
        }
        self._began = time.monotonic() - (offsets["seconds"] if offsets else 0.0)
        self._write()
        for length, name in APPENDED.items():
            self._cut(self.folder / name, offsets.get(length, 0) if offsets else 0)
        if not (self.folder / LENS).stat().st_size:
            (self.folder / LENS).unlink()  # where nothing is recorded for the lens there is no such file
        self.note(tracked_as=self.tracker.start(self.folder, {**info, "tracked_as": before.get("tracked_as")}, config))

    @staticmethod
    def _cut(path: Path, length: int) -> None:
        """Leave the first `length` bytes of a file."""
        with path.open("ab") as file:
            if file.tell() < length:
                raise QTargetError(
                    f"{path} is shorter than when the state was saved that this run would go on from: "
                    "set resume=never to start afresh"
                )
            file.truncate(length)

    def offsets(self) -> dict[str, Any]:
        """Where the record stands, for `start` to go on from; see `settle`."""
        return {
            "config_hash": self._result["config_hash"],
            **{length: _size(self.folder / name) for length, name in APPENDED.items()},
            "seconds": time.monotonic() - self._began,
        }

    def settle(self) -> None:
        """Wait until the measurements so far are on disk."""
        for path in (self.folder / name for name in APPENDED.values()):
            if path.is_file():
                settle(path)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Meanwhile the heartbeat goes on, however long nothing is measured."""
        over = threading.Event()
        thread = threading.Thread(target=self._beat, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _beat(self, over: threading.Event) -> None:
        while not over.wait(BEAT):
            with suppress(OSError):  # the run itself meets a full disk, and says so
                self._write()

    def note(self, **facts: Any) -> None:
        """Add facts that are known only once the run is under way."""
        self._write(**facts)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._append(METRICS, step, _finite(metrics))
        self._tell_tracker(self.tracker.log, step, metrics)

    def histograms(self, step: int, counted: Mapping[str, Histogram]) -> None:
        """Of the tokens trained on since the last ones."""
        if counted:
            plain = {name: asdict(histogram) for name, histogram in counted.items()}
            self._append(HISTOGRAMS, step, plain)
            self._tell_tracker(self.tracker.histograms, step, plain)

    def lens(self, line: Mapping[str, Any]) -> None:
        """What the lens shows of one step, or the rows that it is shown of."""
        with (self.folder / LENS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")

    def first_of_lens(self) -> Mapping[str, Any] | None:
        """The rows that it is shown of, where an attempt before has written them."""
        path = self.folder / LENS
        if not path.is_file():
            return None
        with path.open(encoding="utf-8") as file:
            first: Mapping[str, Any] = json.loads(file.readline())
        return first

    def _append(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        line = {"step": step, "time": round(time.monotonic() - self._began, 3), **values}
        with (self.folder / name).open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._write()

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of equal keys for the tracker; here their files and result.json have them."""
        if rows:
            self._tell_tracker(self.tracker.table, name, rows)

    def checkpoint(self, folder: Path) -> None:
        """Show the tracker the trained model."""
        self._tell_tracker(self.tracker.checkpoint, folder)

    def finish(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        self._close("finished", metrics=_finite(metrics))
        self._tell_tracker(self.tracker.finish, metrics, failed=False)
        return self._result

    def reread(self) -> dict[str, Any]:
        """Take over what another process has written of this run since."""
        self._result = stored_result(self.folder) or self._result
        return self._result

    def fail(self, error: BaseException) -> None:
        status = "failed" if isinstance(error, Exception) else "interrupted"
        with suppress(OSError):  # on a full disk; the error is raised in any case
            self._close(status, error=f"{type(error).__name__}: {error}".removesuffix(": "))
            (self.folder / "traceback.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        self._tell_tracker(self.tracker.finish, {}, failed=True)

    def _close(self, status: str, **facts: Any) -> None:
        self._write(status=status, seconds=round(time.monotonic() - self._began, 1), **facts)

    @staticmethod
    def _tell_tracker(call: Callable[..., None], *values: Any, **options: Any) -> None:
        """The record is the truth: a tracker that fails under way costs a warning, not the run."""
        try:
            call(*values, **options)
        except Exception as error:
            warnings.warn(f"the tracker failed, the local record goes on: {error}", stacklevel=3)

    def _write(self, **facts: Any) -> None:
        with self._writing:
            self._result |= {**facts, "heartbeat": _now()}
            write_atomically(self.folder / "result.json", json.dumps(self._result, indent=1, ensure_ascii=False))


@dataclass(frozen=True)
class NullRecord:
    """A record that writes nothing: what the ranks have that train beside rank 0."""

    folder: Path

    def start(
        self, info: Mapping[str, Any], config: Mapping[str, Any], offsets: Mapping[str, Any] | None = None
    ) -> None: ...
    def beating(self) -> AbstractContextManager[None]:
        return nullcontext()

    def offsets(self) -> dict[str, Any]:
        return {}

    def settle(self) -> None: ...

    def note(self, **facts: Any) -> None: ...
    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None: ...
    def checkpoint(self, folder: Path) -> None: ...
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def histograms(self, step: int, counted: Mapping[str, Histogram]) -> None: ...
    def lens(self, line: Mapping[str, Any]) -> None: ...
    def first_of_lens(self) -> Mapping[str, Any] | None:
        return None

    def fail(self, error: BaseException) -> None: ...

    def finish(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        return {"metrics": dict(metrics)}


def replay(folder: Path, tracker: Tracker) -> None:
    """Show a tracker the record of a finished run, as if it ran now."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    result = stored_result(folder) or {}
    tracker.start(folder, result, config)
    closing = {name: math.nan if value is None else value for name, value in result["metrics"].items()}
    tracker.finish(closing, failed=False)


def stored_result(folder: Path) -> dict[str, Any] | None:
    """What an earlier attempt left, or None."""
    path = folder / "result.json"
    try:
        result: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise QTargetError(f"{path} can't be read ({error}): remove {folder} to run this job again") from error
    return result


def make_folder(folder: Path) -> None:
    """Raise QTargetError, before any work, where results could not be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise QTargetError(
            f"can't write results to {folder}: {error}. Set output_dir=FOLDER to one you can write"
        ) from error


def versions() -> dict[str, str]:
    """Of Python and of packages, by name."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def git_commit() -> str | None:
    """The commit of the working folder, where it is a git checkout."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _size(path: Path) -> int:
    """In bytes; 0 where there is no such file."""
    return path.stat().st_size if path.is_file() else 0


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN; a value that isn't a number is kept as null."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
