"""`qtarget train`: one job, from a composed configuration to a finished record."""

from __future__ import annotations

import json
import logging
import signal
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
import transformers
from filelock import FileLock, Timeout
from omegaconf import DictConfig

from qtarget.app import compose
from qtarget.app.configs import instantiate
from qtarget.app.job import config_container, config_hash
from qtarget.data.module import SFTData
from qtarget.errors import QTargetError
from qtarget.evaluate.heldout import Evaluator, Sample
from qtarget.math.scoring import graphs_compiled
from qtarget.model import provide
from qtarget.model.adapter import merge, save_adapter
from qtarget.model.policy import Policy
from qtarget.track.record import Record, make_folder, stored_result, write_atomically
from qtarget.train.callbacks import Meter, PeriodicEvaluation, ShowProgress, StepLogger
from qtarget.train.memory import keep_freed_blocks
from qtarget.train.module import QTargetModule


def run_job(cfg: DictConfig, folder: Path, choices: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Train, evaluate and record one configuration; a finished one is returned, not trained again."""
    make_folder(folder)
    try:
        with FileLock(folder / ".lock", timeout=0):
            return _stored(cfg, folder) or _fresh(cfg, folder, choices, overrides)
    except Timeout as error:
        raise QTargetError(f"another process is running this job in {folder}: wait for it, or stop it") from error


def _stored(cfg: DictConfig, folder: Path) -> dict[str, Any] | None:
    """The result of a finished run of the same configuration; refuses a folder of another one."""
    result = stored_result(folder)
    if result is None:
        return None
    if result.get("config_hash") != config_hash(cfg):
        raise QTargetError(
            f"{folder} holds a run of another configuration ({result.get('name')}): choose another folder with "
            "hydra.run.dir, or remove it"
        )
    if result["status"] != "finished":
        return None
    print(f"{result['name']}: finished already, not trained again; remove {folder} to have it run anew")
    return result


def _fresh(cfg: DictConfig, folder: Path, choices: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    record = Record(folder, instantiate(cfg.tracker))
    info = {
        "name": cfg.name or choices["target"],
        "role": cfg.role,
        "experiment": cfg.experiment_name,
        "choices": dict(choices),
        "overrides": overrides,
        "seed": cfg.seed,
        "config_hash": config_hash(cfg),
    }
    try:
        record.start(info, config_container(cfg))
        return record.finish(_train(cfg, record, title=info["name"]))
    except BaseException as error:
        record.fail(error)
        raise


def _train(cfg: DictConfig, record: Record, title: str) -> dict[str, float]:
    """The run itself; returns its closing metrics."""
    prepare_process(cfg.seed)
    plan = compose.plan(cfg)
    how = plan.engine.said
    record.note(design=plan.described, rows=plan.prepared.counts, model=plan.model.location, loss=how)
    print(f"{title}: {plan.extent}; loss {how}")
    policy, frozen = compose.load_models(plan)
    module = compose.module(plan, policy, frozen)
    meter = Meter()
    trainer = _trainer(cfg, [meter, StepLogger(record.log, cfg.trainer.log_every), ShowProgress(title)])
    evaluator = compose.evaluator(plan, frozen, trainer.strategy.root_device)
    trainer.callbacks.append(_in_training(cfg, evaluator, policy, record))  # type: ignore[attr-defined]
    if cfg.trainer.max_steps:
        before = graphs_compiled() if plan.engine.compiled else 0  # asking imports the compiler
        _fit(trainer, module, compose.data(plan))
        if plan.engine.compiled:
            record.note(loss=f"{how}, {graphs_compiled() - before} graphs")
    metrics, samples = evaluator(policy.to(trainer.strategy.root_device))
    _save_samples(record.folder, samples)
    _save_checkpoint(cfg, record.folder, plan, policy, trainer)
    return {**_named("test", metrics), **module.whole_run.compute(), **meter.metrics()}


def prepare_process(seed: int) -> None:
    """Seeds, and libraries that keep quiet."""
    keep_freed_blocks()
    L.seed_everything(seed, verbose=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a hub out of reach is reported once, by us
    transformers.utils.logging.disable_progress_bar()


def _trainer(cfg: DictConfig, callbacks: list[L.Callback]) -> L.Trainer:
    return L.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=cfg.trainer.devices,
        precision=cfg.trainer.precision,
        max_steps=cfg.trainer.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=cfg.trainer.accumulate,
        gradient_clip_val=cfg.trainer.clip,
        callbacks=callbacks,
        use_distributed_sampler=False,  # the loader shards by itself, and carries StepWindows
        limit_val_batches=0,  # evaluation is ours: the same code during and after training
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )


def _fit(trainer: L.Trainer, module: QTargetModule, data: SFTData) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
        sigint = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, datamodule=data)
        except SystemExit:  # Lightning's answer to Ctrl-C, which it leaves ignored from then on
            signal.signal(signal.SIGINT, sigint)
            raise KeyboardInterrupt from None


def _in_training(cfg: DictConfig, evaluator: Evaluator, policy: Policy, record: Record) -> PeriodicEvaluation:
    def evaluate() -> dict[str, float]:
        metrics, _ = evaluator(policy, limit=cfg.eval.problems_in_training)
        return _named("val", metrics)

    return PeriodicEvaluation(evaluate, record.log, cfg.trainer.eval_every)


def _named(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def _save_samples(folder: Path, samples: list[Sample]) -> None:
    if samples:
        lines = (json.dumps(asdict(sample), ensure_ascii=False) for sample in samples)
        write_atomically(folder / "samples.jsonl", "\n".join(lines) + "\n")


def _save_checkpoint(cfg: DictConfig, folder: Path, plan: compose.Plan, policy: Policy, trainer: L.Trainer) -> None:
    """An ordinary folder that transformers loads, and where asked the optimizer's state beside it.

    An adapter is saved alone, as peft loads it, and merged into the weights of the checkpoint.
    """
    if not cfg.checkpoint.save:
        return
    target = folder / "checkpoint"
    if policy.has_adapter:
        save_adapter(policy, folder / "adapter")
        merge(policy)
    policy.lm.to(provide.DTYPES[cfg.checkpoint.dtype]).save_pretrained(target)  # the policy's last use
    plan.tokenizer.save_pretrained(target)
    if cfg.checkpoint.optimizer and trainer.optimizers:
        (schedule,) = trainer.lr_scheduler_configs
        state = {
            "step": trainer.global_step,
            "optimizer": trainer.optimizers[0].state_dict(),
            "schedule": schedule.scheduler.state_dict(),
        }
        torch.save(state, target / "optimizer.pt")
