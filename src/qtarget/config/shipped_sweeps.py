"""The sweep files that come with qtarget, by name: `qtarget sweep --list`, `qtarget sweep noise_robustness`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from qtarget.errors import QTargetError


def sweeps_dir() -> Path:
    """Inside the installed package, or at the top of a source checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "sweeps"
    return shipped if shipped.is_dir() else package.parents[1] / "sweeps"


def shipped_sweeps() -> dict[str, Path]:
    """Name → file, in the order of the names."""
    return {path.stem: path for path in sorted(sweeps_dir().glob("*.yaml"))}


def sweep_file(named: str) -> Path:
    """The file that a command line names: one that is there, else a shipped one by its name.

    Raises QTargetError where `named` looks like a name and is none.
    """
    shipped = shipped_sweeps()
    if Path(named).exists() or not re.fullmatch(r"\w+", named):
        return Path(named)
    if named not in shipped:
        from qtarget.config.composing import nearest

        raise QTargetError(f"no file and no shipped sweep {named!r}{nearest(named, shipped)}")
    return shipped[named]


def list_sweeps() -> Iterator[str]:
    """A line each: its name, and the first sentence of the comment that it begins with."""
    shipped = shipped_sweeps()
    width = max(map(len, shipped))
    for name, path in shipped.items():
        yield f"{name:<{width}}  {_first_sentence(path.read_text(encoding='utf-8'))}"


def _first_sentence(text: str) -> str:
    comment = re.match(r"(?:# .*\n)+", text)
    words = " ".join(comment[0].replace("# ", "").split()) if comment else ""
    return re.split(r"(?<=[.?!]) ", words, maxsplit=1)[0]
