"""Settings of transformers' and TRL's trainers that a design's loss can't honour: each is refused with what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qtarget.errors import QTargetError
from qtarget.model.architecture import text_config


@dataclass(frozen=True)
class Refused:
    """A setting, when it can't be honoured, and what to do."""

    name: str
    is_set: Callable[[Any], bool]
    advice: str


def _get(args: Any, name: str) -> Any:
    return getattr(args, name, None)


ARGUMENTS = (
    Refused(
        "loss_type",
        lambda args: _get(args, "loss_type") not in (None, "nll"),
        'the design is the loss: leave loss_type="nll", and say design="dft" for DFT',
    ),
    Refused(
        "label_smoothing_factor",
        lambda args: bool(_get(args, "label_smoothing_factor")),
        'the design is the loss: leave it 0, and say design=qtarget.load_design("label_smoothing", '
        '**{"reliance.smoothing": 0.1})',
    ),
    Refused(
        "use_liger_kernel",
        lambda args: bool(_get(args, "use_liger_kernel")),
        "it replaces the model's forward, and the loss here never holds tokens × vocabulary anyway: set it to False; "
        'kernels for the layers come with model_init_kwargs={"use_kernels": True}',
    ),
    Refused(
        "torch_compile",
        lambda args: bool(_get(args, "torch_compile")),
        "it would compile a forward that the loss doesn't call: set it to False",
    ),
    Refused(
        "activation_offloading",
        lambda args: bool(_get(args, "activation_offloading")),
        "it isn't tested with a design's loss: set it to False; activation_checkpointing, TRL's default, works",
    ),
    Refused(
        "deepspeed",
        lambda args: bool(_get(args, "deepspeed")),
        "the loss reads the output layer's weight, which DeepSpeed may have put away: use DDP (torchrun, accelerate "
        "launch)",
    ),
    Refused(
        "fsdp",
        lambda args: bool(_get(args, "fsdp")),
        "use DDP (torchrun, accelerate launch), or `qtarget train trainer.strategy=fsdp2`",
    ),
    Refused(
        "parallelism_config",
        lambda args: _get(args, "parallelism_config") is not None,
        "tensor, context and sequence parallelism cut rows or weights apart that the loss reads whole: use DDP",
    ),
    Refused(
        "average_tokens_across_devices=False",
        lambda args: _get(args, "average_tokens_across_devices") is False and (_get(args, "world_size") or 1) > 1,
        "a step's loss is divided once, by what all devices hold: leave it True",
    ),
)
GIVEN = (
    Refused(
        "compute_loss_func",
        lambda given: given.get("compute_loss_func") is not None,
        "the design is the loss: leave it out",
    ),
    Refused(
        "model_init",
        lambda given: given.get("model_init") is not None,
        "references belong to one model: give model=…, and make a trainer for each trial",
    ),
)


def check_given(given: Mapping[str, Any]) -> None:
    """Raise QTargetError for what a Trainer is given that can't be honoured. given: by the names of its __init__."""
    args = given.get("args")
    refused = [*(one for one in ARGUMENTS if one.is_set(args)), *(one for one in GIVEN if one.is_set(given))]
    if refused:
        raise QTargetError("; ".join(f"{one.name} can't be honoured: {one.advice}" for one in refused))


def check_trainer(trainer: Any) -> None:
    """Raise QTargetError for what shows once transformers or TRL has set itself up. Nothing is trained yet."""
    if trainer.args.n_gpu > 1:
        raise QTargetError(
            f"one process sees {trainer.args.n_gpu} GPUs, which transformers would use through nn.DataParallel: start "
            "with `torchrun --nproc-per-node=N`, or show one by CUDA_VISIBLE_DEVICES"
        )
    if getattr(trainer.model, "is_distributed_loading_by_transformers", False):
        raise QTargetError("a model sharded at load time (DistributedConfig) can't be trained here: use DDP")
    if trainer.is_model_parallel:
        raise QTargetError("device_map spreads the model over several devices: load it on one, device_map=None")
    if getattr(trainer, "_is_vision_dataset", False):
        raise QTargetError("the data set has images, and the loss here reads text alone: drop the image columns")
    if _has_router_loss(trainer):
        raise QTargetError(
            "the model adds a load-balancing loss of its router, which a design's loss leaves out: set "
            "router_aux_loss_coef=0.0 (TRL), or model.config.output_router_logits=False"
        )


def _has_router_loss(trainer: Any) -> bool:
    if hasattr(trainer, "aux_loss_enabled"):
        return bool(trainer.aux_loss_enabled)
    config = text_config(trainer.model.config)
    return bool(getattr(config, "output_router_logits", False) and getattr(config, "router_aux_loss_coef", 0))
