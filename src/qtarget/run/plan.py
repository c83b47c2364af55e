"""Configuration → what a run is: everything that can be wrong about it, checked before any weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from qtarget.cache_layout import PREPARED
from qtarget.config.benchmarks import Benchmarks, read_benchmarks
from qtarget.config.composing import instantiate, instantiate_design
from qtarget.config.loss_engine import AUTO, attention
from qtarget.config.references import NoReference
from qtarget.config.run_config import EvalConfig, RunConfig, TrainerConfig
from qtarget.data.epochs import EpochPlan
from qtarget.data.example import Example, label_counts
from qtarget.data.module import DataConfig, Prepared, check_heldout, prepare
from qtarget.data.once import prepare_once
from qtarget.data.overlap import unseen
from qtarget.data.packing import longest_row
from qtarget.data.stream import prepare_stream
from qtarget.errors import QTargetError
from qtarget.evaluate.probing import check_scorers
from qtarget.files import cache_dir
from qtarget.math.reference import DETAILS
from qtarget.math.target import Design, check_references, columns, needs
from qtarget.math.tokens import ROLES
from qtarget.model import provide
from qtarget.model.cache import CachePlan
from qtarget.parallel import is_rank_zero
from qtarget.run.caching import (
    HELDOUT,
    RETENTION,
    cache_plans,
    cached_details,
    check_built,
)
from qtarget.run.hinting import with_hints_of
from qtarget.run.row_checks import chat_tokenizer, check_answer_length, check_embeddings, sizes, with_pad
from qtarget.train.compiling import Engine, choose
from qtarget.train.compiling_figures import Scored, machine, what_is_scored
from qtarget.train.optim import AdamW
from qtarget.train.step import extra_forward_passes

A_MODEL = "MODEL, a folder, a run or a hub id"
HOW_TO_ADD = {
    "prior": "reference@references.prior=frozen",
    "teacher": f"reference@references.teacher=frozen references.teacher.name={A_MODEL}",
    "old": "reference@references.old=snapshot",
}


ENDLESS = 1 << 60
"""Rows of a stream: no step ends its epoch."""


@dataclass(frozen=True)
class Plan:
    """Everything that can be wrong about a run, checked, before any weights are loaded."""

    cfg: RunConfig
    design: Design
    optim: AdamW
    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase
    model: provide.ModelSource
    references: Mapping[str, provide.ModelSource]
    engine: Engine
    scored: Scored
    """What training puts through its loss, and where figures of that are kept."""
    attention: str = "sdpa"
    caches: Mapping[str, CachePlan] = field(default_factory=dict)
    benchmarks: Benchmarks = field(default_factory=Benchmarks)
    test: Sequence[int] | None = None
    """Indices of the held-out rows that test/… is of; None: all."""
    hinted: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """By role the training examples with a hint in front, for references that read them so."""
    wanted: float | None = None
    """trainer.epochs as configured, None where max_steps was; `cfg` has max_steps in any case."""

    @property
    def epochs(self) -> float:
        """How often training reads a row; of a stream, as many rows as it reads for each that was looked at."""
        if self.prepared.stream is not None:
            read = _epoch_plan(self.cfg.trainer, self.prepared).rows_read(self.cfg.trainer.steps)
            return read / len(self.prepared.rows)
        return _epoch_plan(self.cfg.trainer, self.prepared).epochs(self.cfg.trainer.steps)

    @property
    def extent(self) -> str:
        """How much training this is, in words."""
        counts, trainer = self.prepared.counts, self.cfg.trainer
        if self.prepared.stream is not None:
            return self._streamed
        epoch_plan = _epoch_plan(trainer, self.prepared)
        packed = len(self.prepared.rows)
        read_as = f" of {self.prepared.described}" if self.prepared.described else ""
        of = f"{packed} rows{self._made_of}{read_as}"
        return (
            f"{epoch_plan.in_words(trainer.steps, of)} "
            f"({counts['noisy']} made wrong); {counts['heldout']} rows held out{self._split}"
            f"{self.prepared.few_in_words}{self.prepared.dropped_in_words}{epoch_plan.why(trainer.steps)}{self._rounded}"
        )

    @property
    def _streamed(self) -> str:
        trainer, stream, counts = self.cfg.trainer, self.prepared.stream, self.prepared.counts
        assert stream is not None
        rows = _epoch_plan(trainer, self.prepared).rows_of_step
        order = f"shuffled {stream.buffer} at a time" if stream.buffer else "in their order"
        return (
            f"{trainer.steps} steps × {rows} rows = {trainer.steps * rows} of {self.prepared.described}, streamed "
            f"{order}: how many there are isn't known, and they are checked as they are read; {counts['heldout']} rows "
            f"held out{self._split}{self.prepared.few_in_words}{self.prepared.dropped_in_words}"
        )

    @property
    def _made_of(self) -> str:
        """What the rows that training reads are made of, where they aren't rows of the data."""
        rows, examples, packed = self.prepared.counts["train"], len(self.prepared.train), len(self.prepared.rows)
        by_turn = f"{rows} conversations, turn by turn"
        if packed != examples:
            return f" that hold {rows} demonstrations" if examples == rows else f" that hold {examples} of {by_turn}"
        return "" if examples == rows else f" of {by_turn}"

    @property
    def _rounded(self) -> str:
        """A note where whole steps read over 5 % more than the configured epochs."""
        if self.wanted is None or self.epochs <= 1.05 * self.wanted:
            return ""
        return f"; trainer.epochs={self.wanted:g} is rounded up to whole steps"

    @property
    def _split(self) -> str:
        if self.test is None:
            return ""
        counts = self.counts
        alike = f", {counts['like_validation']} asking the same as these left out" if counts["like_validation"] else ""
        return f", {counts['validation']} of them for validation and {counts['test']} for the test{alike}"

    @property
    def counts(self) -> dict[str, int]:
        """Of rows by name: those of `Prepared`, and where validation and test are apart heldout = validation + test +
        like_validation, which ask what a validation row asks.
        """
        if self.test is None:
            return self.prepared.counts
        heldout, validation = len(self.prepared.heldout_rows), self.cfg.eval.problems_in_training or 0
        split = {
            "validation": validation,
            "test": len(self.test),
            "like_validation": heldout - validation - len(self.test),
        }
        return self.prepared.counts | split

    @property
    def described(self) -> dict[str, str]:
        """The design as run, in words."""
        texts = {part: str(getattr(self.design, part, "–")) for part in ("reliance", "weight")}
        texts["residual"] = str(getattr(self.design, "residual_text", "–"))
        passes = extra_forward_passes(self.design)
        step = {"before_each_step": f"{passes} scoring pass{'es' * (passes > 1)}"} if passes else {}
        return texts | step | {"repr": repr(self.design)}


def check_design(cfg: RunConfig, cached: Sequence[str] = ()) -> tuple[Design, dict[str, provide.ModelSource]]:
    """Design and references, checked without reading data. Raises QTargetError where they don't fit."""
    instantiate(cfg.optim)
    design = instantiate_design(cfg.target)
    return design, _reference_sources(cfg, design, cached)


def make_plan(cfg: RunConfig, cached: Sequence[str] = ()) -> Plan:
    """Check a configuration and prepare its data. Raises QTargetError for whatever the user has to change.

    cached: roles that are cached even where the design doesn't read them.
    """
    design, references = check_design(cfg, cached)
    data_config = instantiate(cfg.data)
    model = provide.resolve(cfg.model.name)
    config = provide.load_config(model)
    rows = sizes(config, model, references)
    tokenizer = with_pad(chat_tokenizer(model, cfg.model.chat_template), rows)
    for role, source in references.items():
        provide.load_config(source)  # refuses what is no language model
        if source != model:
            provide.check_same_tokenizer(role, provide.load_tokenizer(source), tokenizer)
        cfg.references[role].made_flaw.check(len(tokenizer))
    context = provide.context_length(config)
    prepared, beside = (
        _prepared(cfg, data_config, tokenizer, context),
        read_benchmarks(cfg.eval.benchmarks, cfg.eval.retention, tokenizer, context),
    )
    for verified in (prepared.heldout_rows, *beside.benchmarks.values()):
        check_scorers(verified)
    check_embeddings(rows, tokenizer, prepared, beside)
    _check_rows(cfg, prepared)
    check_heldout(data_config, prepared)
    test = _test_rows(cfg.eval, prepared)
    _check_benchmarks(cfg.eval, prepared, beside)
    check_answer_length(cfg.eval.new_tokens, model, tokenizer, prepared, beside)
    wanted, cfg = cfg.trainer.epochs, _with_steps(cfg, prepared)
    _check_columns(design, prepared)
    scored = _scored(cfg, design, prepared, tokenizer, model)
    chosen = _engine(cfg, scored)
    details = cached_details(cfg, [*cached, *(role for role in references if role in needs(design))], design)
    hinted = with_hints_of(cfg, references, prepared, tokenizer)
    drift_rows = {HELDOUT: prepared.heldout, RETENTION: beside.retention}
    caches = cache_plans(cfg, references, details, prepared.train, drift_rows, tokenizer=tokenizer, hinted=hinted)
    check_built(caches)
    return Plan(
        cfg,
        design,
        instantiate(cfg.optim),
        prepared,
        tokenizer,
        model,
        references,
        chosen,
        scored,
        attention=_attention(cfg, prepared),
        caches=caches,
        benchmarks=beside,
        test=test,
        hinted=hinted,
        wanted=wanted,
    )


def _prepared(cfg: RunConfig, data: DataConfig, tokenizer: PreTrainedTokenizerBase, context: int) -> Prepared:
    """The rows; where a reference reads them with a hint they are prepared anew, as what is kept of them is tokens."""
    if getattr(data.source, "streaming", False) and data.rows != 0:
        return prepare_stream(data, tokenizer, context, cfg.seed)
    if any(node.hint_template for node in cfg.references.values()):
        return prepare(data, tokenizer, context)
    return prepare_once(data, tokenizer, context, cache_dir() / PREPARED, _said)


def _said(text: str) -> None:
    if is_rank_zero():
        print(text)


def _check_rows(cfg: RunConfig, prepared: Prepared) -> None:
    if prepared.train or cfg.trainer.max_steps == 0:
        return
    lost = prepared.dropped_in_words or "; none was asked for"
    longer = "raise data.max_length up to the model's context, " if prepared.counts.get("dropped_too_long") else ""
    raise QTargetError(
        f"no training row is left of {prepared.described or 'the data'}{lost}: {longer}ask for more rows, or give a "
        "file that has some; trainer.max_steps=0 only evaluates"
    )


def _test_rows(node: EvalConfig, prepared: Prepared) -> Sequence[int] | None:
    """Indices of the held-out rows to test on, None: all; validation reads the first ones."""
    if node.problems_in_training is None or node.test_on == "all" or not prepared.heldout_rows:
        return None
    rest = unseen(prepared.heldout_rows, node.problems_in_training)
    if not rest:
        raise QTargetError(
            f"eval.test_on=rest leaves nothing to test on: of {len(prepared.heldout_rows)} held-out rows validation "
            f"takes the first {node.problems_in_training}, and none of the others asks anything new. Raise "
            "data.heldout_rows, or lower eval.problems_in_training"
        )
    return rest


def _check_benchmarks(node: EvalConfig, prepared: Prepared, beside: Benchmarks) -> None:
    """With eval.test_on=rest what validation asks is asked nowhere else."""
    if node.test_on == "all":
        return
    validation = prepared.heldout_rows[: node.problems_in_training]
    for name, rows in beside.benchmarks.items():
        if len(unseen([*validation, *rows], len(validation))) < len(rows):
            raise QTargetError(
                f"eval.test_on=rest keeps validation rows out of the test, and eval.benchmarks.{name} asks some of "
                "them: leave the benchmark out, or take other held-out rows (data.heldout_source)"
            )


def _with_steps(cfg: RunConfig, prepared: Prepared) -> RunConfig:
    """The configuration with the steps that its epochs make of these rows."""
    if cfg.trainer.epochs is None:
        return cfg
    steps = cfg.trainer.epochs * _epoch_plan(cfg.trainer, prepared).steps
    whole = math.ceil(round(steps, 6))  # 0.1 × 30 is not quite 3
    return replace(cfg, trainer=replace(cfg.trainer, max_steps=whole, epochs=None))


def _epoch_plan(trainer: TrainerConfig, prepared: Prepared) -> EpochPlan:
    rows = len(prepared.rows) if prepared.stream is None else ENDLESS
    return EpochPlan(rows, trainer.batch_size, trainer.micro_batches, trainer.processes)


def _attention(cfg: RunConfig, prepared: Prepared) -> str:
    rows_read = prepared.rows or prepared.heldout
    rows = cfg.trainer.batch_size
    longest = longest_row(rows_read) if prepared.stream is None else prepared.stream.limit
    return attention(cfg.model.attention, on_gpu=cfg.trainer.on_gpu, rows=rows, longest=longest)


def _scored(
    cfg: RunConfig, design: Design, prepared: Prepared, tokenizer: PreTrainedTokenizerBase, model: provide.ModelSource
) -> Scored:
    trainer, vocabulary = cfg.trainer, len(tokenizer)
    tokens = sum(label_counts(prepared.train)) / max(1, len(prepared.rows))
    read = _epoch_plan(trainer, prepared).rows_read(trainer.steps) / trainer.processes
    held = {role: cfg.references[role].held(design) for role in needs(design)}
    rows = provide.embedding_rows(provide.load_config(model)) or vocabulary
    width = str(vocabulary) if rows <= vocabulary else f"{vocabulary} of {rows}"  # padding takes passes of its own
    what = what_is_scored(design, held, width, trainer.precision)
    return Scored(tokens * read, vocabulary, what, partial(machine, on_gpu=trainer.on_gpu))


def _engine(cfg: RunConfig, scored: Scored) -> Engine:
    """On other ranks than 0, which decides for them, without a look at figures."""
    look = cfg.loss.compile == AUTO and is_rank_zero()
    kept = scored.kept if look else None
    on_gpu, size = cfg.trainer.on_gpu, scored.vocabulary
    return choose(cfg.loss.compile, kept, on_gpu=on_gpu, tokens=scored.tokens, vocabulary=size)


def _reference_sources(cfg: RunConfig, design: Design, cached: Sequence[str]) -> dict[str, provide.ModelSource]:
    """The references a run has to load: those its design needs, and the prior where drift from it is measured."""
    configured = {role: cfg.reference_name(role) for role in ROLES}
    wanted = dict.fromkeys(cached, "label") | dict(needs(design))
    for role, detail in wanted.items():
        if configured.get(role) is None:
            enough = " or ".join(DETAILS[DETAILS.index(detail) :])
            raise QTargetError(
                f"this target needs the {role} ({enough}) and none is configured: add {_how_to_add(cfg, role)}"
            )
    details = {role: cfg.references[role].held(design) for role, name in configured.items() if name}
    tails = {role: cfg.references[role].tail_rule for role, detail in details.items() if detail == "topk"}
    check_references(design, details, tails)
    if cfg.eval.kl_prior and configured["prior"]:
        wanted.setdefault("prior", "full")
    return {role: provide.resolve(name) for role, name in configured.items() if role in wanted and name}


def _how_to_add(cfg: RunConfig, role: str) -> str:
    """Of a kind that was chosen only the name is missing: the kind, and what was set of it, stay."""
    is_chosen = role == "teacher" and not isinstance(cfg.references[role], NoReference)
    return f"references.{role}.name={A_MODEL}" if is_chosen else HOW_TO_ADD[role]


def _check_columns(design: Design, prepared: Prepared) -> None:
    names = prepared.train[0].columns if prepared.train else {}
    if not names:
        return  # nothing is trained on
    for name in sorted(columns(design) - set(names)):
        raise QTargetError(
            f"this target needs the data column {name!r} and the rows carry {', '.join(names)}: with data=jsonl, "
            f"give rows {name!r}: [[start, stop], …], characters of the last message, and set "
            f"data.source.columns=[{name}]"
        )
