"""What a run writes to disk, from the shapes of its weights and without any of them; and whether there is room."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from qtarget.config.composing import instantiate
from qtarget.config.names import is_ours
from qtarget.config.references import CachedReference
from qtarget.config.run_config import RunConfig
from qtarget.errors import QTargetError
from qtarget.math.target import Design, needs
from qtarget.model import provide
from qtarget.model.adapting import adapter_weights, merge
from qtarget.model.policy import Policy
from qtarget.model.provide import DTYPES
from qtarget.resume_folders import STATE, newest
from qtarget.run.caching import role_of
from qtarget.run.caching import size_of as cache_size
from qtarget.run.closing import size_of
from qtarget.run.exported_model import ADAPTER, CHECKPOINT, OPTIMIZER
from qtarget.run.plan import Plan
from qtarget.units import in_bytes

MOMENTS = 2
"""Of AdamW, each as large as the weights it trains."""
REST_BYTES = 35_000
"""Of a state beside weights and moments, for each rank: generators of random numbers and running means, as measured."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room on the disk, in the user's quota, or for a file of that size."""
RECORD_BYTES = 295
"""Of a file of torch.save (torch 2.13) for each tensor: its place in the archive and in the pickle, as measured."""


@dataclass(frozen=True)
class DiskUse:
    """Bytes that a run writes beside its records, which are small.

    checkpoint: tokenizer included; of an adapter with it merged. adapter: that alone, with the tokenizer. optimizer:
    optimizer.pt. state: what a run goes on from that was stopped before its last step. last_state: what its evaluation
    is done again from. states: how many states lie side by side, because of checkpoint.every; 0: none is sure to be
    written. has_caches: whether it reads caches of references, which it may have to build, and which many runs share.
    is_known: False of an adapter that isn't qtarget's own.
    """

    checkpoint: int = 0
    adapter: int = 0
    optimizer: int = 0
    state: int = 0
    last_state: int = 0
    states: int = 0
    has_caches: bool = False
    is_known: bool = True

    @property
    def kept(self) -> int:
        """Of a finished run."""
        return self.checkpoint + self.adapter + self.optimizer

    @property
    def meanwhile(self) -> int:
        """The most at a time, until it is finished."""
        return max(self.states * self.state, self.kept + (self.state if self.states else self.last_state))

    @property
    def needed(self) -> int:
        """What it can't do without. Where nothing is kept, a state costs only that the evaluation can be done again."""
        return self.meanwhile if self.kept or self.states else 0

    @property
    def most(self) -> int:
        """The same of a run that may be stopped, which leaves a state."""
        return max(self.meanwhile, self.state)

    @property
    def parts(self) -> str:
        """What is kept, in words."""
        named = {CHECKPOINT: self.checkpoint, f"{ADAPTER} alone": self.adapter, OPTIMIZER: self.optimizer}
        return ", ".join(f"{name} {in_bytes(size)}" for name, size in named.items() if size)

    @property
    def in_words(self) -> str:
        """keeps 541.6 MB on disk (checkpoint 541.6 MB); up to 1.1 GB while it runs, 1.6 GB where it is stopped."""
        return "".join(self._words())

    def _words(self) -> Iterator[str]:
        if not self.is_known:
            yield "writes to disk what an adapter of your own makes of the model"
            return
        yield f"keeps {in_bytes(self.kept)} on disk ({self.parts})" if self.kept else "keeps no weights on disk"
        if self.meanwhile > self.kept:
            yield f"; up to {in_bytes(self.meanwhile)} while it runs"
        if self.most > self.meanwhile:
            yield f", {in_bytes(self.most)} where it is stopped"


Sizes = Mapping[str, int]


_KNOWN: dict[str, Sizes] = {}
"""What models of this process write, by all that it depends on: many jobs have few models."""


def disk_use(cfg: RunConfig, design: Design) -> DiskUse:
    """What a run writes. Raises QTargetError for a model that isn't there, and for an adapter that doesn't merge."""
    if cfg.model.adapter and not is_ours(cfg.model.adapter):
        return DiskUse(is_known=False)  # what it makes of a model without weights is its own
    steps, sizes = cfg.trainer.max_steps, _known_sizes(cfg)
    saves, copies = cfg.checkpoint.save, 1 + ("old" in needs(design))
    cached = any(isinstance(node, CachedReference) for node in cfg.references.values())
    use = DiskUse(checkpoint=sizes["checkpoint"] * saves, adapter=sizes["adapter"] * saves, has_caches=cached)
    if steps == 0:
        return use
    every, rest = cfg.checkpoint.every, REST_BYTES * cfg.trainer.processes
    return replace(
        use,
        optimizer=sizes["optimizer"] * cfg.checkpoint.optimizer,
        state=(copies + MOMENTS) * sizes["trained"] + rest,
        last_state=sizes["trained"] + rest,
        states=0 if every is None else 1 + (steps is None or steps > every),
    )


def _known_sizes(cfg: RunConfig) -> Sizes:
    content = provide.weights_fingerprint(provide.resolve(cfg.model.name))
    model = json.dumps([cfg.model.container(), content, cfg.saved_dtype, cfg.checkpoint.save], default=str)
    if model not in _KNOWN:
        with torch.random.fork_rng(devices=[]):  # an adapter draws weights; a job draws alike, whatever is known
            _KNOWN[model] = _sizes(cfg)
    return _KNOWN[model]


def _sizes(cfg: RunConfig) -> Sizes:
    """Of the files of a model, in bytes."""
    source = provide.resolve(cfg.model.name)
    tokenizer = provide.load_tokenizer(source, cfg.model.chat_template)
    policy = provide.outline(source, len(tokenizer))
    trained_dtype, saved_dtype = (DTYPES[name] for name in (cfg.trained_dtype, cfg.saved_dtype))
    node, words, alone = cfg.model.adapter, tokenizer_bytes(tokenizer), 0
    if node:
        policy = instantiate(node)(policy)
        alone = words + safetensors_bytes(adapter_weights(policy), trained_dtype)
    trained = {name: tensor for name, tensor in policy.lm.named_parameters() if tensor.requires_grad}
    if node and cfg.checkpoint.save:
        _merge(policy)
    records = (MOMENTS + 1) * RECORD_BYTES * len(trained)  # a step is counted for each weight
    return {
        "checkpoint": safetensors_bytes(saved_weights(policy), saved_dtype) + words,
        "adapter": alone,
        "trained": safetensors_bytes(trained, trained_dtype),
        "optimizer": MOMENTS * trained_dtype.itemsize * sum(tensor.numel() for tensor in trained.values()) + records,
    }


def _merge(policy: Policy) -> None:
    try:
        merge(policy)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise QTargetError(
            f"model.adapter doesn't merge into the weights, as a checkpoint needs it: {error}"
        ) from error


def saved_weights(policy: Policy) -> dict[str, Tensor]:
    """A model's state dict as it is saved: a weight that two layers share once."""
    own = dict(policy.lm.named_parameters())
    shared = dict(policy.lm.named_parameters(remove_duplicate=False)).keys() - own.keys()
    return {name: tensor for name, tensor in policy.lm.state_dict().items() if name not in shared}


def safetensors_bytes(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> int:
    """A file of these with the floating ones in `dtype`: 8 bytes, a JSON header padded to 8, the data.

    Source: https://github.com/huggingface/safetensors#format.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        start, end = end, end + kind.itemsize * tensor.numel()
        entries[name] = {"dtype": f"F{8 * kind.itemsize}", "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = len(json.dumps(entries, separators=(",", ":")))
    return 8 + header + -header % 8 + end


def tokenizer_bytes(tokenizer: PreTrainedTokenizerBase) -> int:
    """tokenizer.json, or the vocabulary of one that has none, and the template."""
    template = len(str(tokenizer.chat_template or ""))
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        return template + len(fast.to_str(pretty=True).encode())
    files = filter(None, (getattr(tokenizer, name, None) for name in ("vocab_file", "merges_file")))
    return template + sum(Path(file).stat().st_size for file in files)


# Room


def check_room(use: DiskUse, folder: Path, caches: Iterable[tuple[Path, int]] = ()) -> str:
    """Raise QTargetError where a run can't be finished for want of room. A warning where one that is stopped has too
    little, else "".

    folder: the run's; what an earlier attempt has left there counts as room. caches: (folder, bytes) to be built.
    """
    beside = sum(size for place, size in caches if _existing(place).stat().st_dev == _existing(folder).stat().st_dev)
    free = _free(folder) + _held(folder) - beside
    room = f"{in_bytes(max(0, free))} are free in {folder}" + (
        f" beside {in_bytes(beside)} of caches" if beside else ""
    )
    if use.needed > free:
        raise QTargetError(
            f"the run {use.in_words}, and {room}. Set output_dir=FOLDER to a larger disk, make room (qtarget clean), "
            "or write less: checkpoint.dtype=bfloat16, checkpoint.save=false, checkpoint.every=null"
        )
    return f"the run {use.in_words}, and {room}" if use.most > free else ""


def unbuilt_caches(plan: Plan) -> list[tuple[Path, int]]:
    """(folder, bytes) of the caches that a run builds before it trains."""
    sources = {name: plan.references[role_of(name)] for name in plan.caches}
    missing = {name: cache for name, cache in plan.caches.items() if not cache.is_built}
    return [(cache.folder, cache_size(cache, sources[name]) - cache.bytes_held) for name, cache in missing.items()]


def caches_in_words(caches: Sequence[tuple[Path, int]]) -> str:
    """What is built before training, "" where nothing is."""
    holders = ", ".join(dict.fromkeys(str(folder.parent) for folder, _ in caches))
    return f"; builds {in_bytes(sum(size for _, size in caches))} of caches in {holders}" if caches else ""


def total_in_words(uses: Sequence[DiskUse], folder: Path) -> str:
    """Of the jobs of a multirun or a sweep, and whether all have room."""
    return "".join(_total(uses, folder))


def _total(uses: Sequence[DiskUse], folder: Path) -> Iterator[str]:
    kept, beside = sum(use.kept for use in uses), max((use.meanwhile - use.kept for use in uses), default=0)
    free = _free(folder)
    yield f"{len(uses)} jobs keep {in_bytes(kept)} on disk"
    yield f", each takes up to {in_bytes(beside)} more while it runs" if beside else ""
    yield "; caches of references come on top, once for all" if any(use.has_caches for use in uses) else ""
    yield f"; {in_bytes(free)} are free in {folder}" if free < float("inf") else ""
    if kept + beside > free:
        yield ". They don't all fit: set output_dir=FOLDER to a larger disk, make room (qtarget clean), or write less "
        yield "(checkpoint.dtype=bfloat16, checkpoint.save=false)"


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turns the error of a write to a run's folder that finds no room into what to do; everything else passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        then = "goes on from its last state" if newest(folder / STATE) else "starts afresh"
        raise QTargetError(
            f"can't write {error.filename or f'the record in {folder}'}: {error.strerror}. Make room (qtarget clean "
            f"lists what nobody needs), and the same command {then}"
        ) from error


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _free(folder: Path) -> float:
    """Bytes; ∞ of a file system that doesn't say, as some over a network."""
    usage = shutil.disk_usage(_existing(folder))
    return usage.free if usage.total else float("inf")


def _held(folder: Path) -> int:
    return sum(size_of(folder / name) for name in (STATE, CHECKPOINT, ADAPTER, OPTIMIZER) if (folder / name).exists())
