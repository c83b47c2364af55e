"""`qtarget evaluate`: a checkpoint judged by the code that judges in training, and recorded like a run."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qtarget.compare.command import near
from qtarget.compare.formats import Table, terminal
from qtarget.compare.groups import kept_interval
from qtarget.config.composing import compose_target, instantiate, to_yaml
from qtarget.config.names import NO_NOISE
from qtarget.config.parsers import EVALUATE as USAGE
from qtarget.config.parsers import keys_parser
from qtarget.config.run_config import RunConfig
from qtarget.config.versions import versions
from qtarget.data.module import DataConfig
from qtarget.data.sources.source import Sharing
from qtarget.errors import QTargetError
from qtarget.evaluate.row_losses import save_row_losses
from qtarget.evaluate.samples import FILE, save_samples
from qtarget.evaluate.served import Server
from qtarget.record.record import Record, stored_result
from qtarget.record.trackers import NoTracker
from qtarget.run import build
from qtarget.run.exported_model import CHECKPOINT
from qtarget.run.fit import note_answering, prepare_process
from qtarget.run.job_record import lock_folder
from qtarget.run.plan import Plan, make_plan
from qtarget.run.stored_config import check_not_trained_on, run_folder, trained_config
from qtarget.run.train import load_finished

FOLDER, SERVER_LOG = "evaluations", "server.log"
JUDGED = ("heldout", "validation", "test", "like_validation")
"""Counts of rows that an evaluation has to do with."""


def evaluate(arguments: Sequence[str]) -> int:
    """Judge a checkpoint, or each run of a folder; what has been judged the same way is shown, not done again."""
    options = keys_parser("evaluate").parse_intermixed_args(arguments)
    where, overrides = _split(options.keys)
    several = runs_below(where)
    if not several:
        return _evaluate_one(where, overrides, options)
    failed = {}
    for place, run in enumerate(several, start=1):
        if not options.cfg:
            print(f"{place}/{len(several)}  {near(run)}", flush=True)
        try:
            _evaluate_one(str(run), overrides, options)
        except QTargetError as error:
            failed[near(run)] = error
            print(f"qtarget: {error}", file=sys.stderr, flush=True)
    if failed:
        raise QTargetError(f"{len(failed)} of {len(several)} runs could not be evaluated: {', '.join(failed)}")
    return 0


def runs_below(where: str) -> list[Path]:
    """The runs with a checkpoint that a folder holds, at most one folder further down; none of a run or a model."""
    folder = Path(where).expanduser()
    if not folder.is_dir() or any((folder / name).exists() for name in ("config.yaml", "config.json", CHECKPOINT)):
        return []
    found = (path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{CHECKPOINT}"))
    return sorted(run for run in found if (run / "config.yaml").is_file())


def _evaluate_one(where: str, overrides: Sequence[str], options: Namespace) -> int:
    arguments = [f"checkpoint={where}", *overrides]
    trained = trained_config(where, overrides)
    cfg = _evaluation_of(trained, where)
    if options.cfg:
        print(to_yaml(cfg.container()), end="")
        return 0
    folder = Path(cfg.output_dir) / FOLDER / cfg.hash
    with lock_folder(folder):
        result = load_finished(cfg, folder, "evaluated")
        result = result or _fresh(cfg, folder, _info(cfg, where, arguments), trained.model.attention)
    _show(result["name"], result["metrics"], folder)
    if (folder / FILE).is_file():
        print(f"samples  {near(folder / FILE)}")
    else:
        print("judged   nothing: that takes rows with a verifier (data.source.verifier) or a benchmark (eval=small)")
    print(f"record   {near(folder / 'result.json')}")
    print(f"next     {_next_command(cfg, where, arguments, folder)}")
    return 0


def _split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The checkpoint, and Hydra's overrides."""
    named = [argument.partition("=")[2] for argument in arguments if argument.partition("=")[0] == "checkpoint"]
    odd = [argument for argument in arguments if "=" not in argument]
    if odd:
        hint = "" if named else f": did you mean checkpoint={odd[0]}?"
        raise QTargetError(f"got {odd[0]!r}{hint}; {USAGE}")
    if len(named) != 1 or not named[0]:
        raise QTargetError(USAGE)
    return named[0], [argument for argument in arguments if argument.partition("=")[0] != "checkpoint"]


def evaluation_config(where: str, overrides: Sequence[str]) -> RunConfig:
    """As the run was configured, but for what only training needs: one process, and no training row."""
    return _evaluation_of(trained_config(where, overrides), where)


def _evaluation_of(cfg: RunConfig, where: str) -> RunConfig:
    run = run_folder(where)
    if run is not None:
        check_not_trained_on(cfg.data, run)
    attention = cfg.model.attention
    if attention == "auto":
        attention = _run_result(run).get("attention", "sdpa") if run else "sdpa"
    # a model doesn't drift from itself
    drifts = run is not None or cfg.references["prior"].names_a_model
    return replace(
        cfg,
        name=cfg.name or (_run_result(run).get("name") if run else Path(where).name),
        experiment_name=FOLDER,
        target=compose_target("sft"),  # no design is trained with, so none asks for a teacher
        data={**cfg.data, "rows": 0, "reserve_rows": 0, "packing": None, "noise": NO_NOISE},
        trainer=replace(cfg.trainer, max_steps=0, epochs=None, devices=1, num_nodes=1, strategy="auto"),
        loss=replace(cfg.loss, compile="off"),
        model=replace(cfg.model, attention=attention),
        eval=replace(cfg.eval, kl_prior=cfg.eval.kl_prior and drifts),
    )


def _run_result(run: Path) -> dict[str, Any]:
    return stored_result(run) or {}


def _info(cfg: RunConfig, where: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What the record says of an evaluation; of a run's checkpoint also how that was trained."""
    run = run_folder(where)
    trained: dict[str, Any] = _run_result(run) if run else {"role": "base"}
    inherited: dict[str, Any] = {key: trained[key] for key in ("role", "choices", "design") if key in trained}
    given = dict(argument.partition("=")[::2] for argument in arguments)
    choices = {group: given.get(group, option) for group, option in inherited.get("choices", {}).items()}
    return {
        "name": cfg.name,
        "task": "evaluate",
        "experiment": FOLDER,
        **inherited,
        "choices": choices,
        "checkpoint": where,
        "overrides": list(arguments),
        "seed": cfg.seed,
        "config_hash": cfg.hash,
        "mends": versions(cfg.container()),
    }


def _fresh(cfg: RunConfig, folder: Path, info: Mapping[str, Any], attention: str) -> dict[str, Any]:
    """attention: as it was asked for; batches that are read without their padding go by it, as those of the run did."""
    record = Record(folder, NoTracker())
    try:
        with record.beating():
            record.start(info, cfg.container())
            return record.finish(_judged(cfg, record, attention))
    except BaseException as error:
        record.fail(error)
        raise


def _judged(cfg: RunConfig, record: Record, attention: str) -> dict[str, float]:
    prepare_process(cfg.seed)
    plan = make_plan(cfg)
    plan = replace(plan, cfg=replace(plan.cfg, model=replace(plan.cfg.model, attention=attention)))
    judged = {name: rows for name, rows in plan.counts.items() if name in JUDGED}
    record.note(rows=judged, attention=plan.attention)
    print(judged_in_words(plan))
    policy, frozen = build.load_models(plan)
    device = torch.device("cuda" if cfg.trainer.on_gpu else "cpu")
    evaluator = build.evaluator(plan, frozen, device, _server(plan, record.folder))
    note_answering(evaluator, policy, record, cfg.name or FOLDER)
    evaluation = evaluator(policy.to(device))
    record.note(calibration=evaluation.calibration)
    save_samples(record.folder, evaluation.samples)
    save_row_losses(record.folder, evaluation.row_losses)
    return evaluation.named("test")


def _server(plan: Plan, folder: Path) -> Server | None:
    """What answers under eval.engine=server; its log lies beside the record."""
    if plan.cfg.eval.engine == "local":
        return None
    if plan.model.is_tiny:
        raise QTargetError("model=tiny is made here and has no folder: no server can load it")
    where = Path(plan.model.location)
    checkpoint = str(where.resolve()) if where.exists() else plan.model.location
    return Server(plan.cfg.eval.answer_server, checkpoint, folder / SERVER_LOG)


def judged_in_words(plan: Plan) -> str:
    """How many held-out rows are judged, and of how many where they are a whole share of a source's rows."""
    data: DataConfig = instantiate(plan.cfg.data)
    count, few = plan.prepared.counts["heldout"], plan.prepared.few_in_words
    is_part = data.heldout_source is not None or data.heldout_rows is not None  # then not all rows were read
    if is_part or not isinstance(data.source, Sharing) or not data.source.share:
        return f"judging {count} held-out rows{few}"
    total = plan.prepared.counts.get("heldout_share_of", count)
    return (
        f"judging {count} of {total} rows, of which the share data.source.heldout_share={data.source.share:g} is held "
        f"out{few}. A file that wasn't trained on is judged whole by data.source.heldout=FILE"
    )


def _show(name: str, metrics: Mapping[str, float | None], folder: Path) -> None:
    """The metrics with their intervals, as a table; those of nll are over the rows that `folder` keeps."""
    from rich.box import HEAVY_HEAD

    shown = [name for name in metrics if not name.endswith(("_low", "_high"))]
    lines = [[name, _number(metrics[name]), _interval(metrics, name, folder)] for name in shown]
    table = Table(["metric", "value", "95 % interval"], lines, title=f"evaluation of {name}")
    terminal(width=80).print(table.rich(box=HEAVY_HEAD, padding=(0, 1)))


def _interval(metrics: Mapping[str, float | None], name: str, folder: Path) -> str:
    """ "" where there is none."""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    if low is None and (kept := kept_interval(folder, name)):
        low, high = kept.low, kept.high
    return "" if low is None or high is None else f"[{_number(low)}, {_number(high)}]"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:,.4g}"


def _next_command(cfg: RunConfig, where: str, arguments: Sequence[str], folder: Path) -> str:
    """Greedy answers are followed by drawn ones; those, and rows that nobody judges, by a second checkpoint."""
    if not (folder / FILE).is_file():
        return f"qtarget compare {shlex.quote(near(folder))} OTHER --paired nll"
    if cfg.eval.samples == 1:
        return shlex.join(["qtarget", "evaluate", *arguments, "eval.samples=8", "eval.temperature=1"])
    return f"qtarget compare {shlex.quote(near(folder))} OTHER --paired accuracy"
