"""A model reads demonstrations under several designs: what `qtarget lens checkpoint=…` shows token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TypeVar

import torch
from torch import Tensor

from qtarget.config.composing import compose_target
from qtarget.config.names import NO_NOISE
from qtarget.config.run_config import RunConfig
from qtarget.data.batch import Batch, Collate
from qtarget.data.example import Example
from qtarget.data.token_text import UNFINISHED, pieces, token_text
from qtarget.errors import QTargetError
from qtarget.lens.chosen import Against, designed
from qtarget.lens.curves import PROGRESS
from qtarget.lens.differences import Alternative, DesignDifference
from qtarget.lens.token_differences import TARGET, TokenDifferences, check_room
from qtarget.lens.token_table import LENS_MEASURES, Demonstrations, DesignReading, Pull, Token, TokenRow
from qtarget.math.loss import IGNORE, LossOutput
from qtarget.measures import Measure
from qtarget.model.frozen import Frozen
from qtarget.model.policy import Policy
from qtarget.plot.looks import Mark
from qtarget.record.runs import without_absolute_paths
from qtarget.run import build
from qtarget.run.fit import prepare_process
from qtarget.run.hinting import with_hints_of
from qtarget.run.plan import Plan, make_plan
from qtarget.run.stored_config import run_config

Made = TypeVar("Made")
OTHERS = 3  # likeliest alternatives named per token


def read_demonstrations(
    where: str,
    marks: Mapping[str, Mark],
    *,
    changes: Sequence[str] = (),
    overrides: Sequence[str] = (),
    rows: int = 4,
    lenient: bool = False,
    against: Against | None = None,
) -> Demonstrations:
    """`rows` training rows, those with noise first, read by the model at `where` under each design.

    where: a finished run (its config.yaml says the data and the references) or any model. lenient: designs that can't
    be run here are left out; otherwise QTargetError says what they need. against: what the others are set against, one
    of `marks`; it has to run.
    """
    cfg = run_config(where, overrides)
    prepare_process(cfg.seed)
    base, attempts = make_plan(_with_target(cfg, "sft")), Attempts(lenient, against.label if against else None)
    quick = _quick(cfg)
    plans = attempts.each(marks, lambda label: make_plan(_with_target(quick, *designed(label, changes, against))))
    policy, frozen = _models(base, plans.values())
    examples = sorted(base.prepared.train, key=lambda example: not any(example.wrong))[:rows]
    batch = Collate(int(base.tokenizer.pad_token_id))(examples).to(_device())
    with torch.no_grad():
        outs = attempts.each(plans, lambda name: _loss(plans[name], policy, frozen, batch))
        tokens = _tokens(base, policy, frozen.get("prior"), batch, examples)
        apart: Iterable[tuple[DesignDifference, ...]] = [()] * len(examples)
        if against:
            check_room(batch, policy.vocab_size)
            whole = TokenDifferences(
                lambda name: _loss(plans[name], policy, frozen, batch, (TARGET,)),
                against.label,
                batch,
                partial(token_text, base.tokenizer),
            )
            apart = whole.rows({name: marks[name] for name in outs})
        columns = zip(examples, tokens, _readings(outs, marks, batch), apart, strict=True)
        token_rows = [TokenRow(example.row, tuple(row), own, other) for example, row, own, other in columns]
    return Demonstrations(without_absolute_paths(where), tuple(token_rows), tuple(attempts.left_out))


def _with_target(cfg: RunConfig, name: str, changes: Sequence[str] = ()) -> RunConfig:
    return replace(cfg, target=compose_target(name, changes))


def _quick(cfg: RunConfig) -> RunConfig:
    """The same with one row as it is: the rows are the same for all designs, and have been prepared once."""
    rows = None if cfg.data["source"].get("streaming") else 1  # of a stream no more are read than the first few
    return replace(cfg, data={**cfg.data, "rows": rows, "reserve_rows": 0, "noise": NO_NOISE})


@dataclass(frozen=True)
class Attempts:
    """Does something for each of several designs; lenient ones note which can't be run here, and why.

    needed: the one that has to run all the same.
    """

    lenient: bool
    needed: str | None = None
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def each(self, names: Iterable[str], make: Callable[[str], Made]) -> dict[str, Made]:
        made = {}
        for name in names:
            try:
                made[name] = make(name)
            except QTargetError as error:
                if not self.lenient or name == self.needed:
                    raise QTargetError(f"{name}: {error}") from error
                self.left_out.append((name, str(error)))
        return made


def _models(base: Plan, plans: Iterable[Plan]) -> tuple[Policy, dict[str, Frozen]]:
    """The policy with dropout off, and every reference that one of the plans wants, each loaded once."""
    sources = dict(base.references)
    for plan in plans:
        sources |= plan.references
    hinted = with_hints_of(base.cfg, sources, base.prepared, base.tokenizer)
    policy, frozen = build.load_models(replace(base, references=sources, hinted=hinted), roles=sources)
    # All designs read the same rows: each model goes over them once.
    policy.forward = cache(policy.forward)  # type: ignore[method-assign]
    for model in frozen.values():
        model.exact = cache(model.to(_device()).exact)  # type: ignore[method-assign, assignment]
    return policy.eval().to(_device()), frozen


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _loss(
    plan: Plan, policy: Policy, frozen: Mapping[str, Frozen], batch: Batch, measures: Sequence[Measure] = ()
) -> LossOutput:
    """The design's loss as training calls it, at the end of training. measures: read beside the usual ones."""
    module = build.module(plan, policy, frozen)
    module.measures = measures
    module.progress_at = lambda step: PROGRESS  # type: ignore[method-assign]
    return module.token_loss(batch)


# What is shown


def _readings(
    outs: Mapping[str, LossOutput], marks: Mapping[str, Mark], batch: Batch
) -> Iterator[tuple[DesignReading, ...]]:
    """Row by row, every design's pulls."""
    counts = (batch.labels != IGNORE).sum(-1).tolist()
    columns = {
        name: [out.of(measure).double().cpu().split(counts) for measure in LENS_MEASURES] for name, out in outs.items()
    }
    for row in range(len(counts)):
        yield tuple(
            DesignReading(marks[name], tuple(map(Pull, zip(*(values[row].tolist() for values in own), strict=True))))
            for name, own in columns.items()
        )


def _tokens(
    plan: Plan, policy: Policy, prior: Frozen | None, batch: Batch, examples: Sequence[Example]
) -> Iterator[list[Token]]:
    """The tokens of each row with what the policy and the prior make of them."""
    hidden = policy(batch.input_ids, batch.position_ids)
    exact = None if prior is None else prior.exact(batch)
    width = batch.labels.shape[1]
    for row, example in enumerate(examples):
        positions = (batch.labels[row] != IGNORE).nonzero().squeeze(1)
        labels = batch.labels[row, positions]
        logp = torch.log_softmax(policy.head.logits(hidden[row, positions], hidden.dtype), dim=-1)
        p_prior = None
        if exact is not None:
            p_prior = exact.select(row * width + positions).at(labels, logp).label_logp.exp().tolist()
        yield _row_tokens(plan, example, logp, labels, p_prior)


def _row_tokens(
    plan: Plan, example: Example, logp: Tensor, labels: Tensor, prior: Sequence[float] | None
) -> list[Token]:
    label_logp = logp.gather(1, labels[:, None]).squeeze(1)
    others = logp.scatter(1, labels[:, None], -torch.inf).exp().topk(min(OTHERS, logp.shape[1] - 1), dim=-1)
    texts, tokens, count = pieces(plan.tokenizer, example.input_ids), [], 0
    # The first token of a row is nobody's label; should it be marked as supervised, it still isn't.
    for index, (text, supervised, wrong) in enumerate(zip(texts, example.supervised, example.wrong, strict=True)):
        if not supervised or index == 0:
            tokens.append(Token("" if text == UNFINISHED else text, supervised=False))
            continue
        pairs = zip(others.indices[count].tolist(), others.values[count].tolist(), strict=True)
        likely = tuple(Alternative(token_text(plan.tokenizer, token), p) for token, p in pairs)
        p, nll = float(label_logp[count].exp()), -float(label_logp[count])
        tokens.append(Token(text, True, wrong, p, None if prior is None else prior[count], nll, likely))
        count += 1
    return tokens
