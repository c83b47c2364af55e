"""What a configuration can be wrong about, told from the configuration alone: before data is read or a model found."""

from __future__ import annotations

import importlib.util

import torch
from omegaconf import DictConfig, OmegaConf

from qtarget import checks
from qtarget.app import engine
from qtarget.app.configs import instantiate
from qtarget.app.job import config_container
from qtarget.app.names import LABELS, check_names
from qtarget.app.outside import check_outside
from qtarget.errors import QTargetError
from qtarget.evaluate.generate import Sampling
from qtarget.math.reference import TAILS
from qtarget.math.tokens import ROLES
from qtarget.model.flaw import Flaw, NoFlaw
from qtarget.model.policy import Policy
from qtarget.model.provide import DTYPES
from qtarget.model.scores import KEPT

KINDS = {
    "prior": ("frozen", "cached", "adapter_off", "none"),
    "teacher": ("frozen", "cached", "none"),
    "old": ("snapshot", "frozen", "none"),
}
FLAWED = ("frozen", "cached")
PRECISIONS = ("32-true", "bf16-mixed")
STRATEGIES = ("auto", "ddp", "fsdp2")
RESUME = ("auto", "never")
TEST_ON = ("all", "rest")
WHOLE_NUMBERS = {
    "seed": 0,
    "trainer.max_steps": 0,
    "trainer.batch_size": 1,
    "trainer.accumulate": 1,
    "trainer.log_every": 1,
    "trainer.eval_every": 0,
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "checkpoint.every": 1,
    "eval.batch_size": 1,
    "eval.new_tokens": 1,
    "eval.problems_in_training": 1,
    "loss.chunk_size": 1,
    "data.rows": 0,
    "data.reserve_rows": 0,
    "data.heldout_rows": 0,
    "data.max_length": 2,
    "data.packing": 2,
    "references.old.every": 1,
    "references.prior.topk": 1,
    "references.teacher.topk": 1,
}
MAY_BE_NULL = (
    "checkpoint.every",
    "trainer.max_steps",
    "eval.new_tokens",
    "eval.problems_in_training",
    "loss.chunk_size",
    "data.rows",
    "data.heldout_rows",
    "data.max_length",
    "references.prior.topk",
    "references.teacher.topk",
    "data.packing",
)


def check(cfg: DictConfig) -> None:
    """Raise QTargetError for the first thing the user has to mend."""
    _check_complete(cfg)
    _check_options(cfg)
    check_texts(cfg)
    _check_values(cfg)


def check_texts(cfg: DictConfig) -> None:
    """Raise QTargetError for a name that is no text, but for a label that another key gives: name=${seed}."""
    check_names(config_container(cfg), [key for key in LABELS if OmegaConf.is_interpolation(cfg, key)])


def sampling(node: DictConfig) -> Sampling:
    """How an `eval` node has answers chosen."""
    return Sampling(node.samples, node.temperature, node.top_p, node.seed)


def processes(trainer: DictConfig) -> int:
    """How many processes a run trains in: one a device."""
    for key in ("devices", "num_nodes"):
        checks.whole(f"trainer.{key}", trainer[key], 1)
    return int(trainer.devices * trainer.num_nodes)


def reference_name(cfg: DictConfig, role: str) -> str | None:
    """The model that a role is configured to be; the prior's default is where training starts. None: no such role."""
    node = cfg.references.get(role)
    if node is not None and not isinstance(node, DictConfig):
        raise QTargetError(
            f"references.{role}={node} sets a value, not a reference: write reference@references.{role}={node}"
        )
    if node is None:
        return None
    checks.choice(f"references.{role}", node.kind, KINDS[role])
    if node.kind == "snapshot":
        return str(cfg.model.name)
    if node.kind == "adapter_off":
        _check_adapter_off(cfg, role)
    if node.kind == "none":
        if node.name:
            raise QTargetError(f"references.{role}.name is given but no {role}: add reference@references.{role}=frozen")
        return None
    return node.name or (cfg.model.name if role == "prior" else None)


def _check_adapter_off(cfg: DictConfig, role: str) -> None:
    if cfg.references[role].name:
        raise QTargetError(
            f"references.{role}=adapter_off is the policy itself and takes no name, got {cfg.references[role].name!r}"
        )
    if cfg.references[role].topk is not None:
        raise QTargetError(f"references.{role}=adapter_off holds the whole distribution: leave its topk null")
    if not cfg.model.adapter:
        raise QTargetError(
            f"references.{role}=adapter_off is the policy with its adapter switched off, and this policy has none: add "
            f"model/adapter=lora, or take reference@references.{role}=frozen, a copy of the weights"
        )


def _check_options(cfg: DictConfig) -> None:
    """Parts of the data are options of a group, and no values."""
    for key in ("data.source", "data.noise"):
        if not isinstance(node := OmegaConf.select(cfg, key), DictConfig):
            raise QTargetError(f"{key}={node} sets a value, not an option: write {key.replace('.', '/')}={node}")


def _check_complete(cfg: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise QTargetError(f"{', '.join(missing)} must be set: add {missing[0]}=… to the command line")


def _check_values(cfg: DictConfig) -> None:
    trainer = cfg.trainer
    checks.choice("trainer.precision", trainer.precision, PRECISIONS)
    for key, least in WHOLE_NUMBERS.items():
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        # a reference of another kind has other fields
        if isinstance(node, DictConfig) and name in node and not (node[name] is None and key in MAY_BE_NULL):
            checks.whole(key, node[name], least)
    if isinstance(trainer.clip, str) or trainer.clip < 0:
        raise QTargetError(f"trainer.clip must be a number of at least 0 (0: no clipping), got {trainer.clip!r}")
    sampling(cfg.eval)
    _check_split(cfg.eval)
    check_outside(cfg.eval)
    _check_extent(trainer)
    _check_pace(trainer)
    _check_devices(trainer)
    _check_resume(cfg)
    _check_artifact(cfg)
    _check_kinds(cfg)
    _check_step_size(cfg)


def _check_extent(trainer: DictConfig) -> None:
    given = [key for key in ("max_steps", "epochs") if trainer[key] is not None]
    if len(given) != 1:
        raise QTargetError(
            f"exactly one of trainer.max_steps and trainer.epochs says how long training is, got {trainer.max_steps} "
            f"and {trainer.epochs}: set the other to null"
        )
    if trainer.epochs is not None:
        checks.number("trainer.epochs", trainer.epochs, 0)


def _check_split(node: DictConfig) -> None:
    checks.choice("eval.test_on", node.test_on, TEST_ON)
    if node.test_on == "rest" and node.problems_in_training is None:
        raise QTargetError(
            "eval.test_on=rest tests on the held-out rows that validation hasn't seen, and with "
            "eval.problems_in_training=null it sees them all: say how many are for validation, such as 100"
        )


def _check_step_size(cfg: DictConfig) -> None:
    asked = cfg.optim.get("update_norm")  # older configurations have none
    rounded = cfg.model.dtype != "float32" and not cfg.model.get("adapter")  # an adapter is fp32 on any weights
    if not rounded or cfg.trainer.max_steps == 0:
        return
    if asked is not None:
        raise QTargetError(
            f"optim.update_norm keeps the length of a step, and weights in {cfg.model.dtype} round most of it away: "
            "set model.dtype=float32 (trainer.precision=bf16-mixed may stay), or take optim=adamw"
        )
    if not cfg.optim.get("allow_bf16_rounding"):
        raise _rounds(f"model.dtype={cfg.model.dtype} trains all weights in that dtype")


def check_trained_dtypes(policy: Policy, cfg: DictConfig) -> None:
    """Raise QTargetError where weights are trained that are not fp32, such as whole layers beside an adapter."""
    narrow = [name for name, p in policy.named_parameters() if p.requires_grad and p.dtype != torch.float32]
    if not narrow:
        return
    dtype = str(dict(policy.named_parameters())[narrow[0]].dtype).removeprefix("torch.")
    what = f"{len(narrow)} weights are trained in {dtype} ({narrow[0]}, …)"
    if cfg.optim.get("update_norm") is not None:
        raise QTargetError(f"optim.update_norm keeps the length of a step, and {what}: set model.dtype=float32")
    if not cfg.optim.get("allow_bf16_rounding"):
        raise _rounds(what)


def _rounds(what: str) -> QTargetError:
    return QTargetError(
        f"{what}, and AdamW's steps mostly round to nothing there: a bfloat16 weight moves by no less than 2⁻⁹ of "
        "itself. Set model.dtype=float32 with trainer.precision=bf16-mixed (products stay in bf16), or model/adapter="
        "lora; optim.allow_bf16_rounding=true trains so nevertheless"
    )


def _check_pace(trainer: DictConfig) -> None:
    """What a dry run assumes of the devices."""
    checks.number("trainer.utilisation", trainer.utilisation, 0.001, 1)
    if trainer.device_tflops is not None:
        checks.number("trainer.device_tflops", trainer.device_tflops, 0.001)


def _check_devices(trainer: DictConfig) -> None:
    checks.choice("trainer.strategy", trainer.strategy, STRATEGIES)
    if trainer.strategy != "auto" and processes(trainer) == 1:
        raise QTargetError(
            f"trainer.strategy={trainer.strategy} spreads a run over devices, and this one has one: set "
            "trainer.devices=N, or trainer.strategy=auto"
        )
    there = torch.cuda.device_count()
    if engine.on_gpu(trainer.accelerator) and trainer.devices > there:
        raise QTargetError(
            f"trainer.devices={trainer.devices}, and this machine has {there} GPU{'s' * (there > 1)}: ask for fewer, "
            "or set trainer.accelerator=cpu"
        )


def _check_resume(cfg: DictConfig) -> None:
    checks.choice("resume", cfg.get("resume", "auto"), RESUME)  # an older run's configuration has none
    if cfg.checkpoint.get("every") and processes(cfg.trainer) > 1:
        raise QTargetError(
            f"checkpoint.every={cfg.checkpoint.every} saves the state of a run on one device, and this one trains in "
            f"{processes(cfg.trainer)} processes, which start afresh after an end: set checkpoint.every=null"
        )


def _check_artifact(cfg: DictConfig) -> None:
    wanted = cfg.tracker.get("artifact", False)  # an older run's configuration has none
    checks.choice("tracker.artifact", wanted, (True, False))
    if wanted and not cfg.checkpoint.save:
        raise QTargetError(
            "tracker.artifact=true sends the checkpoint to W&B, and checkpoint.save=false makes none: set one of them "
            "to the other value"
        )


def _check_kinds(cfg: DictConfig) -> None:
    """Fields that name one of a few things."""
    dtypes = {"model": cfg.model.dtype, "checkpoint": cfg.checkpoint.dtype}
    dtypes |= {f"references.{role}": cfg.references[role].dtype for role in ROLES if reference_name(cfg, role)}
    for name, dtype in dtypes.items():
        checks.choice(f"{name}.dtype", dtype, tuple(DTYPES))
    checks.choice("loss.compile", cfg.loss.compile, engine.CHOICES)
    checks.choice("model.attention", cfg.model.attention, engine.ATTENTIONS)
    for name in ("model.gradient_checkpointing", "model.compile", "trainer.dry"):
        checks.choice(name, OmegaConf.select(cfg, name), (True, False))
    _check_flash_attention(cfg)
    _check_cached(cfg)
    _check_flaws(cfg)
    for role in ROLES:
        checks.choice(f"references.{role}.tail", OmegaConf.select(cfg, f"references.{role}.tail") or TAILS[0], TAILS)


def _check_cached(cfg: DictConfig) -> None:
    for role in ROLES:
        node = cfg.references[role]
        if reference_name(cfg, role) is None or node.kind != "cached":
            continue
        if node.detail is not None:
            checks.choice(f"references.{role}.detail", node.detail, KEPT)
        checks.choice(f"references.{role}.store_dtype", node.store_dtype, (None, *DTYPES))
        checks.whole(f"references.{role}.topk", node.topk, 1)


def flaw_of(reference: DictConfig | None) -> Flaw:
    """What is wrong on purpose with a reference. Raises QTargetError for a value that is out of range."""
    node = reference.get("flaw") if reference else None  # records of earlier runs have none
    flaw: Flaw = instantiate(node) if node else NoFlaw()
    return flaw


def _check_flaws(cfg: DictConfig) -> None:
    for role in ROLES:
        node = cfg.references[role]
        if flaw_of(node) != NoFlaw() and node.kind not in FLAWED:
            raise QTargetError(
                f"references.{role}.flaw is for a model of its own, kept apart from the policy, and this {role} is "
                f"{node.kind}: add reference@references.{role}=frozen or =cached, or take "
                f"reference/flaw@references.{role}.flaw=none"
            )


def _check_flash_attention(cfg: DictConfig) -> None:
    if cfg.model.attention != "flash_attention_2":
        return
    if importlib.util.find_spec("flash_attn") is None or not engine.on_gpu(cfg.trainer.accelerator):
        raise QTargetError("model.attention=flash_attention_2 needs a GPU and the package flash-attn: take sdpa")
    if cfg.trainer.precision != "bf16-mixed" and cfg.model.dtype != "bfloat16":
        raise QTargetError("flash_attention_2 computes in bf16: set trainer.precision=bf16-mixed, or take sdpa")
    if cfg.data.packing and cfg.trainer.batch_size > 1:
        raise QTargetError(
            "transformers keeps packed demonstrations apart under flash_attention_2 only in batches of one row: set "
            "trainer.batch_size=1 and trainer.accumulate, or take model.attention=sdpa"
        )
