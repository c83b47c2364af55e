"""Which configurations hold out other rows than an earlier build did.

Up to 0.1.0 a share was held out whole, whatever was evaluated of it: rows behind `data.heldout_rows`, and all of them
beside a `data.heldout_source`, were neither trained nor evaluated on; and of a few rows it could hold out none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qtarget.config.changed_inputs import HUB, JSONL, Node
from qtarget.data.sources.loading import is_file_name
from qtarget.errors import QTargetError

FILES = "qtarget.data.sources.data_files.Files"


def names_heldout_file(source: Node) -> bool:
    """Whether a source names a file of held-out rows, and no split."""
    named = source.get("heldout")
    return source.get("_target_") in (FILES, HUB, JSONL) and isinstance(named, str) and is_file_name(named)


def shares_otherwise(config: Node) -> bool:
    """Of a resolved configuration: whether other rows are trained or evaluated on. Ids of the hub are not looked up."""
    data = config["data"]
    source = data.get("source")
    if not isinstance(source, Mapping) or source.get("_target_") not in (HUB, JSONL):
        return False
    if not source.get("heldout_share") or source.get("heldout"):
        return False
    if data.get("heldout_source") or data.get("heldout_rows") is not None:
        return data.get("rows") != 0  # an evaluation trains on none
    path = Path(str(source.get("path"))).expanduser()
    return path.is_file() and _holds_out_none(source)


def _holds_out_none(source: Node) -> bool:
    """Whether no row lies within the share: then one is held out now. Reads no further than the first that does."""
    from qtarget.config.composing import instantiate  # Hydra comes in here

    try:
        return bool(instantiate(source).side(None).prompts)
    except QTargetError:
        return False  # the run itself says what is wrong
