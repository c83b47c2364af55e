"""Scores of a frozen model over a data set: computed once, stored on disk, shared by all runs on the same rows.

    FOLDER/manifest.json               what was scored and how; written last, so that a folder with one is whole
    FOLDER/shard-00000.safetensors     the supervised tokens of consecutive rows, in their order
    FOLDER/head.safetensors            beside hidden states: the output layer that makes distributions of them

A shard gets its name once it is whole: a build that was killed goes on behind its last shard.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qtarget.errors import QTargetError
from qtarget.files import lock_shared, locked, replacing
from qtarget.math.head import Head
from qtarget.math.reference import Reference
from qtarget.math.tokens import IGNORE
from qtarget.model.cached_scores import Recipe
from qtarget.model.fingerprint import sampled_digest
from qtarget.model.frozen import Inputs
from qtarget.model.policy import Policy
from qtarget.units import in_bytes

FORMAT = 1
READING = ".reading"
"""A file in the folder of a cache that is locked, shared, by all that read it: `qtarget clean` leaves such a cache."""
SHARD_TOKENS = 1 << 15
"""Tokens read per shard: what a killed build loses at most."""
BATCH_TOKENS = 1 << 11
"""Tokens, padding included, that the model reads at a time."""


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
        return _tokens(self.rows)

    @property
    def is_built(self) -> bool:
        return (self.folder / "manifest.json").is_file()

    @property
    def bytes_held(self) -> int:
        """What is on disk of it."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    def bytes(self, hidden_size: int, vocab_size: int) -> int:
        """What it takes on disk."""
        head = self.recipe.head_dtype.itemsize * hidden_size * vocab_size if self.recipe.detail == "hidden" else 0
        return self.tokens * self.recipe.token_bytes(hidden_size) + head


# Building


def ensure(
    plan: CachePlan,
    load: Callable[[int], Policy],
    watch: Callable[[int], None],
    say: Callable[[str], None],
    needed: int = 0,
) -> None:
    """Build the cache if it is missing; of several processes one builds and the others wait.

    load(done): the model, called where something is left to score, with the number of supervised tokens that an
    earlier attempt has scored. watch(done): called as they get more. say(text): called once where another process is
    building. needed: bytes on disk. Raises QTargetError where the folder can't be written, and, before anything is
    scored, where the disk has less room.
    """
    with _writing(plan.folder):
        plan.folder.mkdir(parents=True, exist_ok=True)
    busy = f"another process is building {plan.folder}: waiting for it"
    with locked(plan.folder / ".lock", busy, wait=0, say=say):
        if not plan.is_built:
            check_room(plan.folder, needed - plan.bytes_held)
            _build(plan, load, watch)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:  # a full disk is either
        raise QTargetError(
            f"can't write the cache {folder}: {error}; set QTARGET_CACHE=FOLDER to a place that has room"
        ) from error


def _build(plan: CachePlan, load: Callable[[int], Policy], watch: Callable[[int], None]) -> None:
    parts = [(plan.folder / f"shard-{number:05d}.safetensors", rows) for number, rows in enumerate(_shards(plan.rows))]
    policy = load(sum(_tokens(rows) for path, rows in parts if path.is_file()))
    policy.eval().requires_grad_(False)
    facts: dict[str, Any] = {"format": FORMAT, "identity": dict(plan.identity), "made_from": dict(plan.made_from)}
    if plan.recipe.detail == "hidden":
        facts["head"] = _save_head(plan, policy.head)
    shards = []
    for path, rows in parts:
        if not path.is_file():
            _save(_scored(plan, rows, policy, watch), path)
        shards.append({**_facts(path), "tokens": _tokens(rows)})
    _write(plan.folder / "manifest.json", json.dumps({**facts, "shards": shards}, indent=1))


def _tokens(rows: Sequence[CachedRow]) -> int:
    return sum(row.labels for row in rows)


def _shards(rows: Sequence[CachedRow]) -> Iterator[Sequence[CachedRow]]:
    """Consecutive rows of about `SHARD_TOKENS` tokens: the same cut at every attempt."""
    taken: list[CachedRow] = []
    read = 0
    for row in rows:
        taken.append(row)
        read += len(row)
        if read >= SHARD_TOKENS:
            yield taken
            taken, read = [], 0
    if taken:
        yield taken


def _scored(
    plan: CachePlan, rows: Sequence[CachedRow], policy: Policy, watch: Callable[[int], None]
) -> dict[str, Tensor]:
    """The scores of a shard's tokens in their order, though rows of like length go through the model together."""
    first, count = rows[0].first_label, _tokens(rows)
    scores: dict[str, Tensor] = {}
    done = first
    for members in _alike(rows):
        batch = plan.collate(members).to(policy.lm.device)
        indices = batch.label_indices[batch.labels != IGNORE].cpu() - first
        for name, values in plan.recipe.scores(policy, batch).items():
            if values.isnan().any():
                raise QTargetError(
                    f"the model gives NaN ({name}) for one of the rows of up to {len(members[-1])} tokens: check its "
                    "weights, or score with trainer.precision=32-true"
                )
            if name not in scores:
                scores[name] = torch.empty(count, *values.shape[1:], dtype=values.dtype)
            scores[name][indices] = values.cpu()
        done += len(indices)
        watch(done)
    return scores


def _alike(rows: Sequence[CachedRow]) -> Iterator[list[CachedRow]]:
    """Rows by length, as many at a time as make `BATCH_TOKENS`."""
    taken: list[CachedRow] = []
    for row in sorted(rows, key=len):
        if taken and len(row) * (len(taken) + 1) > BATCH_TOKENS:
            yield taken
            taken = []
        taken.append(row)
    if taken:
        yield taken


def _save_head(plan: CachePlan, head: Head) -> dict[str, Any]:
    path = plan.folder / "head.safetensors"
    tensors = {"weight": head.weight.detach().to(plan.recipe.head_dtype)}
    tensors |= {} if head.bias is None else {"bias": head.bias.detach()}
    _save({name: tensor.cpu() for name, tensor in tensors.items()}, path)
    return {**_facts(path), "softcap": head.softcap, "scale": head.scale, "true_vocab": head.true_vocab}


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with _writing(path.parent), replacing(path, durable=True) as scratch:
        save_file(contiguous, scratch)


def _write(path: Path, text: str) -> None:
    with _writing(path.parent), replacing(path, durable=True) as scratch:
        scratch.write_text(text, encoding="utf-8")


def _facts(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "digest": sampled_digest(path)}


def check_room(folder: Path, needed: int) -> None:
    """Raise QTargetError, before anything is scored, where the disk hasn't `needed` bytes left."""
    free = free_bytes(folder)
    if needed > free:
        raise QTargetError(
            f"the cache {folder} needs {in_bytes(needed)} ({needed} bytes) and {in_bytes(free)} ({free} bytes) are "
            "free: set QTARGET_CACHE=FOLDER to a larger disk, keep less (detail=label, or topk), or take "
            "reference@references.ROLE=frozen, which runs beside the policy"
        )


def free_bytes(folder: Path) -> int:
    """What is left on the disk of a folder that may not exist yet."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(existing).free


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
        rows = {name: tensor.new_empty(len(indices), *tensor.shape[1:]) for name, tensor in self._shards[0].items()}
        for number in shard.unique().tolist():
            mine = shard == number
            for name, values in rows.items():
                values[mine] = self._shards[number][name][inside[mine]]
        return rows


def _mapped(path: Path) -> dict[str, Tensor]:
    """Tensors that stay on disk until they are looked at."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)


def _checked(plan: CachePlan) -> dict[str, Any]:
    """The manifest. Raises QTargetError where the files aren't those it lists, or it is of another plan."""
    again = "remove the folder to have it built again"
    try:
        manifest: dict[str, Any] = json.loads((plan.folder / "manifest.json").read_text(encoding="utf-8"))
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
