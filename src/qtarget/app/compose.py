"""Configuration → the objects of a run: the one place that instantiates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

from qtarget.app.checks import check, reference_name
from qtarget.app.configs import instantiate, instantiate_design
from qtarget.app.engine import Engine, choose, on_gpu
from qtarget.data.module import Prepared, SFTData, prepare
from qtarget.errors import QTargetError
from qtarget.evaluate.heldout import Evaluator
from qtarget.math.reference import DETAILS
from qtarget.math.target import Design, check_references, columns, needs
from qtarget.math.tokens import ROLES
from qtarget.model import provide
from qtarget.model.frozen import FrozenModel, Snapshot
from qtarget.model.policy import Policy
from qtarget.train.module import QTargetModule
from qtarget.train.optim import AdamW
from qtarget.train.step import scoring_passes

HOW_TO_ADD = {
    "prior": "reference@references.prior=frozen",
    "teacher": "reference@references.teacher=frozen references.teacher.name=MODEL, a folder, a run or a hub id",
    "old": "reference@references.old=snapshot",
}


@dataclass(frozen=True)
class Plan:
    """Everything that can be wrong about a run, checked, before any weights are loaded."""

    cfg: DictConfig
    design: Design
    optim: AdamW
    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase
    model: provide.Source
    references: Mapping[str, provide.Source]
    engine: Engine

    @property
    def extent(self) -> str:
        """How much training this is, in words."""
        counts, trainer = self.prepared.counts, self.cfg.trainer
        rows = trainer.batch_size * trainer.accumulate
        epochs = trainer.max_steps * rows / counts["train"]
        return (
            f"{trainer.max_steps} steps × {rows} rows = {epochs:.2g} epochs of {counts['train']} rows "
            f"({counts['noisy']} made wrong); {counts['heldout']} rows held out"
        )

    @property
    def described(self) -> dict[str, str]:
        """The design as run, in words."""
        told = {part: str(getattr(self.design, part, "–")) for part in ("reliance", "weight")}
        told["residual"] = str(getattr(self.design, "rest", "–"))
        passes = scoring_passes(self.design)
        step = {"before_each_step": f"{passes} scoring pass{'es' * (passes > 1)}"} if passes else {}
        return told | step | {"repr": repr(self.design)}


def plan(cfg: DictConfig) -> Plan:
    """Check a configuration and prepare its data. Raises QTargetError for what the user has to mend."""
    check(cfg)
    design = instantiate_design(cfg.target)
    references = _reference_sources(cfg, design)
    data_config = instantiate(cfg.data)
    model = provide.resolve(cfg.model.name)
    tokenizer = provide.load_tokenizer(model)
    for role, source in references.items():
        _check_same_tokenizer(role, provide.load_tokenizer(source), tokenizer)
    prepared = prepare(data_config, tokenizer, provide.context_length(provide.load_config(model)))
    _check_columns(design, prepared)
    chosen = _engine(cfg, prepared, len(tokenizer))
    return Plan(cfg, design, instantiate(cfg.optim), prepared, tokenizer, model, references, chosen)


def _engine(cfg: DictConfig, prepared: Prepared, vocab_size: int) -> Engine:
    trainer, rows = cfg.trainer, prepared.train
    tokens = sum(sum(example.supervised) for example in rows) / len(rows)
    scored = tokens * trainer.max_steps * trainer.batch_size * trainer.accumulate * vocab_size
    return choose(cfg.loss.compile, on_gpu=on_gpu(trainer.accelerator), scored=scored)


def load_models(plan: Plan) -> tuple[Policy, dict[str, FrozenModel]]:
    """The policy, and the frozen models that the design or the evaluation look at."""
    cfg, vocab = plan.cfg, len(plan.tokenizer)
    load = partial(provide.load_policy, vocab_size=vocab, attention=cfg.model.attention)
    policy = load(plan.model, dtype=cfg.model.dtype).train()  # transformers hands models out in eval mode
    frozen = {
        role: _frozen(load(source, dtype=cfg.references[role].dtype), cfg.references[role])
        for role, source in plan.references.items()
    }
    return policy, frozen


def _frozen(model: Policy, node: DictConfig) -> FrozenModel:
    return Snapshot(model, node.every) if node.kind == "snapshot" else FrozenModel(model, node.topk, node.tail)


def module(plan: Plan, policy: Policy, frozen: Mapping[str, FrozenModel]) -> QTargetModule:
    """Policy, design and the references that the design looks at (the evaluation may hold one more)."""
    used = {role: model for role, model in frozen.items() if role in needs(plan.design)}
    steps, chunk_size = plan.cfg.trainer.max_steps, plan.cfg.loss.chunk_size
    compiled = plan.engine.compiled
    return QTargetModule(
        policy, plan.design, used, plan.optim, total_steps=steps, chunk_size=chunk_size, compiled=compiled
    )


def data(plan: Plan) -> SFTData:
    """The training demonstrations, batched."""
    trainer = plan.cfg.trainer
    return SFTData(
        plan.prepared.train,
        int(plan.tokenizer.pad_token_id),
        batch_size=trainer.batch_size,
        accumulate=trainer.accumulate,
        seed=plan.cfg.seed,
    )


def evaluator(plan: Plan, frozen: Mapping[str, FrozenModel], device: torch.device) -> Evaluator:
    """What judges the policy on held-out demonstrations, at the precision of training."""
    mixed = plan.cfg.trainer.precision == "bf16-mixed"
    prior = frozen.get("prior") if plan.cfg.eval.kl_prior else None
    return Evaluator(
        tokenizer=plan.tokenizer,
        rows=plan.prepared.heldout_rows,
        examples=plan.prepared.heldout,
        prior=prior.to(device) if prior else None,
        autocast=partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=mixed),
        new_tokens=plan.cfg.eval.new_tokens,
        batch_size=plan.cfg.eval.batch_size,
    )


def _reference_sources(cfg: DictConfig, design: Design) -> dict[str, provide.Source]:
    """The references a run has to load: those its design needs, and the prior where drift from it is measured."""
    configured = {role: reference_name(cfg, role) for role in ROLES}
    wanted = dict(needs(design))
    for role, detail in wanted.items():
        if configured.get(role) is None:
            enough = " or ".join(DETAILS[DETAILS.index(detail) :])
            raise QTargetError(
                f"this target needs the {role} ({enough}) and none is configured: add {HOW_TO_ADD[role]}"
            )
    held = {role: _detail(cfg, role) for role, name in configured.items() if name}
    check_references(design, held, {role: cfg.references[role].tail for role, kept in held.items() if kept == "topk"})
    if cfg.eval.kl_prior and configured["prior"]:
        wanted.setdefault("prior", "full")
    return {role: provide.resolve(name) for role, name in configured.items() if role in wanted and name}


def _detail(cfg: DictConfig, role: str) -> str:
    """How much of a role's distribution the run will hold."""
    return "topk" if cfg.references[role].get("topk") else "full"


def _check_columns(design: Design, prepared: Prepared) -> None:
    held = prepared.train[0].columns
    for name in sorted(columns(design) - set(held)):
        raise QTargetError(
            f"this target needs the data column {name!r} and the rows carry {', '.join(held)}: with data=jsonl, give "
            f"rows {name!r}: [[start, stop], …], characters of the last message, and set data.source.columns=[{name}]"
        )


def _check_same_tokenizer(role: str, theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase) -> None:
    if theirs.get_vocab() != ours.get_vocab():
        raise QTargetError(
            f"the {role}'s tokenizer ({len(theirs)} tokens) is not the policy's ({len(ours)} tokens): a target mixes "
            "their distributions token by token, so they must share one. Choose a reference of the same model family"
        )
