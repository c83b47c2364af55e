"""Scores of a frozen model over a data set: stored on disk, shared by all runs on the same rows. How they are read.

    FOLDER/manifest.json               what was scored and how; written last, so that a folder with one is whole
    FOLDER/shard-00000.safetensors     the supervised tokens of consecutive rows, in their order
    FOLDER/head.safetensors            beside hidden states: the output layer that makes distributions of them

Nothing in a folder says where it lies: it may be moved, and read on another machine. model.cache_build makes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qtarget.cache_layout import MANIFEST, READING
from qtarget.errors import QTargetError
from qtarget.files import lock_shared
from qtarget.math.head import Head
from qtarget.math.reference import Reference
from qtarget.math.tokens import IGNORE
from qtarget.model.cached_scores import Recipe
from qtarget.model.fingerprint import sampled_digest
from qtarget.model.frozen import Inputs

FORMAT = 1


class CachedRow(Protocol):
    """A demonstration as tokens; `labels` of them are supervised, the first of these `first_label` among all rows'."""

    def __len__(self) -> int: ...
    @property
    def first_label(self) -> int: ...
    @property
    def labels(self) -> int: ...


@dataclass(frozen=True)
class CachePlan:
    """One data set to be scored by one model.

    identity: what the numbers depend on, by name; another identity is another cache. made_from: the same in words.
    collate: rows → a batch.
    """

    folder: Path
    recipe: Recipe
    rows: Sequence[CachedRow]
    identity: Mapping[str, str]
    made_from: Mapping[str, str]
    collate: Callable[[Any], Any]

    @property
    def tokens(self) -> int:
        return sum(row.labels for row in self.rows)

    @property
    def is_built(self) -> bool:
        return (self.folder / MANIFEST).is_file()

    def hold(self) -> None:
        """No command prunes the folder from now on, as long as the plan lives."""
        lock_shared(self.folder / READING, self)

    @property
    def bytes_held(self) -> int:
        """What is on disk of it."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    def bytes(self, hidden_size: int, vocab_size: int) -> int:
        """What it takes on disk."""
        head = self.recipe.head_dtype.itemsize * hidden_size * vocab_size if self.recipe.detail == "hidden" else 0
        return self.tokens * self.recipe.token_bytes(hidden_size) + head


# Reading


class Cached:
    """The stored scores of a data set's supervised tokens; memory-mapped, checked when it is opened.

    tail: the rule for tokens outside a top k. Raises QTargetError for a folder that is missing, damaged, or made
    from something else than `plan` says.
    """

    def __init__(self, plan: CachePlan, tail: str = "bucket") -> None:
        self.folder, self.recipe, self.tail = plan.folder, plan.recipe, tail
        lock_shared(plan.folder / READING, self)
        self._manifest = _checked(plan)
        self._device = torch.device("cpu")

    def to(self, device: torch.device) -> Cached:
        self._device = device
        self.__dict__.pop("_head", None)  # made anew there
        return self

    def reference(self, batch: Inputs) -> Reference:
        """The stored reference at the supervised tokens of a batch."""
        supervised = batch.labels != IGNORE
        stored = {
            name: values.to(self._device) for name, values in self._rows(batch.label_indices[supervised].cpu()).items()
        }
        head = self._head if self.recipe.detail == "hidden" else None
        return self.recipe.reference(stored, batch.labels[supervised], head, self.tail)

    def exact(self, batch: Inputs) -> Reference:
        """The same, where it is the whole distribution."""
        if self.recipe.detail != "hidden":
            raise QTargetError(f"the cache {self.folder} holds {self.recipe.detail}, not whole distributions")
        return self.reference(batch)

    @cached_property
    def _head(self) -> Head:
        facts, tensors = self._manifest["head"], _mapped(self.folder / "head.safetensors")
        moved = {name: tensor.to(self._device) for name, tensor in tensors.items()}
        return Head(**moved, softcap=facts["softcap"], scale=facts["scale"], true_vocab=facts["true_vocab"])

    @cached_property
    def _shards(self) -> list[dict[str, Tensor]]:
        return [_mapped(self.folder / shard["file"]) for shard in self._manifest["shards"] if shard["tokens"]]

    @cached_property
    def _starts(self) -> Tensor:
        """The first token of each shard."""
        counts = [shard["tokens"] for shard in self._manifest["shards"] if shard["tokens"]]
        return torch.tensor([0, *accumulate(counts)][:-1])

    def _rows(self, indices: Tensor) -> dict[str, Tensor]:
        """Rows of the shards, by indices among all tokens."""
        shard = torch.bucketize(indices, self._starts, right=True) - 1
        inside = indices - self._starts[shard]
        rows: dict[str, Tensor] = {}
        for number in shard.unique().tolist() or [0]:  # of no token an empty row
            mine = shard == number
            for name, values in self.recipe.rows_of(self._shards[number], inside[mine]).items():
                rows.setdefault(name, values.new_empty(len(indices), *values.shape[1:]))[mine] = values
        return rows


def _mapped(path: Path) -> dict[str, Tensor]:
    """Tensors that stay on disk until they are looked at."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)


def _checked(plan: CachePlan) -> dict[str, Any]:
    """The manifest. Raises QTargetError where the files aren't those it lists, or it is of another plan."""
    again = "remove the folder to have it built again"
    try:
        manifest: dict[str, Any] = json.loads((plan.folder / MANIFEST).read_text(encoding="utf-8"))
        identity, files = manifest["identity"], [*manifest["shards"], *filter(None, [manifest.get("head")])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QTargetError(f"the cache {plan.folder} has no readable manifest.json ({error}): {again}") from error
    other = [name for name in plan.identity if identity.get(name) != plan.identity[name]]
    if manifest.get("format") != FORMAT or other:
        raise QTargetError(f"the cache {plan.folder} is of other {_differences(plan, manifest, other)}: {again}")
    for facts in files:
        _check_file(plan.folder / facts["file"], facts, again)
    return manifest


def _differences(plan: CachePlan, manifest: Mapping[str, Any], names: Sequence[str]) -> str:
    made_from = manifest.get("made_from", {})
    changed = [
        f"{key}: {made_from.get(key)!r}, now {value!r}"
        for key, value in plan.made_from.items()
        if made_from.get(key) != value
    ]
    return ", ".join(names or ["format"]) + (f" ({'; '.join(changed)})" if changed else "")


def _check_file(path: Path, facts: Mapping[str, Any], again: str) -> None:
    if not path.is_file():
        raise QTargetError(f"the cache {path.parent} is damaged: {path.name} is missing; {again}")
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise QTargetError(
            f"the cache {path.parent} is damaged: {path.name} has {size} bytes instead of {facts['bytes']}; {again}"
        )
    if sampled_digest(path) != facts["digest"]:
        raise QTargetError(f"the cache {path.parent} is damaged: {path.name} was changed after it was made; {again}")
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise QTargetError(f"the cache {path.parent} is damaged: {path.name}: {error}; {again}") from error
