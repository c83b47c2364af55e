"""A model reads demonstrations under several designs: what `qtarget lens checkpoint=…` shows token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from torch import Tensor

from qtarget.app import compose
from qtarget.app.configs import compose_config, compose_target, config_container, nearest, options
from qtarget.app.names import OF_A_RUN, as_typed
from qtarget.app.references import CachedReference, FrozenReference, NamedReference, read_references
from qtarget.app.run_config import NODES, RunConfig
from qtarget.app.train import prepare_process
from qtarget.data.batch import Batch
from qtarget.data.collate import Collate
from qtarget.data.example import Example
from qtarget.errors import QTargetError
from qtarget.math.loss import IGNORE, LossOutput
from qtarget.model.folders import model_folder, names_a_folder
from qtarget.model.frozen import Frozen
from qtarget.model.policy import Policy
from qtarget.track.figures import Mark
from qtarget.track.lens import PROGRESS
from qtarget.track.runs import without_places
from qtarget.track.tokens import Alternative, Demonstrations, Pull, Reading, Row, Token

Made = TypeVar("Made")
NO_NOISE = {"_target_": "qtarget.data.noise.NoNoise"}
OF_EARLIER_RUNS = {kind.PLACE: kind for kind in NODES}
"""Nodes of which an earlier run's record may know fewer keys."""
OTHERS = 3  # likeliest alternatives named per token


def read_demonstrations(
    where: str,
    marks: Mapping[str, Mark],
    *,
    changes: Sequence[str] = (),
    overrides: Sequence[str] = (),
    rows: int = 4,
    lenient: bool = False,
) -> Demonstrations:
    """`rows` training rows, those with noise first, read by the model at `where` under each design.

    where: a finished run (its config.yaml says the data and the references) or any model. lenient: designs that can't
    be run here are left out; otherwise QTargetError says what they need.
    """
    cfg = run_config(where, overrides)
    prepare_process(cfg.seed)
    base, attempts = compose.plan(_with_target(cfg, "sft")), Attempts(lenient)
    quick = _quick(cfg)
    plans = attempts.each(marks, lambda name: compose.plan(_with_target(quick, name, changes)))
    policy, frozen = _models(base, plans.values())
    examples = sorted(base.prepared.train, key=lambda example: not any(example.wrong))[:rows]
    batch = Collate(int(base.tokenizer.pad_token_id))(examples).to(_device())
    with torch.no_grad():
        outs = attempts.each(plans, lambda name: _loss(plans[name], policy, frozen, batch))
        tokens = list(_tokens(base, policy, frozen.get("prior"), batch, examples))
    readings = _readings(outs, marks, batch)
    found = (
        Row(example.row, tuple(row), pulls) for example, row, pulls in zip(examples, tokens, readings, strict=True)
    )
    return Demonstrations(without_places(where), tuple(found), tuple(attempts.left_out))


# The configuration


def run_config(where: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The training configuration that a checkpoint is read with."""
    cfg = trained_config(where, overrides, **{"optim.allow_bf16_rounding": True})  # nothing is trained
    nothing = {**cfg.eval.retention, "source": None}
    return replace(
        cfg,
        eval=replace(cfg.eval, kl_prior=True, benchmarks={}, retention=nothing),  # the prior is loaded, nothing asked
        data={**cfg.data, "heldout_rows": 0},
        trainer=replace(cfg.trainer, precision="32-true"),
    )


def trained_config(where: str, overrides: Sequence[str] = (), **changes: Any) -> RunConfig:
    """How a run was trained, or would be from a model, its references live and the policy what is to be looked at.

    changes: values by dotted key.
    """
    run = run_folder(where)
    composed = _of_model(where, overrides) if run is None else _of_run(run, overrides)
    for key, value in changes.items():
        _put(composed, key, value)
    return RunConfig.read(composed)


def _run_live(cfg: dict[str, Any]) -> None:
    """A few rows are read by the models themselves: no cache holds them, and a checkpoint's adapter is merged."""
    for role, node in read_references(cfg["references"]).items():
        if isinstance(node, NamedReference) and node.KIND in ("cached", "adapter_off"):
            topk = node.topk if isinstance(node, CachedReference) and node.detail == "topk" else None
            name = node.model(cfg["model"]["name"])
            live = FrozenReference(role=role, name=name, dtype=node.dtype, topk=topk, tail=node.tail, flaw=node.flaw)
            cfg["references"][role] = live.container()


def run_folder(where: str) -> Path | None:
    """The folder of a run of qtarget; None for any other model. Raises QTargetError where there is no model."""
    if not names_a_folder(where):
        return None
    folder = model_folder(where)
    is_run = folder.name == "checkpoint" and (folder.parent / "config.yaml").is_file()
    return folder.parent if is_run else None


def _of_model(where: str, overrides: Sequence[str]) -> dict[str, Any]:
    if any(override.partition("=")[0] == "model" for override in overrides):
        raise QTargetError("checkpoint=WHERE names the model: leave model=… away")
    cfg = config_container(compose_config("train", [*overrides, "model=path"]))
    cfg["model"]["name"] = where
    _run_live(cfg)
    return cfg


def _of_run(run: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """As the run was configured, with its trained weights as policy; its prior stays where training started."""
    cfg = _saved(run / "config.yaml")
    _run_live(cfg)
    prior = read_references(cfg["references"])["prior"].model(cfg["model"]["name"])
    if prior:
        cfg["references"]["prior"]["name"] = prior
    cfg["model"] |= {"name": str(run / "checkpoint"), "adapter": {}}
    for override in sorted(overrides, key=lambda override: not _picks_option(override)):
        path, value = (_option if _picks_option(override) else _field)(cfg, override)
        _put(cfg, path, value)
    return cfg


def _put(cfg: dict[str, Any], key: str, value: Any) -> None:
    """Set a value by its dotted key."""
    *path, name = key.split(".")
    for part in path:
        cfg = cfg.setdefault(part, {})
    cfg[name] = value


def _at(cfg: Any, key: str) -> Any:
    """The value of a dotted key, None where there is none."""
    for part in key.split(".") if key else ():
        cfg = cfg.get(part) if isinstance(cfg, dict) else None
    return cfg


def _saved(file: Path) -> dict[str, Any]:
    """The configuration that a record holds, text as the text it is: OmegaConf's own reader takes 1e5 for a number."""
    held = yaml.safe_load(file.read_text(encoding="utf-8"))
    numbers = {key: str(held[key]) for key in OF_A_RUN if held.get(key) is not None}  # in runs of earlier builds
    return config_container(held | numbers)


def _picks_option(override: str) -> bool:
    """data=jsonl and reference@references.teacher=frozen, as against data.rows=8."""
    return bool(options(override.lstrip("+").partition("=")[0].partition("@")[0]))


def _option(cfg: dict[str, Any], override: str) -> tuple[str, Any]:
    key, _, _ = override.lstrip("+").partition("=")
    group, _, package = key.partition("@")
    path = package or group.replace("/", ".")
    value = _at(config_container(compose_config("train", [override])), path)
    if value is None or path == "model":
        raise QTargetError(
            f"{override} can't be changed: the run in {cfg['model']['name']} says it. Give a model's folder instead"
        )
    return path, value


def _field(cfg: dict[str, Any], override: str) -> tuple[str, Any]:
    override, is_new = override.removeprefix("+"), override.startswith("+")
    key, _, _ = override.partition("=")
    parent, _, name = key.rpartition(".")
    holder = _at(cfg, parent)
    known = list(map(str, holder if isinstance(holder, dict) else cfg))
    if parent in OF_EARLIER_RUNS:
        known += [one.key for one in OF_EARLIER_RUNS[parent].settings()]
    if not isinstance(holder, dict) or (name not in known and not is_new):
        raise QTargetError(f"unknown key {key!r} in the run's config.yaml{nearest(name, known)}")
    return key, _value(override)


def _value(override: str) -> Any:
    """As `qtarget train` reads it."""
    try:
        return OverridesParser.create().parse_override(*as_typed([override])).value()
    except HydraException as error:
        raise QTargetError(f"{override} can't be read: {str(error).splitlines()[0]}") from error


def _with_target(cfg: RunConfig, name: str, changes: Sequence[str] = ()) -> RunConfig:
    return replace(cfg, target=compose_target(name, changes))


# Models and losses


def _quick(cfg: RunConfig) -> RunConfig:
    """The same with one row as it is: the rows are the same for all designs, and have been prepared once."""
    return replace(cfg, data={**cfg.data, "rows": 1, "reserve_rows": 0, "noise": NO_NOISE})


@dataclass(frozen=True)
class Attempts:
    """Does something for each of several designs; lenient ones note which can't be run here, and why."""

    lenient: bool
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def each(self, names: Iterable[str], make: Callable[[str], Made]) -> dict[str, Made]:
        made = {}
        for name in names:
            try:
                made[name] = make(name)
            except QTargetError as error:
                if not self.lenient:
                    raise QTargetError(f"{name}: {error}") from error
                self.left_out.append((name, str(error)))
        return made


def _models(base: compose.Plan, plans: Iterable[compose.Plan]) -> tuple[Policy, dict[str, Frozen]]:
    """The policy with dropout off, and every reference that one of the plans wants, each loaded once."""
    sources = dict(base.references)
    for plan in plans:
        sources |= plan.references
    policy, frozen = compose.load_models(replace(base, references=sources), roles=sources)
    # All designs read the same rows: each model goes over them once.
    policy.forward = cache(policy.forward)  # type: ignore[method-assign]
    for model in frozen.values():
        model.exact = cache(model.to(_device()).exact)  # type: ignore[method-assign, assignment]
    return policy.eval().to(_device()), frozen


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _loss(plan: compose.Plan, policy: Policy, frozen: Mapping[str, Frozen], batch: Batch) -> LossOutput:
    """The design's loss as training calls it, at the end of training."""
    module = compose.module(plan, policy, frozen)
    module.progress_at = lambda step: PROGRESS  # type: ignore[method-assign]
    return module.token_loss(batch)


# What is shown


def _readings(outs: Mapping[str, LossOutput], marks: Mapping[str, Mark], batch: Batch) -> Iterator[tuple[Reading, ...]]:
    """Row by row, every design's pulls."""
    counts = (batch.labels != IGNORE).sum(-1).tolist()
    columns = {
        name: [values.double().cpu().split(counts) for values in (out.trust, out.reliance, out.weight)]
        for name, out in outs.items()
    }
    for row in range(len(counts)):
        yield tuple(
            Reading(
                marks[name], tuple(Pull(*map(float, numbers)) for numbers in zip(*(c[row] for c in held), strict=True))
            )
            for name, held in columns.items()
        )


def _tokens(
    plan: compose.Plan, policy: Policy, prior: Frozen | None, batch: Batch, examples: Sequence[Example]
) -> Iterator[list[Token]]:
    """The tokens of each row with what the policy and the prior make of them."""
    hidden = policy(batch.input_ids, batch.position_ids)
    exact = None if prior is None else prior.exact(batch)
    width = batch.labels.shape[1]
    for row, example in enumerate(examples):
        places = (batch.labels[row] != IGNORE).nonzero().squeeze(1)
        labels = batch.labels[row, places]
        logp = torch.log_softmax(policy.head.logits(hidden[row, places], hidden.dtype), dim=-1)
        known = None if exact is None else exact.select(row * width + places).at(labels, logp).label_logp.exp().tolist()
        yield _row_tokens(plan, example, logp, labels, known)


def _row_tokens(
    plan: compose.Plan, example: Example, logp: Tensor, labels: Tensor, prior: Sequence[float] | None
) -> list[Token]:
    label_logp = logp.gather(1, labels[:, None]).squeeze(1)
    others = logp.scatter(1, labels[:, None], -torch.inf).exp().topk(min(OTHERS, logp.shape[1] - 1), dim=-1)
    texts, found, count = pieces(plan.tokenizer, example.input_ids), [], 0
    # The first token of a row is nobody's label; should it be marked as supervised, it still isn't.
    for place, (text, supervised, wrong) in enumerate(zip(texts, example.supervised, example.wrong, strict=True)):
        if not supervised or place == 0:
            found.append(Token("" if text == UNFINISHED else text, supervised=False))
            continue
        pairs = zip(others.indices[count].tolist(), others.values[count].tolist(), strict=True)
        likely = tuple(Alternative(_alone(plan.tokenizer, token), p) for token, p in pairs)
        p, nll = float(label_logp[count].exp()), -float(label_logp[count])
        found.append(Token(text, True, wrong, p, None if prior is None else prior[count], nll, likely))
        count += 1
    return found


def _alone(tokenizer: Any, token: int) -> str:
    """A token outside a text; where it is but a part of a letter, the tokenizer's own name for it."""
    text = str(tokenizer.decode([token]))
    return str(tokenizer.convert_ids_to_tokens(token)) if UNFINISHED in text else text


UNFINISHED = "\ufffd"  # stands for a token that ends inside a letter


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, as it stands among the others; a letter of several tokens appears at its last one."""
    texts, start, done = [], 0, 0
    for stop in range(1, len(ids) + 1):
        before, text = (
            tokenizer.decode(list(ids[start:end]), clean_up_tokenization_spaces=False) for end in (done, stop)
        )
        if text.endswith(UNFINISHED):
            texts.append(UNFINISHED)
        else:
            texts.append(text[len(before) :].lstrip(UNFINISHED))
            start, done = done, stop
    return texts
