"""One run, from its configuration to its closing metrics: plan, build, fit, save, evaluate."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import transformers
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from qtarget.config.run_config import RunConfig, TrainerConfig
from qtarget.data.batch import Collate
from qtarget.data.lightning_data import RunData, StreamedData
from qtarget.evaluate.generate import REFILLED
from qtarget.evaluate.heldout import Evaluation, Evaluator
from qtarget.evaluate.row_losses import save_row_losses
from qtarget.evaluate.samples import save_samples
from qtarget.math.scoring import graphs_compiled
from qtarget.model.policy import Policy
from qtarget.model.sharding import reshard
from qtarget.parallel import is_rank_zero
from qtarget.record.record import NullRecord, Record
from qtarget.resume_folders import STATE, newest
from qtarget.run import build, ranks
from qtarget.run.disk import caches_in_words, check_room, disk_use, unbuilt_caches
from qtarget.run.exported_model import (
    CHECKPOINT,
    OPTIMIZER,
    as_saved,
    check_optimizer_kept,
    discard_checkpoint,
    save_checkpoint,
    save_optimizer,
)
from qtarget.run.out_of_memory import explain_out_of_memory
from qtarget.run.plan import Plan, make_plan
from qtarget.train.callbacks import LastMetrics, Log, Meter, PeriodicEvaluation, ShowProgress, StepLogger, tokens_seen
from qtarget.train.compiling import Engine
from qtarget.train.compiling_trial import LossEngine
from qtarget.train.lens_record import LensRecorder, LensRows
from qtarget.train.lightning_module import QTargetModule
from qtarget.train.memory import keep_freed_blocks
from qtarget.train.resume_callback import ResumeCallback
from qtarget.train.trust import trust_table

TRUST_ROWS = 64
"""Training rows that are read for the table of trust."""


def train_and_evaluate(
    cfg: RunConfig, record: Record | NullRecord, resume: ResumeCallback, title: str
) -> dict[str, float]:
    """The run itself, in this process; returns its closing metrics. title: what the run is called in what it prints."""
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
    use, caches = disk_use(plan.cfg, plan.design), unbuilt_caches(plan)
    little_room = check_room(use, record.folder, caches)
    if is_rank_zero():
        print(f"{title}: {plan.extent}; loss {how}; {use.in_words}{caches_in_words(caches)}")
        print(f"{title}: {little_room}" if little_room else "", end="\n" * bool(little_room), file=sys.stderr)
    if is_rank_zero() and resume.state:
        left = ", the last: what is left is the evaluation" if resume.training_was_complete else ""
        print(f"{title}: goes on from step {resume.state.step}{resume.state.saved_by}{left}")
    with explain_out_of_memory(plan):
        return _run_plan(plan, record, resume, title)


def _run_plan(plan: Plan, record: Record | NullRecord, resume: ResumeCallback, title: str) -> dict[str, float]:
    cfg = plan.cfg
    policy, frozen = build.load_models(plan)
    module = build.module(plan, policy, frozen)
    engine = LossEngine(plan.engine, plan.scored, partial(_say_engine, record, title))
    measured = LastMetrics(meter := Meter())
    log = measured.passing_on(record.log)
    shown = [ShowProgress(title, measured)] if is_rank_zero() else []
    trainer = make_trainer(cfg, [engine, meter, StepLogger(log, cfg.trainer.log_every, meter), *shown, resume])
    evaluator = build.evaluator(plan, frozen, trainer.strategy.root_device)
    before_states = trainer.callbacks.index(resume)  # type: ignore[attr-defined]
    trainer.callbacks[before_states:before_states] = _lens_recorder(plan, record, evaluator)  # type: ignore[attr-defined]
    note_answering(evaluator, policy, record, title)
    between = _periodic_evaluation(cfg, evaluator, module, record, log, meter=meter)
    trainer.callbacks.append(between)  # type: ignore[attr-defined]
    with resume.save_when_stopped():
        if cfg.trainer.max_steps:
            before = graphs_compiled()
            _fit(plan, trainer, module, record, title)
            _note_how(engine.engine, graphs_compiled() - before, module, record)
            if is_rank_zero() and (cost := between.cost(meter.seconds)):
                print(f"{title}: {cost}")
        _save_trained(plan, trainer, module, resume)
        evaluation = _evaluate(evaluator, _judged(plan, policy, trainer, record.folder), record.folder, title)
    resume.stop.deferred = True  # what is left is short
    record.note(calibration=evaluation.calibration)
    if is_rank_zero():
        save_samples(record.folder, evaluation.samples)
        save_row_losses(record.folder, evaluation.row_losses)
    record.table("samples", [asdict(sample) for sample in evaluation.samples])
    record.table("calibration", evaluation.calibration)
    if cfg.trainer.max_steps:
        trust = _trust_rows(plan, module, evaluator)
        record.note(trust=trust)
        record.table("trust", trust)
    if cfg.checkpoint.save:
        record.checkpoint(record.folder / CHECKPOINT)
    trained = module.whole_run.compute() | module.whole_detection.compute()
    return {**evaluation.named("test"), **trained, **meter.metrics()}


def note_answering(evaluator: Evaluator, policy: Policy, record: Record | NullRecord, title: str) -> None:
    """How answers are written is in the record; what slows them down is printed, too."""
    noted = evaluator.answering(policy)
    record.note(**noted)
    if is_rank_zero() and noted.get("answers", REFILLED) != REFILLED:
        print(f"{title}: answers {noted['answers']}")


def _say_engine(record: Record | NullRecord, title: str, engine: Engine) -> None:
    record.note(loss=engine.description)
    if is_rank_zero():
        print(f"{title}: loss {engine.description}")


def _fit(plan: Plan, trainer: L.Trainer, module: QTargetModule, record: Record | NullRecord, title: str) -> None:
    lightning_fit(trainer, module, data := build.data(plan))
    if isinstance(data, StreamedData):
        counts = {**plan.counts, **data.place(trainer.global_step).counts}
        record.note(rows=counts)
        if is_rank_zero():
            left_out = replace(plan.prepared, counts=counts).dropped_in_words
            print(f"{title}: trained on {counts['train']} of {counts['asked']} rows that were read{left_out}")


def _note_how(engine: Engine, graphs: int, module: QTargetModule, record: Record | NullRecord) -> None:
    """The record says how many graphs a loss took, which library made fp32 products, and whether padding was read."""
    counted = [f"{graphs} graphs"] if engine.compiled else []
    library = [f"fp32 products by {module.library}"] if module.library else []
    record.note(loss=", ".join([engine.description, *counted, *library]))
    tried = vars(module.policy).get("skips_padding")  # not where no batch was read, nor on a GPU
    record.note(padding="not read" if tried else "read")


def lightning_fit(trainer: L.Trainer, module: QTargetModule, data: RunData) -> None:
    """trainer.fit; raises KeyboardInterrupt where Ctrl-C ended it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # SFTData.resume_at is how
        sigint = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, datamodule=data)
        except SystemExit:  # Lightning's answer to Ctrl-C, which it leaves ignored from then on
            signal.signal(signal.SIGINT, sigint)
            raise KeyboardInterrupt from None


def _save_trained(plan: Plan, trainer: L.Trainer, module: QTargetModule, resume: ResumeCallback) -> None:
    """State and checkpoint, before the evaluation: if that fails, it can be done again without training."""
    cfg, folder = plan.cfg, resume.holder.parent
    if resume.training_was_complete and cfg.checkpoint.optimizer:
        check_optimizer_kept(folder)
    if resume.training_was_complete and (not cfg.checkpoint.save or (folder / CHECKPOINT).is_dir()):
        return
    if is_rank_zero():
        discard_checkpoint(folder)  # of an earlier attempt
    reshard(module.policy)  # after the evaluation of the last step
    if cfg.trainer.max_steps and not resume.training_was_complete:
        resume.save_final(trainer, module)
        _save_optimizer(cfg, trainer, folder)
    if cfg.checkpoint.save:
        save_checkpoint(plan, module.policy, folder)


def _save_optimizer(cfg: RunConfig, trainer: L.Trainer, folder: Path) -> None:
    if is_rank_zero():
        (folder / OPTIMIZER).unlink(missing_ok=True)  # of an earlier attempt
    if cfg.checkpoint.optimizer:
        state = _optimizer_state(trainer)  # collective
        if is_rank_zero():
            save_optimizer(state, folder)


def _judged(plan: Plan, policy: Policy, trainer: L.Trainer, folder: Path) -> Policy:
    """The policy as it lies on disk, where evaluations run."""
    device = trainer.strategy.root_device
    return as_saved(plan, policy.to(device), folder).to(device)


def _evaluate(evaluator: Evaluator, policy: Policy, folder: Path, title: str) -> Evaluation:
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


def make_trainer(cfg: RunConfig, callbacks: list[L.Callback]) -> L.Trainer:
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
        accumulate_grad_batches=cfg.trainer.micro_batches,
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


def _periodic_evaluation(
    cfg: RunConfig, evaluator: Evaluator, module: QTargetModule, record: Record | NullRecord, log: Log, *, meter: Meter
) -> PeriodicEvaluation:
    def evaluate() -> dict[str, float]:
        evaluation = evaluator(module.policy, limit=cfg.eval.problems_in_training, closing=False)
        return evaluation.named("val") | tokens_seen(meter, module)

    def log_with_histograms(step: int, metrics: dict[str, float]) -> None:
        log(step, metrics)
        record.histograms(step, module.histograms.compute_until_next())

    return PeriodicEvaluation(evaluate, log_with_histograms, cfg.trainer.eval_every)


def _lens_recorder(plan: Plan, record: Record | NullRecord, evaluator: Evaluator) -> list[L.Callback]:
    """What `lens.every` asks for."""
    lens = plan.cfg.lens
    if lens.every is None:
        return []
    rows = LensRows.first(plan.prepared.train, plan.tokenizer, rows=lens.rows, tokens=lens.tokens, top=lens.top)
    return [LensRecorder(rows, record, lens.every, evaluator.autocast)]


def _trust_rows(plan: Plan, module: QTargetModule, evaluator: Evaluator) -> list[dict[str, Any]]:
    """Which tokens of training rows, from all over the data, the design trusts least and most."""
    rows, size = plan.prepared.rows, plan.cfg.trainer.batch_size
    count = min(TRUST_ROWS, len(rows))
    some: Any = [rows[index * len(rows) // count] for index in range(count)]
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
