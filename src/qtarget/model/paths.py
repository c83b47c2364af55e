"""Folders that qtarget keeps between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """$QTARGET_CACHE, or the platform's user cache folder for qtarget."""
    from platformdirs import user_cache_path  # only where the variable is unset

    chosen = os.environ.get("QTARGET_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("qtarget")
