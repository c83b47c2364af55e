"""The caches in QTARGET_CACHE, scores of references and prepared data: what each is of, and which files are ours.

A folder without a manifest as qtarget writes it isn't ours, whatever its files are called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtarget import cache_layout
from qtarget.cache_layout import BUILDING, LOCK, MANIFEST, PREPARED_FILES, READING
from qtarget.errors import QTargetError
from qtarget.files import cache_dir
from qtarget.run.freeing import Item, is_held, is_unfinished, runs_of, shown

OUTPUTS = "outputs"


@dataclass(frozen=True)
class CacheKind:
    """folder: below QTARGET_CACHE. files: names of those in a cache, and what a cut-off write of one is of. keys: of
    its manifest.
    """

    folder: str
    what: str
    files: re.Pattern[str]
    keys: frozenset[str]

    def parts(self, cache: Path) -> tuple[Path, ...]:
        """The manifest first: what is left of a cache is none. The folder stays, with the lock that is held."""
        mine = [path for path in cache.glob("*") if self._is_part(path) and not path.is_symlink()]
        return tuple(sorted(mine, key=lambda path: (path.name != MANIFEST, path.name)))

    def _is_part(self, path: Path) -> bool:
        is_build = path.name == BUILDING and path.is_dir()
        return bool(self.files.fullmatch(path.name)) or is_unfinished(path.name, self.files) or is_build

    def manifest(self, cache: Path) -> Mapping[str, Any] | None:
        """None: there is none of ours."""
        path = cache / MANIFEST
        if cache.is_symlink() or path.is_symlink():
            return None
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return facts if isinstance(facts, dict) and self.keys <= facts.keys() else None


REFERENCES = CacheKind(
    cache_layout.REFERENCES,
    "scores of a reference",
    re.compile(rf"{re.escape(MANIFEST)}|head\.safetensors|shard-[0-9]{{5,}}\.safetensors"),
    frozenset({"format", "identity", "shards"}),
)
PREPARED = CacheKind(
    cache_layout.PREPARED,
    "prepared data",
    re.compile("|".join(map(re.escape, (MANIFEST, *PREPARED_FILES)))),
    frozenset({"format", "identity", "prepared"}),
)
LOCKS = (LOCK, READING)


def cache_items() -> list[Item]:
    """Every cache, and what a build of prepared data has left that was cut off; those in use too."""
    return [item for kind in (REFERENCES, PREPARED) for item in _of_kind(kind)]


def _of_kind(kind: CacheKind) -> Iterator[Item]:
    holder = cache_dir() / kind.folder
    if holder.is_symlink() or not holder.is_dir():
        return
    for cache in sorted(holder.glob("*")):
        if kind.manifest(cache) is not None:
            yield Item(cache, cache, kind.what, kind.parts(cache), LOCKS)
        elif kind is PREPARED and (cache / BUILDING).is_dir() and not cache.is_symlink():
            yield Item(cache, cache, "left of a build that was cut off", kind.parts(cache), LOCKS)


def described(cache: Path) -> str:
    """Of what a cache is, in words."""
    if facts := REFERENCES.manifest(cache):
        return f"{facts.get('made_from', {}).get('model', '')}"
    if facts := PREPARED.manifest(cache):
        known = facts["prepared"]
        return f"{known['counts']['train']} rows{' of ' * bool(known['described'])}{known['described']}"
    return ""


def check_idle(roots: Sequence[Path], way: str = "leave --caches out") -> None:
    """Raise QTargetError for a run that is at work, which may be about to read any cache; say where runs were looked
    for: below the roots and the folder of results that is the default. Runs of other folders are seen by the lock of
    the cache alone, once they read it.
    """
    outputs = Path(OUTPUTS).resolve()
    searched = list(dict.fromkeys([*roots, *([outputs] if outputs.is_dir() else [])]))
    if busy := [run for run in runs_of(searched) if is_held(run)]:
        raise QTargetError(f"{shown(busy[0])} is at work and may read a cache: wait for it, or {way}")
    places = ", ".join(str(shown(folder)) for folder in searched) or "this folder"
    print(f"no run is at work below {places}; a run elsewhere that is yet to read a cache isn't seen")
