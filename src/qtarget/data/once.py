"""`prepare`, once for all runs and ranks on the same data where there is much of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from qtarget.data.module import DataConfig, Prepared, prepare
from qtarget.data.recipe import UnknownContentError, recipe, recipe_digest, sources_of
from qtarget.data.sources.data_files import Files
from qtarget.data.sources.jsonl import Jsonl
from qtarget.errors import QTargetError
from qtarget.files import local_files

LARGE_BYTES, LARGE_ROWS = 1 << 20, 2000
"""Of files, or of rows that are made: from here on a preparation takes seconds, and is kept."""


def prepare_once(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    holder: Path,
    say: Callable[[str], object] = print,
) -> Prepared:
    """`prepare`, where an equal preparation is read from a folder of `holder` if one is there, and else left there.

    Of several processes one prepares and the others wait. Where data.keep says so, or there is little data, or what it
    is made by isn't known, nothing is kept there; the last preparation of little data is kept in memory, for the next
    job of this process. say: what is said where this takes a while.
    """
    made_by = _recipe(config, tokenizer, context)
    if made_by is None:
        return _prepared_last(config, tokenizer, context)
    from qtarget.data import prepared_files  # pyarrow comes in here
    from qtarget.data.stored import NotStorableError

    folder = holder / recipe_digest(made_by)
    try:
        reader = prepared_files.build_missing(folder, made_by, prepared_files.Build(config, tokenizer, context), say)
    except NotStorableError as error:
        say(f"prepared rows aren't kept: {error} in held-out rows can't be written to a file")
        return prepare(config, tokenizer, context)
    return prepared_files.opened(folder, made_by, reader)


_last: dict[str, Prepared] = {}
"""The last preparation of little data, by its recipe."""


def _prepared_last(config: DataConfig, tokenizer: PreTrainedTokenizerBase, context: int) -> Prepared:
    """`prepare`, or what it made for the job before where that is the same."""
    try:
        key = None if _is_large(config) else recipe_digest(recipe(config, tokenizer, config.limit(context)))
    except UnknownContentError:
        key = None
    if key and key in _last:
        return _last[key]
    _last.clear()
    prepared = prepare(config, tokenizer, context)
    if key:
        _last[key] = prepared
    return prepared


def _recipe(config: DataConfig, tokenizer: PreTrainedTokenizerBase, context: int) -> dict[str, str] | None:
    """None: nothing is kept."""
    if config.keep is False or (config.keep == "auto" and not _is_large(config)):
        return None
    try:
        return recipe(config, tokenizer, config.limit(context))
    except UnknownContentError as error:
        if config.keep is True:
            raise QTargetError(
                f"data.keep=true: rows are kept where all that makes them is known by its content, and {error} is not: "
                "leave data.keep at auto, which prepares them for every run"
            ) from error
        return None


def _is_large(config: DataConfig) -> bool:
    """By what can be seen without reading it. A data set of the hub counts as large."""
    size, on_hub, made = 0, False, False
    for source in (*sources_of(config.source), *sources_of(config.evaluated)):
        if isinstance(source, Jsonl | Files):
            given = getattr(source, "files", None) or {}
            names = [source.path, source.heldout, *given.values()]
            local = [file for name in names for one in _listed(name) for file in local_files(Path(one).expanduser())]
            size += sum(file.stat().st_size for file in local)
            on_hub = on_hub or not local
        else:
            made = True
    rows = sum(count or 0 for count in (config.rows, config.reserve_rows, config.heldout_rows))
    return on_hub or size >= LARGE_BYTES or (made and rows >= LARGE_ROWS)


def _listed(names: Any) -> list[str]:
    return [str(name) for name in (names if isinstance(names, list | tuple) else [names]) if name]
