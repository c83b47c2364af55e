"""What can't be had of rows that are read while training goes on (data.source.streaming=true)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qtarget.config.names import NO_NOISE
from qtarget.config.references import CachedReference
from qtarget.errors import QTargetError

if TYPE_CHECKING:
    from qtarget.config.run_config import RunConfig


def check_stream(cfg: RunConfig) -> None:
    """Raise QTargetError, with all that has to be set, where a stream is asked for what takes all of its rows."""
    source = cfg.data.get("source")
    if not isinstance(source, Mapping) or not source.get("streaming") or cfg.data.get("rows") == 0:
        return
    if problems := [*_of_data(cfg.data), *_of_heldout(cfg.data, source), *_of_run(cfg)]:
        raise QTargetError(f"data.source.streaming=true reads its rows once training has begun. {'; '.join(problems)}")


def _of_data(data: Mapping[str, Any]) -> Iterator[str]:
    if data.get("rows") is not None or data.get("reserve_rows"):
        yield "data.rows and data.reserve_rows take a share of them: leave them at null and 0"
    if data.get("packing") is not None:
        yield "data.packing sorts all of them by length: leave it at null"
    if {**NO_NOISE, **(data.get("noise") or {})} != NO_NOISE:
        yield "noise is put into a share of all of them: write data/noise=none"
    if data.get("keep") is True:
        yield "nothing is kept of them: leave data.keep at auto"
    if data.get("truncation") == "error":
        yield "the longest isn't known before: set data.truncation=drop or =cut"
    if data.get("contamination") == "error" and data.get("heldout_rows") != 0:
        yield (
            "which of them answer a held-out prompt isn't known before: set data.contamination=drop, which leaves such "
            "rows out as they are read, or =allow"
        )


def _of_heldout(data: Mapping[str, Any], source: Mapping[str, Any]) -> Iterator[str]:
    named = data.get("heldout_source") or source.get("heldout")
    if not named and data.get("heldout_rows") is None:
        yield (
            "the rows to evaluate on are the first ones, or others: set data.heldout_rows=N, or name a file with "
            "data.source.heldout or data.heldout_source (data.heldout_rows=0: none)"
        )


def _of_run(cfg: RunConfig) -> Iterator[str]:
    if cfg.trainer.epochs is not None:
        yield "how many an epoch has isn't known: set trainer.max_steps=N trainer.epochs=null"
    for role, reference in cfg.references.items():
        if isinstance(reference, CachedReference):
            yield f"a cache holds scores of all of them: set reference@references.{role}=frozen"
        elif reference.hint_template:
            yield f"references.{role}.hint is put in front of all of them: take another kind of reference"
