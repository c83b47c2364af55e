"""Files that hold the old content or the new, never half of one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path


def replace_with(path: Path, write: Callable[[Path], object]) -> None:
    """`write` a file beside `path` and put it in its place once it is on disk, even if the machine then stops."""
    scratch = _scratch(path)
    write(scratch)
    with scratch.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(scratch, path)


def write_atomically(path: Path, text: str) -> None:
    """The same for a text that is written often: whole at any time, but a machine that stops may lose the newest."""
    scratch = _scratch(path)
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def _scratch(path: Path) -> Path:
    """A name that no other process has, on this machine or another that sees the folder."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
