"""The configuration of a run, typed and checked: what Hydra has composed, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self

from qtarget.choices import DTYPE_BYTES
from qtarget.config import loss_engine
from qtarget.config.benchmarks import check_benchmarks
from qtarget.config.composing import compose_config, config_container, instantiate, interpolated_keys
from qtarget.config.cross_checks import check
from qtarget.config.identity import job_hash
from qtarget.config.names import LABELS, check_names, is_ours, nodes
from qtarget.config.part_checks import check_parts, check_target
from qtarget.config.reference_kind import ReferenceConfig
from qtarget.config.references import read_references
from qtarget.errors import QTargetError
from qtarget.evaluate.sampling import Sampling
from qtarget.evaluate.server_settings import ServerConfig
from qtarget.model import chat_template
from qtarget.settings import FLAG, Choice, Node, Nullable, Number, Option, Part, Text, Whole, setting

DTYPE = Choice(tuple(DTYPE_BYTES))
AS_TRAINED = "trained"
TEXT = Text()


@dataclass(frozen=True)
class TrainerConfig(Node):
    """How long and on what a run trains."""

    NODE_KEY: ClassVar[str] = "trainer"

    max_steps: int | None = setting(
        60, Nullable(Whole(0)), "optimizer steps; 0 only evaluates; null where epochs says it"
    )
    epochs: float | None = setting(
        None, Nullable(Number(0)), "passes over the training rows, such as 1 or 0.5, in place of max_steps"
    )
    batch_size: int = setting(16, Whole(1), "rows of a micro-batch")
    accumulate: int = setting(
        1, Whole(1), "micro-batches of an optimizer step; the loss is the mean over all their supervised tokens"
    )
    rows_per_step: int | None = setting(
        None,
        Nullable(Whole(1)),
        "rows of an optimizer step over all devices: accumulate follows, so that a run may change devices and "
        "batch_size while it is under way; null: batch_size × accumulate × devices × num_nodes",
    )
    precision: Any = setting(
        "bf16-mixed",
        Choice(("32-true", "bf16-mixed")),
        "of the products; weights and statistics stay as model.dtype says",
    )
    clip: float = setting(1.0, Number(0), "largest norm of a step's gradient; 0: no clipping")
    log_every: int = setting(5, Whole(1), "optimizer steps between lines of metrics.jsonl")
    eval_every: int = setting(20, Whole(0), "optimizer steps between evaluations; 0: only after training")
    accelerator: str = setting("auto", TEXT, "cpu, gpu, or auto: a GPU where there is one (names of Lightning)")
    devices: int = setting(
        1, Whole(1), "GPUs, or processes of a CPU, on each node; each reads batch_size rows a micro-batch"
    )
    num_nodes: int = setting(1, Whole(1), "machines; more than one: start the command on each with torchrun or srun")
    strategy: str = setting(
        "auto",
        Choice(("auto", "ddp", "fsdp2")),
        "of several devices: ddp, or fsdp2 where a model doesn't fit one; auto: ddp",
    )
    dry: bool = setting(False, FLAG, "only say what the run would do and take (trainer=dry)")
    device_tflops: float | None = setting(
        None,
        Nullable(Number(0.001)),
        "for trainer=dry: TFLOP/s that a device is said to do, 989 for an H100 in bf16; null: this machine is measured",
    )
    utilisation: float = setting(0.4, Number(0.001, 1), "for trainer=dry: the share of it that training reaches")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.max_steps is None) == (self.epochs is None):
            raise QTargetError(
                f"exactly one of trainer.max_steps and trainer.epochs says how long training is, got {self.max_steps} "
                f"and {self.epochs}: set the other to null"
            )
        if self.strategy != "auto" and self.processes == 1:
            raise QTargetError(
                f"trainer.strategy={self.strategy} spreads a run over devices, and this one has one: set "
                "trainer.devices=N, or trainer.strategy=auto"
            )
        if self.rows_per_step is not None:
            self._check_rows(self.rows_per_step)

    @property
    def processes(self) -> int:
        """How many processes a run trains in: one a device."""
        return self.devices * self.num_nodes

    def _check_rows(self, rows: int) -> None:
        if self.accumulate != 1:
            raise QTargetError(
                f"trainer.rows_per_step={rows} and trainer.accumulate={self.accumulate} say one thing twice: leave "
                "trainer.accumulate out"
            )
        own, rest = divmod(rows, self.processes)
        if rest or own % self.batch_size:
            at_most = max((size for size in range(1, self.batch_size + 1) if own and not own % size), default=1)
            mend = "take a number of devices that divides it" if rest else f"set trainer.batch_size={at_most}"
            raise QTargetError(
                f"trainer.rows_per_step={rows} on {self.processes} device{'s' * (self.processes > 1)} is "
                f"{rows / self.processes:g} rows each, and no multiple of trainer.batch_size={self.batch_size}: {mend}"
            )

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an optimizer step on each device."""
        if self.rows_per_step is None:
            return self.accumulate
        return self.rows_per_step // (self.batch_size * self.processes)

    @property
    def on_gpu(self) -> bool:
        return loss_engine.on_gpu(self.accelerator)

    @property
    def is_mixed(self) -> bool:
        """Whether products run in bf16."""
        return self.precision == "bf16-mixed"

    @property
    def steps(self) -> int:
        """Optimizer steps, once the rows have been counted."""
        assert self.max_steps is not None
        return self.max_steps


@dataclass(frozen=True)
class EvalConfig(Node):
    """What a run is judged by."""

    NODE_KEY: ClassVar[str] = "eval"

    new_tokens: int | None = setting(
        None, Nullable(Whole(1)), "tokens of the longest answer; null: a few more than the longest demonstration has"
    )
    batch_size: int = setting(64, Whole(1), "rows read, or answers written, at a time")
    problems_in_training: int | None = setting(
        64, Nullable(Whole(1)), "held-out problems asked during training; all of them afterwards"
    )
    test_on: str = setting(
        "all", Choice(("all", "rest")), "held-out rows of test/…: all, or the rest, which validation has not seen"
    )
    kl_prior: bool = setting(True, FLAG, "drift from the prior, measured for every design")
    samples: int = setting(1, Whole(1), "answers to each prompt")
    temperature: float = setting(0.0, Number(0), "that they are drawn at; 0: the likeliest token at each step")
    top_p: float = setting(
        1.0, Number(0, 1), "the fewest likeliest tokens that hold so much probability are drawn from"
    )
    seed: int = setting(0, Whole(0), "of the draws")
    engine: str = setting("local", Choice(("local", "server")), "who writes answers: this process, or eval.server")
    server: Mapping[str, Any] = setting(
        {},
        Part("{command, url, model, prompts, extra, in_flight, retries, timeout, start}"),
        "of qtarget evaluate eval.engine=server: how it is started or where it is, and how it is asked",
    )
    benchmarks: Mapping[str, Any] = setting(
        {}, Part("NAME: {source, rows}"), "other verified problems, answered once training is over"
    )
    retention: Mapping[str, Any] = setting(
        {"source": None, "rows": 64},
        Part("{source, rows}"),
        "text outside the task: what of it is forgotten, during training and after",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_on == "rest" and self.problems_in_training is None:
            raise QTargetError(
                "eval.test_on=rest tests on the held-out rows that validation hasn't seen, and with "
                "eval.problems_in_training=null it sees them all: say how many are for validation, such as 100"
            )
        _ = self.sampling
        object.__setattr__(self, "server", self.answer_server.container())  # records of earlier builds hold none
        if self.engine == "server":
            self.answer_server.check_reachable()
        check_benchmarks(self.benchmarks, self.retention)

    @property
    def answer_server(self) -> ServerConfig:
        """eval.server, read and checked."""
        return ServerConfig.read(self.server)

    @property
    def sampling(self) -> Sampling:
        """How answers are chosen."""
        return Sampling(self.samples, self.temperature, self.top_p, self.seed)


@dataclass(frozen=True)
class ModelConfig(Node):
    """The policy."""

    NODE_KEY: ClassVar[str] = "model"

    name: str = setting("???", TEXT, "a folder, a run of qtarget, or a hub id; code that comes with a model is not run")
    dtype: str = setting("float32", DTYPE, "of the parameters; products run in bf16 under trainer.precision=bf16-mixed")
    attention: str = setting(
        "auto",
        Choice(loss_engine.ATTENTIONS),
        "auto: eager on a CPU for batches of short rows, where it is faster, else sdpa",
    )
    gradient_checkpointing: bool = setting(
        False, FLAG, "activations are computed again in the backward: less memory, a third more time"
    )
    compile: bool = setting(False, FLAG, "the model through torch.compile; loss.compile is about the loss")
    chat_template: str | None = setting(
        None,
        Nullable(Text("chatml, plain, a file of Jinja, or Jinja")),
        "in place of the tokenizer's, or where it has none; null: its own",
    )
    adapter: Mapping[str, Any] = setting(
        {}, Option("model/adapter", optional=True), "what is trained in place of the weights"
    )

    @classmethod
    def read(cls, node: Any, **more: Any) -> Self:
        model = super().read(node, **more)
        return replace(model, chat_template=chat_template.recorded(model.chat_template))


@dataclass(frozen=True)
class LossConfig(Node):
    """How the loss is computed; never what it is."""

    NODE_KEY: ClassVar[str] = "loss"

    chunk_size: int | None = setting(
        None,
        Nullable(Whole(1)),
        "supervised tokens whose logits are alive at once; null: from the free memory of a GPU, else 128 MiB of them",
    )
    compile: str = setting(
        "auto",
        Choice(loss_engine.CHOICES),
        "through torch.compile; auto: where that saves more time than compiling takes, by trials on this machine",
    )
    products: str = setting(
        "auto",
        Choice(loss_engine.PRODUCTS),
        "library of the output layer's fp32 products on a CPU; auto: that which a trial found faster on this machine",
    )


@dataclass(frozen=True)
class CheckpointConfig(Node):
    """What a run leaves behind, and how it goes on."""

    NODE_KEY: ClassVar[str] = "checkpoint"

    every: int | None = setting(
        None,
        Nullable(Whole(1)),
        "optimizer steps between saved states of the run; null: only where it is stopped",
    )
    save: bool = setting(True, FLAG, "the trained model, as a folder that transformers loads")
    dtype: str = setting(
        AS_TRAINED,
        Choice((AS_TRAINED, *DTYPE_BYTES)),
        "of the saved weights; where it rounds those that were trained, test/… is of the rounded ones",
    )
    optimizer: bool = setting(
        False,
        FLAG,
        "the optimizer's and the schedule's state too, in optimizer.pt of the run's folder (twice the trained weights)",
    )


@dataclass(frozen=True)
class LensConfig(Node):
    """What is recorded while training goes on, for `qtarget lens RUN`."""

    NODE_KEY: ClassVar[str] = "lens"

    every: int | None = setting(
        None,
        Nullable(Whole(1)),
        "optimizer steps between lines of lens.jsonl, which holds what policy and target are on a few training rows; "
        "null: it isn't written",
    )
    rows: int = setting(4, Whole(1), "training rows of it, those with noise first")
    tokens: int = setting(64, Whole(1), "supervised tokens of each row at most, around the first that noise made wrong")
    top: int = setting(5, Whole(1), "other tokens of each, with the largest probability or target")


NODES: tuple[type[Node], ...] = (TrainerConfig, EvalConfig, ModelConfig, LossConfig, CheckpointConfig, LensConfig)


@dataclass(frozen=True)
class RunConfig(Node):
    """Everything a run is made of. `target`, `data`, `optim` and `tracker` are built by their `_target_`."""

    target: Mapping[str, Any] = setting({}, Part("a group, target=OPTION"), "the target design")
    data: Mapping[str, Any] = setting({}, Part("a group, data=OPTION"), "the demonstrations")
    optim: Mapping[str, Any] = setting({}, Part("a group, optim=OPTION"), "the optimizer")
    tracker: Mapping[str, Any] = setting({}, Part("a group, tracker=OPTION"), "who else is sent the record")
    name: str | None = setting(None, Nullable(TEXT), "the row's label in tables; null: the target's name")
    role: str = setting("design", TEXT, "how tables sort it: design, teacher, base or control")
    experiment_name: str = setting(
        "runs", TEXT, "results lie in output_dir/experiment_name/<hash of this configuration>"
    )
    output_dir: str = setting("outputs", Text("a folder"), "where results lie")
    seed: int = setting(0, Whole(0, 2**32 - 1), "of weights that begin random, of the order of rows and of dropout")
    resume: str = setting(
        "auto",
        Choice(("auto", "never")),
        "an unfinished run goes on from its last state, to the same numbers; never: it starts afresh",
    )
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    lens: LensConfig = field(default_factory=LensConfig)
    references: Mapping[str, ReferenceConfig] = field(default_factory=lambda: read_references({}))

    own: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the user's own at the top level, which others refer to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)

    @classmethod
    def read(cls, node: Mapping[Any, Any], **more: Any) -> Self:
        """From a composed configuration, as plain data or as Hydra's. Raises QTargetError for what has to be mended."""
        plain = config_container(node)
        missing = sorted(
            f"{dotted}.{key}".lstrip(".") for dotted, node in nodes(plain) for key in node if node[key] == "???"
        )
        if missing:
            raise QTargetError(f"{', '.join(missing)} must be set: add {missing[0]}=… to the command line")
        check_names(plain, interpolated_keys(node, LABELS))
        check_parts(plain)
        parts = {kind.NODE_KEY: kind.read(plain.pop(kind.NODE_KEY, {})) for kind in NODES}
        references = read_references(plain.pop("references", {}))
        known = {setting.key for setting in cls.settings()}
        own = {key: plain.pop(key) for key in list(plain) if key not in known}
        cfg = super().read(plain, references=references, own=own, **parts, **more)
        for part in (cfg.optim, cfg.model.adapter):
            if part and is_ours(part):
                instantiate(part)  # which fields go together its class says
        if cfg.target:
            check_target(cfg.target)  # the last, as it imports torch
        return cfg

    @classmethod
    def compose(cls, overrides: Sequence[str] = ()) -> Self:
        """What `qtarget train OVERRIDES` runs."""
        return cls.read(compose_config("train", overrides))

    def container(self) -> dict[str, Any]:
        parts = {kind.NODE_KEY: getattr(self, kind.NODE_KEY).container() for kind in NODES}
        references = {role: reference.container() for role, reference in self.references.items()}
        return config_container({**super().container(), **parts, "references": references, **self.own})

    @cached_property
    def hash(self) -> str:
        """12 hex digits of what makes the run what it is: the name of its folder."""
        return job_hash(self.container())

    @property
    def trained_dtype(self) -> str:
        """Of the weights that training moves; an adapter is fp32 on weights of any dtype, and merges into fp32."""
        return "float32" if self.model.adapter else self.model.dtype

    @property
    def saved_dtype(self) -> str:
        """Of the checkpoint's weights."""
        return self.trained_dtype if self.checkpoint.dtype == AS_TRAINED else self.checkpoint.dtype

    @property
    def rounds(self) -> bool:
        """Whether a checkpoint is saved in a smaller dtype than its weights were trained in."""
        return self.checkpoint.save and DTYPE_BYTES[self.saved_dtype] < DTYPE_BYTES[self.trained_dtype]

    @property
    def packing(self) -> int | None:
        """Tokens of a training row that holds several demonstrations; None: one each."""
        packing: int | None = self.data.get("packing")
        return packing

    def reference_name(self, role: str) -> str | None:
        """The model that a role is configured to be; None: no such role."""
        return self.references[role].model(self.model.name)
