"""What a run says when it is over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtarget.compare.groups import kept_interval
from qtarget.files import files_of
from qtarget.run.exported_model import CHECKPOINT
from qtarget.units import in_bytes, in_time

SHOWN = {
    "test/accuracy": "accuracy",
    "test/nll": "nll",
    "test/bits_per_byte": "bits/byte",
    "test/kl_prior": "KL to prior",
}
"""Where there are such, and what they are called here."""


def closing_line(result: Mapping[str, Any], folder: Path) -> str:
    """Of a finished run's record: test metrics, time, and what its folder holds."""
    metrics = result["metrics"]
    tested = [_said(metrics, name, title, folder) for name, title in SHOWN.items() if name in metrics]
    test = f": test {', '.join(tested)}" if tested else ""
    checkpoint = size_of(folder / CHECKPOINT)
    part = f", {in_bytes(checkpoint)} of it the checkpoint" if checkpoint else ""
    return (
        f"{result['name']}: finished in {in_time(result['seconds'])}{test}; "
        f"wrote {in_bytes(size_of(folder))} to {folder}{part}"
    )


def _said(metrics: Mapping[str, float | None], name: str, title: str, folder: Path) -> str:
    value, low, high = (metrics.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return f"{title} not finite"
    if low is None and (kept := kept_interval(folder, name)):
        low, high = kept.low, kept.high
    within = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
    return f"{title} {value:.4g}{within}"


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; 0 where there is none. Links are not followed."""
    return sum(path.lstat().st_size for path in files_of(folder) if path.is_file() and not path.is_symlink())
