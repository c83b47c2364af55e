"""Frozen models that the jobs of a multirun in one process share, and the roles of one job too.

What is kept is what the last job read and the next one reads too: `release` lets go of the rest before that job loads
anything, so that no more models are in memory than one job needs. Outside of `sharing` nothing outlives its job. A
shared model is never trained: it has no gradients, and one whose weights were written to is loaded anew.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qtarget.model.policy import Policy

Key = Hashable


@dataclass(frozen=True)
class _Kept:
    model: Policy
    writes: list[int]

    @property
    def is_untouched(self) -> bool:
        return _writes(self.model) == self.writes


def _writes(model: Policy) -> list[int]:
    """How often each tensor was written to in place, as PyTorch counts it."""
    return [tensor._version for tensor in (*model.parameters(), *model.buffers())]


class _SharedModels:
    def __init__(self) -> None:
        self.kept: dict[Key, _Kept] = {}
        self.sharers = 0
        self.releases = 0


_MODELS = _SharedModels()


@contextmanager
def sharing() -> Iterator[None]:
    """Meanwhile a job leaves its frozen models to the next one. May be nested: the outermost lets go of all."""
    _MODELS.sharers += 1
    try:
        yield
    finally:
        _MODELS.sharers -= 1
        if not _MODELS.sharers:
            _MODELS.kept.clear()


def shared(key: Key, load: Callable[[], Policy]) -> Policy:
    """The frozen model of a key, loaded where it isn't kept. key: all that its weights and products depend on."""
    kept = _MODELS.kept.get(key)
    if kept and kept.is_untouched:
        return kept.model
    model = load().eval().requires_grad_(False)
    if _MODELS.sharers:
        _MODELS.kept[key] = _Kept(model, _writes(model))
    return model


def release(but: Collection[Key] = ()) -> None:
    """Let go of all kept models but those of these keys, and of what the job before was made of.

    That lies in reference cycles (trainer, module, policy), which Python frees when many new objects have come: a sweep
    over a large model would hold it several times.
    """
    for key in [key for key in _MODELS.kept if key not in but]:
        del _MODELS.kept[key]
    if _MODELS.releases:  # nothing lies about before the first job, and looking takes a quarter of a second
        gc.collect()
    _MODELS.releases += 1
