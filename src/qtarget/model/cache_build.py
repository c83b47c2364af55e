"""Building a cache: its shards are scored one by one, by one process or by the ranks of a run together.

A shard gets its name once it is whole: a build that was killed goes on behind what it left. Which rows go through the
model together depends on the shard alone, so the numbers don't depend on who scores which.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from qtarget.cache_layout import LOCK, MANIFEST
from qtarget.errors import QTargetError
from qtarget.files import lock_if_free, locked, replacing
from qtarget.math.head import Head
from qtarget.math.tokens import IGNORE
from qtarget.model.cache import FORMAT, CachedRow, CachePlan
from qtarget.model.fingerprint import sampled_digest
from qtarget.model.policy import Policy
from qtarget.model.rotation import alike, forget_length
from qtarget.units import in_bytes

SHARD_TOKENS = 1 << 15
"""Tokens read per shard: what a killed build loses at most."""
BATCH_TOKENS = 1 << 11
"""Tokens, padding included, that the model reads at a time."""

Part = tuple[Path, Sequence[CachedRow]]
"""The file of a shard, and its rows."""


def ensure(
    plan: CachePlan,
    load: Callable[[int], Policy],
    watch: Callable[[int], None],
    say: Callable[[str], None],
    needed: int = 0,
    *,
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """Build the cache if it is missing; of several runs one builds and the others wait.

    The ranks of a run build it together: each scores shards that no other has begun, and all wait for the last. They
    meet at files alone: one that waits for long doesn't time out, and several nodes may share the folder or not.

    load(done): the model, called where something is left to score, with the number of supervised tokens that are
    scored already. watch(done): called as they get more. say(text): called once where another process is building.
    needed: bytes on disk. Raises QTargetError where the folder can't be written, and, before anything is scored, where
    the disk has less room.
    """
    with _writing(plan.folder):
        plan.folder.mkdir(parents=True, exist_ok=True)
    plan.hold()
    build = _Build(plan, load, watch)
    if ranks > 1 and not plan.is_built:
        check_room(plan.folder, needed - plan.bytes_held)
        build.help(rank, ranks)
    busy = f"another process is building {plan.folder}: waiting for it"
    with locked(plan.folder / LOCK, busy, wait=0, say=say):
        if not plan.is_built:
            check_room(plan.folder, needed - plan.bytes_held)
            build.help(rank, ranks)
            build.finish()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:  # a full disk is either
        raise QTargetError(
            f"can't write the cache {folder}: {error}; set QTARGET_CACHE=FOLDER to a place that has room"
        ) from error


@dataclass
class _Build:
    """One process's share in building a cache."""

    plan: CachePlan
    load: Callable[[int], Policy]
    watch: Callable[[int], None]
    parts: list[Part] = field(init=False)

    def __post_init__(self) -> None:
        shards = enumerate(_shards(self.plan.rows))
        self.parts = [(self.plan.folder / f"shard-{number:05d}.safetensors", rows) for number, rows in shards]

    @cached_property
    def policy(self) -> Policy:
        policy = self.load(self._scored())
        return policy.eval().requires_grad_(False)

    def help(self, rank: int, ranks: int) -> None:
        """Score every shard that is missing and nobody has begun, first those that fall to this rank."""
        mine = self.parts[rank::ranks]
        others = [part for number, part in enumerate(self.parts) if number % ranks != rank]
        for path, rows in (*mine, *others):
            with lock_if_free(_claim(path)) as is_free:
                if is_free and not path.is_file():
                    self._score(path, rows)

    def finish(self) -> None:
        """Wait for the shards that others have begun, score what they left, and write what makes the folder whole."""
        for path, rows in self.parts:
            if not path.is_file():
                with locked(_claim(path)):
                    if not path.is_file():  # who began it was killed
                        self._score(path, rows)
        plan = self.plan
        facts: dict[str, Any] = {"format": FORMAT, "identity": dict(plan.identity), "made_from": dict(plan.made_from)}
        if plan.recipe.detail == "hidden":
            facts["head"] = _save_head(plan, self.policy.head)
        shards = [{**_facts(path), "tokens": _tokens(rows)} for path, rows in self.parts]
        _write(plan.folder / MANIFEST, json.dumps({**facts, "shards": shards}, indent=1))
        for path, _ in self.parts:
            _claim(path).unlink(missing_ok=True)

    def _score(self, path: Path, rows: Sequence[CachedRow]) -> None:
        before, policy = self._scored(), self.policy
        scores = _scores(self.plan, rows, policy, lambda more: self.watch(before + more))
        _save(self.plan.recipe.on_disk(scores), path)

    def _scored(self) -> int:
        """Supervised tokens that are scored already, by whomever."""
        return sum(_tokens(rows) for path, rows in self.parts if path.is_file())


def _claim(shard: Path) -> Path:
    """The lock of whoever scores a shard."""
    return shard.with_name(f".{shard.stem}.lock")


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


def _scores(
    plan: CachePlan, rows: Sequence[CachedRow], policy: Policy, watch: Callable[[int], None]
) -> dict[str, Tensor]:
    """The scores of a shard's tokens in their order, though rows of like length go through the model together."""
    first, count = rows[0].first_label, _tokens(rows)
    scores: dict[str, Tensor] = {}
    done = 0
    for members in _batches(rows, policy):
        batch = plan.collate(members).to(policy.lm.device)
        forget_length(policy)
        indices = batch.label_indices[batch.labels != IGNORE].cpu() - first
        for name, values in plan.recipe.scores(policy, batch).items():
            if not plan.recipe.are_numbers(values):
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


def _batches(rows: Sequence[CachedRow], policy: Policy) -> Iterator[list[CachedRow]]:
    """Rows by length, as many at a time as make `BATCH_TOKENS`."""
    for group in alike(rows, policy):
        yield from _parts(group)


def _parts(rows: Sequence[CachedRow]) -> Iterator[list[CachedRow]]:
    taken: list[CachedRow] = []
    for row in rows:
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


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
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
