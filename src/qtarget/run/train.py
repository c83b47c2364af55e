"""`qtarget train`: one job, from a composed configuration to a finished record."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import transformers
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from qtarget.config.identity import config_hash
from qtarget.config.names import check_names
from qtarget.config.parts import make_tracker
from qtarget.config.run_config import RunConfig, TrainerConfig
from qtarget.config.versions import versions
from qtarget.data.batch import Collate
from qtarget.data.module import SFTData
from qtarget.errors import QTargetError
from qtarget.evaluate.heldout import Evaluation, Evaluator
from qtarget.evaluate.row_losses import save_row_losses
from qtarget.evaluate.samples import save_samples
from qtarget.files import locked
from qtarget.math.scoring import graphs_compiled
from qtarget.model.policy import Policy
from qtarget.parallel import is_rank_zero
from qtarget.record.record import NullRecord, Record, make_folder, replay, stored_result
from qtarget.record.trackers import NoTracker
from qtarget.record.wandb_sweep import under_agent
from qtarget.resume_folders import STATE, discard, newest
from qtarget.run import build, ranks
from qtarget.run.closing import closing_line
from qtarget.run.exported_model import CHECKPOINT, discard_checkpoint, save_checkpoint
from qtarget.run.out_of_memory import explain_out_of_memory
from qtarget.run.plan import Plan, check_design, make_plan
from qtarget.signals import Stop, folder_timeout
from qtarget.train.callbacks import LastMetrics, Log, Meter, PeriodicEvaluation, ShowProgress, StepLogger
from qtarget.train.lightning_module import QTargetModule
from qtarget.train.memory import keep_freed_blocks
from qtarget.train.resume_callback import ResumeCallback
from qtarget.train.resume_state import ResumeState, last_state
from qtarget.train.trust import trust_table

TRUST_ROWS = 64
"""Training rows that are read for the table of trust."""


def run_job(cfg: RunConfig, folder: Path, choices: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Train, evaluate and record one configuration; a finished one is returned, not trained again.

    One that was stopped goes on from its last state, if it has one.

    On several devices it runs in as many processes: those that torchrun or srun started, of which this is one, or else
    processes of its own. Rank 0 writes the record; only there is the result returned whole.
    """
    info = _info(cfg.container(), choices, overrides)
    several = cfg.trainer.processes > 1
    ranks.check_started(cfg.trainer)
    if several and ranks.environment():
        return _as_rank(cfg, folder, info)
    with lock_folder(folder), Stop() as stop:
        if stored := load_finished(cfg, folder):
            discard(folder / STATE)  # left where a kill came between the two
            if under_agent():
                replay(folder, make_tracker(cfg.tracker))  # the sweep waits for this run's values
            return stored
        return _on_ranks(cfg, folder, info) if several else _run_with_record(cfg, folder, info, stop)


def _as_rank(cfg: RunConfig, folder: Path, info: dict[str, Any]) -> dict[str, Any]:
    """This process's part in a run whose processes are there already."""
    ranks.connect()
    if not is_rank_zero():
        return {} if ranks.as_rank_0(None) else _run_with_record(cfg, folder, info)
    with lock_folder(folder):
        stored = load_finished(cfg, folder)
        ranks.as_rank_0(stored is not None)
        return stored or _run_with_record(cfg, folder, info)


def _on_ranks(cfg: RunConfig, folder: Path, info: dict[str, Any]) -> dict[str, Any]:
    """The run in processes of its own; here only what no rank can do, to record that one of them was lost."""
    record = Record(folder, NoTracker())
    try:
        if _last_state(cfg, folder):
            record.reread()  # rank 0 goes on from it
        else:
            record.start(info, cfg.container())
        check_design(cfg)  # said at once: processes take a while to start
        ranks.start(cfg.trainer.devices, _run_with_record, cfg, folder, info)
    except BaseException as error:
        record.reread()
        record.fail(error)
        raise
    return record.reread()


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """The job's folder, to this process alone."""
    make_folder(folder)
    # a sweep may hand out values twice: the second run waits, and tells what the first measured
    wait = -1 if under_agent() else folder_timeout()
    busy = f"another process is running this job in {folder}: wait for it, or stop it"
    with locked(folder / ".lock", busy, wait=wait):
        yield


def load_finished(cfg: RunConfig, folder: Path, done: str = "trained") -> dict[str, Any] | None:
    """The result of a finished job of the same configuration; refuses a folder of another one. done: what a job is."""
    return _finished(cfg.hash, folder, done)


def _finished(identity: str, folder: Path, done: str) -> dict[str, Any] | None:
    result = stored_result(folder)
    if result is None:
        return None
    if result.get("config_hash") != identity:
        raise QTargetError(
            f"{folder} holds a run of another configuration ({result.get('name')}): choose another folder with "
            "hydra.run.dir, or remove it"
        )
    if result["status"] != "finished":
        return None
    print(f"{result['name']}: finished already, not {done} again; remove {folder} to have it run anew")
    return result


def record_rejected(
    config: Mapping[str, Any], folder: Path, choices: Mapping[str, Any], overrides: list[str], error: QTargetError
) -> dict[str, Any]:
    """What becomes of a configuration that can't be read: its record says why, and the error is raised.

    A finished run of an earlier build, which read it, is returned. config: composed, as plain data.
    """
    rank = ranks.environment()
    if rank and rank.global_rank():
        raise error
    with lock_folder(folder):
        if stored := _finished(config_hash(config), folder, "trained"):
            return stored
        record = Record(folder, _tracker(config))
        record.start(_info(config, choices, overrides), config)
        record.fail(error)
    raise error


def _tracker(config: Mapping[str, Any]) -> Any:
    try:
        check_names(config)
        return make_tracker(config["tracker"])
    except QTargetError:  # which may be what is wrong
        return NoTracker()


def _info(config: Mapping[str, Any], choices: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """What the record says of a run from its start. config: as plain data."""
    return {
        "name": str(config["name"] or choices["target"]),
        "role": config["role"],
        "experiment": str(config["experiment_name"]),
        "choices": dict(choices),
        "overrides": overrides,
        "seed": config["seed"],
        "config_hash": config_hash(config),
        "mends": versions(config),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def _run_with_record(cfg: RunConfig, folder: Path, info: dict[str, Any], stop: Stop | None = None) -> dict[str, Any]:
    """stop: what ends the run between two steps, with its state saved; None in one of several processes."""
    record = Record(folder, make_tracker(cfg.tracker)) if is_rank_zero() else NullRecord(folder)
    keeper = _keeper(cfg, record, stop)
    try:
        with record.beating():
            record.start(info, cfg.container(), keeper.state.facts if keeper.state else None)
            result = record.finish(_plan_and_train(cfg, record, keeper, title=info["name"]))
    except BaseException as error:
        record.fail(error)
        raise
    if is_rank_zero():
        discard(keeper.holder)
        print(closing_line(result, folder))
    return result


def _keeper(cfg: RunConfig, record: Record | NullRecord, stop: Stop | None) -> ResumeCallback:
    """With the state that the run goes on from, where there is one. Of several ranks, rank 0 says which."""
    state = _last_state(cfg, record.folder) if is_rank_zero() else None
    if stop is None:
        state = ranks.as_rank_0(state)
    # W&B gives a run that it has stopped to nobody again, and several processes are stopped at several steps
    when_stopped = stop is not None and (bool(cfg.checkpoint.every) or not under_agent())
    holder, every = record.folder / STATE, cfg.checkpoint.every
    return ResumeCallback(holder, every, record, stop or Stop(), state, when_stopped=when_stopped)


def _last_state(cfg: RunConfig, folder: Path) -> ResumeState | None:
    holder = folder / STATE
    if cfg.resume == "never":
        discard(holder)
    state = last_state(holder)
    if state and state.facts.get("config_hash") != cfg.hash:
        raise QTargetError(f"{state.folder} is the state of another configuration: remove {holder}")
    return state


def _plan_and_train(
    cfg: RunConfig, record: Record | NullRecord, keeper: ResumeCallback, title: str
) -> dict[str, float]:
    """The run itself; returns its closing metrics."""
    prepare_process(cfg.seed)
    plan = make_plan(cfg)
    how = plan.engine.description
    record.note(
        design=plan.described,
        rows=plan.counts,
        data=plan.prepared.described,
        model=plan.model.location,
        steps=plan.cfg.trainer.max_steps,
        loss=how,
        attention=plan.attention,
    )
    if is_rank_zero():
        print(f"{title}: {plan.extent}; loss {how}")
    if is_rank_zero() and keeper.state:
        left = ", the last: what is left is the evaluation" if keeper.training_was_complete else ""
        print(f"{title}: goes on from step {keeper.state.step}{left}")
    with explain_out_of_memory(plan):
        return _build_and_train(plan, record, keeper, title)


def _build_and_train(plan: Plan, record: Record | NullRecord, keeper: ResumeCallback, title: str) -> dict[str, float]:
    cfg = plan.cfg
    policy, frozen = build.load_models(plan)
    module = build.module(plan, policy, frozen)
    measured = LastMetrics(meter := Meter())
    log = measured.passing_on(record.log)
    beside = [*[ShowProgress(title, measured)] * is_rank_zero(), keeper]
    trainer = _trainer(cfg, [meter, StepLogger(log, cfg.trainer.log_every), *beside])
    evaluator = build.evaluator(plan, frozen, trainer.strategy.root_device)
    trainer.callbacks.append(_in_training(cfg, evaluator, module, record, log))  # type: ignore[attr-defined]
    with keeper.save_when_stopped():
        if cfg.trainer.max_steps:
            _fit_and_check(plan, trainer, module, record)
        _keep(plan, trainer, module, keeper)
        evaluation = _evaluated(evaluator, policy.to(trainer.strategy.root_device), record.folder, title)
    keeper.stop.deferred = True  # what is left is short
    record.note(calibration=evaluation.calibration)
    if is_rank_zero():
        save_samples(record.folder, evaluation.samples)
        save_row_losses(record.folder, evaluation.row_losses)
    record.table("samples", [asdict(sample) for sample in evaluation.samples])
    record.table("calibration", evaluation.calibration)
    if cfg.trainer.max_steps:
        trusted = _trusted(plan, module, evaluator)
        record.note(trust=trusted)
        record.table("trust", trusted)
    if cfg.checkpoint.save:
        record.checkpoint(record.folder / CHECKPOINT)
    trained = module.whole_run.compute() | module.whole_detection.compute()
    return {**evaluation.named("test"), **trained, **meter.metrics()}


def _fit_and_check(plan: Plan, trainer: L.Trainer, module: QTargetModule, record: Record | NullRecord) -> None:
    before = graphs_compiled() if plan.engine.compiled else 0  # asking imports the compiler
    _lightning_fit(trainer, module, build.data(plan))
    if plan.engine.compiled:
        record.note(loss=f"{plan.engine.description}, {graphs_compiled() - before} graphs")


def _keep(plan: Plan, trainer: L.Trainer, module: QTargetModule, keeper: ResumeCallback) -> None:
    """What was trained goes to disk, all of it, before anything is made of it."""
    cfg, folder = plan.cfg, keeper.holder.parent
    if keeper.training_was_complete and (not cfg.checkpoint.save or (folder / CHECKPOINT).is_dir()):
        return
    if is_rank_zero():
        discard_checkpoint(folder)  # of an earlier attempt
    if cfg.trainer.max_steps and not keeper.training_was_complete:
        keeper.save_final(trainer, module)
    if cfg.checkpoint.save:
        wanted = cfg.checkpoint.optimizer and trainer.optimizers and not keeper.training_was_complete
        save_checkpoint(plan, module.policy, folder, _optimizer_state(trainer) if wanted else None)


def _evaluated(evaluator: Evaluator, policy: Policy, folder: Path, title: str) -> Evaluation:
    try:
        return evaluator(policy)
    except Exception:
        if is_rank_zero() and newest(folder / STATE):
            print(f"{title}: training is done and kept in {folder}: the same command evaluates again")
        raise


def prepare_process(seed: int) -> None:
    """Seeds, and libraries that keep quiet."""
    keep_freed_blocks()
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # one device needs no srun
    L.seed_everything(seed, verbose=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a hub out of reach is reported once, by us
    transformers.utils.logging.disable_progress_bar()


def _trainer(cfg: RunConfig, callbacks: list[L.Callback]) -> L.Trainer:
    return L.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=cfg.trainer.devices,
        num_nodes=cfg.trainer.num_nodes,
        strategy=_strategy(cfg.trainer),
        # one process is one process, on a machine with srun or within an allocation too
        plugins=ranks.environment() if cfg.trainer.processes > 1 else LightningEnvironment(),
        precision=cfg.trainer.precision,
        max_steps=cfg.trainer.steps,
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


def _strategy(trainer: TrainerConfig) -> Strategy | str:
    """Lightning's, by our name: ddp where auto meets several devices."""
    if trainer.strategy == "fsdp2":
        world = trainer.processes
        return ModelParallelStrategy(world, tensor_parallel_size=1, save_distributed_checkpoint=False)
    return "ddp" if trainer.processes > 1 else "auto"


def _lightning_fit(trainer: L.Trainer, module: QTargetModule, data: SFTData) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # SFTData.resume_at is how
        sigint = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, datamodule=data)
        except SystemExit:  # Lightning's answer to Ctrl-C, which it leaves ignored from then on
            signal.signal(signal.SIGINT, sigint)
            raise KeyboardInterrupt from None


def _in_training(
    cfg: RunConfig, evaluator: Evaluator, module: QTargetModule, record: Record | NullRecord, log: Log
) -> PeriodicEvaluation:
    def evaluate() -> dict[str, float]:
        return evaluator(module.policy, limit=cfg.eval.problems_in_training, closing=False).named("val")

    def log_with_histograms(step: int, metrics: dict[str, float]) -> None:
        log(step, metrics)
        record.histograms(step, module.histograms.tell())

    return PeriodicEvaluation(evaluate, log_with_histograms, cfg.trainer.eval_every)


def _trusted(plan: Plan, module: QTargetModule, evaluator: Evaluator) -> list[dict[str, Any]]:
    """Which tokens of training rows, from all over the data, the design trusts least and most."""
    rows, size = plan.prepared.rows, plan.cfg.trainer.batch_size
    count = min(TRUST_ROWS, len(rows))
    some: Any = [rows[place * len(rows) // count] for place in range(count)]
    collate = Collate(int(plan.tokenizer.pad_token_id))
    batches = [collate(some[start : start + size]) for start in range(0, len(some), size)]
    with evaluator.autocast():
        return trust_table(module, batches, plan.tokenizer.decode)


def _optimizer_state(trainer: L.Trainer) -> dict[str, Any]:
    (schedule,) = trainer.lr_scheduler_configs
    return {
        "step": trainer.global_step,
        "optimizer": trainer.strategy.optimizer_state(trainer.optimizers[0]),
        "schedule": schedule.scheduler.state_dict(),
    }
