"""`data=hub`: the one door under its earlier name, which holds out nothing unless it is asked to."""

from __future__ import annotations

from dataclasses import dataclass

from qtarget.data.sources.data_files import Files
from qtarget.settings import Nullable, Share, setting


@dataclass(frozen=True)
class Hub(Files):
    """Files whose share of held-out rows is 0 where none is given: see `qtarget.data.sources.data_files.Files`."""

    heldout_share: float | None = setting(
        0.0, Nullable(Share()), "without heldout: share of the training rows, by a hash of the prompt; null: 0.1"
    )
