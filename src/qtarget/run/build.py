"""A plan → the objects of a run: models, loss module, data, evaluator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from qtarget.config.composing import instantiate
from qtarget.config.cross_checks import check_trained_dtypes
from qtarget.config.loss_engine import AUTO
from qtarget.config.reference_kind import PlacedReference
from qtarget.config.references import FrozenReference, PrivilegedReference
from qtarget.data.batch import Batch, Collate
from qtarget.data.example import Example
from qtarget.data.lightning_data import RunData, SFTData, StreamedData
from qtarget.evaluate.heldout import Evaluator
from qtarget.evaluate.served import Server
from qtarget.math.target import needs
from qtarget.model import provide
from qtarget.model.cache import Cached, CachePlan
from qtarget.model.flaw import NoFlaw
from qtarget.model.frozen import Frozen
from qtarget.model.policy import Policy, cast_products, check_packing
from qtarget.model.sharding import all_ranks, offload, shard
from qtarget.run.caching import (
    DRIFT_SETS,
    HELDOUT,
    RETENTION,
    build_missing,
    role_of,
)
from qtarget.run.plan import Plan
from qtarget.run.shared_models import Key, release, shared, sharing
from qtarget.train.lightning_module import QTargetModule


def load_models(plan: Plan, roles: Iterable[str] | None = None) -> tuple[Policy, dict[str, Frozen]]:
    """The policy, and its references by name: roles for the design, `DRIFT_SETS` (the prior) for the evaluation.

    roles: those to load; by default those the design reads. Missing caches are built first, with no model in memory.
    """
    cfg, wanted = plan.cfg, set(roles or _read_in_training(plan))
    release(but={_key(plan, name) for name in (*plan.references, *DRIFT_SETS) if _is_shared(plan, name)})
    build_missing(plan.caches, plan.references, partial(scoring_model, plan))
    policy = adapted(plan, _load(plan, plan.model, cfg.model.dtype, compiled=cfg.model.compile))
    if cfg.trainer.max_steps:
        check_trained_dtypes(policy, cfg)
    if cfg.packing:
        check_packing(policy)
    policy.train()  # transformers hands models out in eval mode
    with sharing():
        frozen = {role: _frozen(plan, role, policy) for role in plan.references if role in wanted}
        live = None if has_flaw(plan, "prior") else frozen.get("prior")
        return policy, frozen | _priors_for_drift(plan, live, policy)


def _priors_for_drift(plan: Plan, prior: Frozen | None, policy: Policy) -> dict[str, Frozen]:
    """DRIFT_SETS → the prior over their rows; prior: the live one, where training has loaded it already."""
    priors: dict[str, Frozen] = {name: Cached(plan.caches[name]) for name in DRIFT_SETS if name in plan.caches}
    wanted = {HELDOUT: plan.prepared.heldout, RETENTION: plan.benchmarks.retention}
    missing = [name for name, rows in wanted.items() if rows and name not in priors]
    if missing and plan.cfg.eval.kl_prior and "prior" in plan.references:
        live = prior or _frozen(plan, HELDOUT, policy)
        priors |= dict.fromkeys(missing, live)
    return priors


def has_flaw(plan: Plan, role: str) -> bool:
    """Whether something is wrong on purpose with a reference."""
    return plan.cfg.references[role].made_flaw != NoFlaw()


def _read_in_training(plan: Plan) -> set[str]:
    return set(needs(plan.design)) & set(plan.references)


def _load(plan: Plan, source: provide.ModelSource, dtype: str, *, compiled: bool = False) -> Policy:
    model = plan.cfg.model
    return provide.load_policy(
        source,
        len(plan.tokenizer),
        dtype=dtype,
        attention=plan.attention,
        unpadded_attention=model.attention,
        gradient_checkpointing=model.gradient_checkpointing,
        compiled=compiled,
    )


def adapted(plan: Plan, policy: Policy) -> Policy:
    """The policy with the configured adapter; without one, the policy."""
    adapter = plan.cfg.model.adapter
    adapted: Policy = instantiate(adapter)(policy) if adapter else policy
    return adapted


def rebuilt(plan: Plan, weights: Mapping[str, Tensor]) -> Policy:
    """An unsharded policy with these gathered weights. Draws no random number."""
    with torch.random.fork_rng(devices=[]):
        policy = adapted(plan, _load(plan, plan.model, plan.cfg.model.dtype))
    policy.lm.load_state_dict(weights)
    return policy


def reloaded(plan: Plan, folder: Path, dtype: str) -> Policy:
    """A checkpoint of this run, loaded anew."""
    return _load(plan, provide.ModelSource(str(folder)), dtype)


@dataclass(frozen=True)
class _Models:
    """What a kind of reference makes its distribution of. name: a role, or one of `DRIFT_SETS`."""

    plan: Plan
    name: str
    policy: Policy

    @property
    def cache(self) -> CachePlan:
        return self.plan.caches[role_of(self.name)]

    def still(self) -> Policy:
        load = partial(_still, self.plan, self.name)
        return shared(_key(self.plan, self.name), load) if _is_shared(self.plan, self.name) else self._placed(load())

    def rows(self) -> Sequence[Example]:
        return self.plan.hinted[role_of(self.name)]

    def collate(self, rows: Sequence[Example]) -> Batch:
        return Collate(int(self.plan.tokenizer.pad_token_id))(rows)

    def copy(self) -> Policy:
        role = role_of(self.name)
        node, source = self.plan.cfg.references[role], self.plan.references[role]
        return self._placed(adapted(self.plan, _load(self.plan, source, node.dtype)))

    def _placed(self, model: Policy) -> Policy:
        """The model, its weights where the configuration has them; elsewhere than whole on the device for good.

        Spread over ranks only where training spreads the policy, so that all ranks read as many batches.
        """
        node, trainer = self.plan.cfg.references[role_of(self.name)], self.plan.cfg.trainer
        if not isinstance(node, PlacedReference):
            return model
        offloaded = isinstance(node, FrozenReference) and node.offload
        device = torch.device("cuda", torch.cuda.current_device()) if trainer.on_gpu else torch.device("cpu")
        if node.is_sharded(trainer) and trainer.steps:
            shard(model.requires_grad_(False), all_ranks(device.type), offload=offloaded)
        elif offloaded:
            offload(model, device)
        return model


def _is_shared(plan: Plan, name: str) -> bool:
    """Whether a role's model may serve other roles and jobs, too: a whole one, as it was saved, that only we read."""
    role = role_of(name)
    node = plan.cfg.references[role] if role in plan.references else None
    if not isinstance(node, FrozenReference) or type(node) not in (FrozenReference, PrivilegedReference):
        return False  # what a kind of the user's does to its model is not known
    if node.offload or node.is_sharded(plan.cfg.trainer):
        return False
    return name in DRIFT_SETS or not has_flaw(plan, role)


def _key(plan: Plan, name: str) -> Key:
    """All that the model of a role depends on."""
    source, dtype = plan.references[role_of(name)], plan.cfg.references[role_of(name)].dtype
    asked = plan.cfg.model.attention
    made_of = (provide.weights_fingerprint(source), len(plan.tokenizer), dtype, plan.attention, asked)
    return (source, *made_of, plan.cfg.model.gradient_checkpointing, plan.cfg.trainer.is_mixed)


def _frozen(plan: Plan, name: str, policy: Policy) -> Frozen:
    return plan.cfg.references[role_of(name)].load(_Models(plan, name, policy))


def _still(plan: Plan, name: str) -> Policy:
    """The model of a role, frozen, with its flaw, in the precision of training.

    Of one of `DRIFT_SETS`: the prior without its flaw, as drift is measured from the model that training started from.
    """
    node = plan.cfg.references[role_of(name)]
    flaw = NoFlaw() if name in DRIFT_SETS else node.made_flaw
    model = flaw(_load(plan, plan.references[role_of(name)], node.dtype))
    if plan.cfg.trainer.is_mixed:
        cast_products(model, torch.bfloat16)
    return model


def scoring_model(plan: Plan, name: str) -> Policy:
    """The model that scores a cache, by the cache's name; on the GPU where training has one."""
    model = _still(plan, name)
    return model.to("cuda") if plan.cfg.trainer.on_gpu else model


def module(plan: Plan, policy: Policy, frozen: Mapping[str, Frozen]) -> QTargetModule:
    """Policy, design and the references that the design looks at."""
    used = {role: frozen[role] for role in _read_in_training(plan)}
    loss = plan.cfg.loss
    return QTargetModule(
        policy,
        plan.design,
        used,
        plan.optim,
        total_steps=plan.cfg.trainer.steps,
        chunk_size=loss.chunk_size,
        compiled=bool(plan.engine.compiled),  # until a trial says so, where there is one
        library=None if loss.products == AUTO else loss.products,
    )


def data(plan: Plan) -> RunData:
    """The training demonstrations, batched."""
    trainer, pad_id = plan.cfg.trainer, int(plan.tokenizer.pad_token_id)
    cut: dict[str, int] = {"batch_size": trainer.batch_size, "accumulate": trainer.micro_batches}
    if plan.prepared.stream is not None:
        return StreamedData(plan.prepared.stream, pad_id, steps=trainer.steps, **cut)
    return SFTData(plan.prepared.rows, pad_id, seed=plan.cfg.seed, **cut)


def evaluator(
    plan: Plan, frozen: Mapping[str, Frozen], device: torch.device, server: Server | None = None
) -> Evaluator:
    """What judges the policy on held-out demonstrations, at the precision of training. server: answers in its place."""
    mixed = plan.cfg.trainer.is_mixed
    priors = {name: frozen[name].to(device) for name in DRIFT_SETS if name in frozen}
    return Evaluator(
        tokenizer=plan.tokenizer,
        rows=plan.prepared.heldout_rows,
        examples=plan.prepared.heldout,
        row_of_example=plan.prepared.heldout_of,
        prior=priors.get(HELDOUT),
        autocast=partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=mixed),
        new_tokens=plan.cfg.eval.new_tokens,
        batch_size=plan.cfg.eval.batch_size,
        sampling=plan.cfg.eval.sampling,
        benchmarks=plan.benchmarks.benchmarks,
        retention=plan.benchmarks.retention,
        retention_prior=priors.get(RETENTION),
        test=plan.test,
        server=server,
    )
