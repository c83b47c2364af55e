"""Cached references: which caches a run reads, where they lie, and building those that are missing."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qtarget.cache_layout import REFERENCES
from qtarget.config.changed_inputs import head_changed
from qtarget.config.references import CachedReference
from qtarget.config.run_config import RunConfig
from qtarget.data.batch import Collate
from qtarget.data.example import Example
from qtarget.files import cache_dir
from qtarget.math.target import Design
from qtarget.model import provide
from qtarget.model.cache import FORMAT, Cached, CachePlan
from qtarget.model.cache_build import ensure
from qtarget.model.flaw import NoFlaw
from qtarget.model.policy import Policy
from qtarget.parallel import all_gather_objects, rank_and_world
from qtarget.progress import Progress
from qtarget.units import in_bytes

HELDOUT, RETENTION = "heldout", "retention"
DRIFT_SETS = (HELDOUT, RETENTION)
"""Caches beside those of the roles: the prior over rows on which drift from it is measured, whole, without a flaw."""


def cached_details(cfg: RunConfig, roles: Iterable[str], design: Design) -> dict[str, str]:
    """Cached role → how much is stored of it."""
    return {role: node.kept(design) for role in roles if isinstance(node := cfg.references[role], CachedReference)}


def cache_plans(
    cfg: RunConfig,
    sources: Mapping[str, provide.ModelSource],
    details: Mapping[str, str],
    train: Sequence[Example],
    drift_rows: Mapping[str, Sequence[Example]],
    *,
    tokenizer: Any,
    hinted: Mapping[str, Sequence[Example]],
) -> dict[str, CachePlan]:
    """The caches a run reads: by role over the training rows, with its detail, and by `DRIFT_SETS`.

    hinted: the training rows of roles that read them with a hint.
    """

    def planned(name: str, rows: Sequence[Example], detail: str) -> CachePlan:
        return _plan(cfg, name, sources[role_of(name)], rows, detail=detail, tokenizer=tokenizer)

    plans = {role: planned(role, hinted.get(role, train), detail) for role, detail in details.items()}
    drift = cfg.eval.kl_prior and "prior" in sources and isinstance(cfg.references["prior"], CachedReference)
    return plans | {name: planned(name, rows, "hidden") for name, rows in drift_rows.items() if drift and rows}


def _plan(
    cfg: RunConfig,
    name: str,
    source: provide.ModelSource,
    rows: Sequence[Example],
    *,
    detail: str,
    tokenizer: Any,
) -> CachePlan:
    node = cfg.references[role_of(name)]
    assert isinstance(node, CachedReference)
    flaw = {} if name in DRIFT_SETS or node.made_flaw == NoFlaw() else {"flaw": repr(node.made_flaw)}
    exact = "bfloat16" if cfg.trainer.is_mixed else "float32"  # what the product with the head takes anyway
    recipe = node.recipe(detail, cfg.trainer.precision, exact)
    identity = {
        "format": str(FORMAT),
        "vocabulary": str(len(tokenizer)),
        "weights": provide.weights_fingerprint(source),
        "rows": _rows_digest(rows),
        "kept": str(recipe),
        "parameters": node.dtype,
        **flaw,
        **({"head": "2"} if head_changed(provide.load_config(source).to_dict()) else {}),
    }
    made_from = {
        "model": source.location,
        "data": str(cfg.data["source"]),
        "noise": str(cfg.data["noise"]),
        "chat template": _digest(str(tokenizer.chat_template).encode()),
        "truncation": f"{cfg.data['truncation']} at {cfg.data['max_length']}",
        **flaw,
    }
    folder = f"{detail}-{_digest(json.dumps(identity, sort_keys=True).encode())}"
    holder = Path(node.folder).expanduser() if node.folder else cache_dir() / REFERENCES
    return CachePlan(holder / folder, recipe, rows, identity, made_from, Collate(int(tokenizer.pad_token_id)))


def _rows_digest(rows: Sequence[Example]) -> str:
    """Of every token and of which are supervised: data, noise, tokenizer, template and truncation all show in these."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(array("q", row.input_ids).tobytes() + b"|" + bytes(row.supervised) + b"\n")
    return digest.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def size_of(plan: CachePlan, source: provide.ModelSource) -> int:
    """Bytes that a cache takes, or will take."""
    config = provide.load_config(source).get_text_config()
    return plan.bytes(config.hidden_size, config.vocab_size)


def described(role: str, plan: CachePlan, source: provide.ModelSource) -> str:
    """A cache in one line."""
    state = "held" if plan.is_built else "to be built"
    detail, size = plan.recipe.detail, in_bytes(size_of(plan, source))
    return f"{role}: {detail} of {plan.tokens} tokens, {size}, {state} in {plan.folder}"


def check_built(plans: Mapping[str, CachePlan]) -> None:
    """Raise QTargetError for a cache that is there and damaged, or of something else."""
    for plan in plans.values():
        if plan.is_built:
            Cached(plan)


def build_missing(
    plans: Mapping[str, CachePlan],
    sources: Mapping[str, provide.ModelSource],
    load: Callable[[str], Policy],
) -> None:
    """Score what no earlier run has scored. load: the model of a cache by its name, on the device that scores.

    Collective: none of the ranks begins before all know what is missing. Raises QTargetError, before anything is
    scored, where the disk hasn't room for it.
    """
    for plan in plans.values():
        plan.hold()  # before it is looked at, and until it is opened: models are loaded in between
    missing = set().union(*all_gather_objects([name for name, plan in plans.items() if not plan.is_built]))
    for name, plan in plans.items():
        if name in missing:
            _build(name, plan, partial(load, name), size_of(plan, sources[role_of(name)]))


def role_of(name: str) -> str:
    return "prior" if name in DRIFT_SETS else name


def _build(name: str, plan: CachePlan, load: Callable[[], Policy], needed: int) -> None:
    rank, ranks = rank_and_world()
    together = f" on {ranks} devices" if ranks > 1 else ""
    shown = Progress(f"scoring {len(plan.rows)} rows for the {name} cache{together}", plan.tokens, "tokens")
    say, watch = (_silent, _unseen) if rank else (print, shown.update)
    waits = say if ranks == 1 else _silent  # ranks wait for nobody but each other

    def begin(done: int) -> Policy:
        policy = load()
        if not rank:
            shown.start(done)
        return policy

    try:
        ensure(plan, begin, watch, waits, needed, rank=rank, ranks=ranks)
    finally:
        shown.stop()
    say(f"{name} cache: {plan.tokens} tokens, {in_bytes(plan.bytes_held)} in {plan.folder}")


def _silent(text: str) -> None:
    """What other ranks than 0 print."""


def _unseen(done: int) -> None:
    """Their progress, likewise: rank 0 counts what all have scored."""
