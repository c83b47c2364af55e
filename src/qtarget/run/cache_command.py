"""`qtarget cache`: what runs share in QTARGET_CACHE is listed and freed; or a data set is scored for them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from qtarget.config.parsers import cache_parser
from qtarget.errors import QTargetError
from qtarget.files import cache_dir
from qtarget.run.cache_folders import cache_items, check_idle, described
from qtarget.run.freeing import Item, free, is_held, shown
from qtarget.units import in_bytes


def cache(arguments: Sequence[str]) -> int:
    """`qtarget cache [NAME…] [--yes]`, or `qtarget cache [detail=…] [role=…] [overrides of train] [--cfg job]`."""
    options = cache_parser().parse_intermixed_args(arguments)
    if not options.cfg and not any("=" in key for key in options.keys):
        return list_caches(options.keys, free_them=options.yes)
    if options.yes:
        raise QTargetError("--yes frees caches, and keys score data: give one or the other")
    from qtarget.run.cache_scores import score  # torch and transformers come in here

    return score(options.keys, shows=options.cfg is not None)


def list_caches(names: Sequence[str], *, free_them: bool) -> int:
    """Print the caches called so, all of none, with their sizes; free those that nobody uses.

    names: of folders or of kinds ("references", "prepared"), also as patterns. Raises QTargetError for one that is
    none, and where a run is at work that may be about to read one.
    """
    items = _named(names)
    if free_them and items:
        check_idle([], way="leave --yes out")
    freed = held = 0
    for item in items:
        size, in_use = item.size, is_held(item.holder, item.locks)
        left = "in use" if in_use else free(item) if free_them else ""
        note = f"  ({left}{': left' * free_them})" if left else ""
        print(f"{in_bytes(size):>10}  {item.what:<24}  {shown(item.path)}  {described(item.path)}{note}".rstrip())
        freed += 0 if left else size
        held += size
    print(_closing(len(items), held, freed, free_them=free_them))
    return 0


def _closing(count: int, held: int, freed: int, *, free_them: bool) -> str:
    if not count:
        return f"no caches in {cache_dir()}; `qtarget cache detail=… data=…` scores data, see --help"
    if free_them:
        return f"freed {in_bytes(freed)} of {in_bytes(held)}"
    return f"{in_bytes(held)} in {count} cache{'s' * (count > 1)}: --yes frees {in_bytes(freed)} that nobody uses now"


def _named(names: Sequence[str]) -> list[Item]:
    items = cache_items()
    for name in names:
        if not any(_is_called(item, name) for item in items):
            raise QTargetError(f"no cache is called {name}: `qtarget cache` lists those in {cache_dir()}")
    return [item for item in items if not names or any(_is_called(item, name) for name in names)]


def _is_called(item: Item, name: str) -> bool:
    return fnmatchcase(item.path.name, name) or item.path.parent.name == name
