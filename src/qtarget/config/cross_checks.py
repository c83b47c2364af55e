"""What no part of a configuration can tell alone: values that don't go together."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING

from qtarget.config.names import our_trackers
from qtarget.config.stream_checks import check_stream
from qtarget.errors import QTargetError
from qtarget.settings import FLAG

if TYPE_CHECKING:
    from qtarget.config.run_config import RunConfig
    from qtarget.model.policy import Policy


def check(cfg: RunConfig) -> None:
    """Raise QTargetError for the first thing the user has to mend."""
    for check_part in (_options, check_stream, _artifact, _references, _flash_attention, _step_size, _gpus):
        check_part(cfg)


def _options(cfg: RunConfig) -> None:
    """Parts of the data are options of a group, and no values."""
    for key in ("source", "noise"):
        if not isinstance(node := cfg.data.get(key), Mapping):
            raise QTargetError(f"data.{key}={node} sets a value, not an option: write data/{key}={node}")


def _artifact(cfg: RunConfig) -> None:
    for key, tracker in our_trackers({"tracker": cfg.tracker}):
        wanted = tracker.get("artifact", False)  # an older run's configuration has none
        FLAG.check(f"{key}.artifact", wanted)
        if wanted and not cfg.checkpoint.save:
            raise QTargetError(
                f"{key}.artifact=true sends the checkpoint to W&B, and checkpoint.save=false makes none: set one of "
                "them to the other value"
            )


def _references(cfg: RunConfig) -> None:
    for role, reference in cfg.references.items():
        reference.check_run(cfg)
        if reference.hint_template and cfg.data.get("prompt_weight"):  # older configurations have none
            raise QTargetError(
                f"data.prompt_weight={cfg.data['prompt_weight']} teaches prompts, and references.{role}.hint gives the "
                f"{role} another prompt, whose tokens aren't the policy's: set data.prompt_weight=0, or take a {role} "
                f"without a hint (reference@references.{role}=frozen)"
            )


def _flash_attention(cfg: RunConfig) -> None:
    if cfg.model.attention != "flash_attention_2":
        return
    if importlib.util.find_spec("flash_attn") is None or not cfg.trainer.on_gpu:
        raise QTargetError("model.attention=flash_attention_2 needs a GPU and the package flash-attn: take sdpa")
    if not cfg.trainer.is_mixed and cfg.model.dtype != "bfloat16":
        raise QTargetError("flash_attention_2 computes in bf16: set trainer.precision=bf16-mixed, or take sdpa")
    if cfg.packing and cfg.trainer.batch_size > 1:
        raise QTargetError(
            "transformers keeps packed demonstrations apart under flash_attention_2 only in batches of one row: set "
            "trainer.batch_size=1 and trainer.accumulate, or take model.attention=sdpa"
        )


def _step_size(cfg: RunConfig) -> None:
    rounded = cfg.model.dtype != "float32" and not cfg.model.adapter  # an adapter is fp32 on any weights
    if not rounded or cfg.trainer.max_steps == 0:
        return
    if cfg.optim.get("update_norm") is not None:  # older configurations have none
        raise QTargetError(
            f"optim.update_norm keeps the length of a step, and weights in {cfg.model.dtype} round most of it away: "
            "set model.dtype=float32 (trainer.precision=bf16-mixed may stay), or take optim=adamw"
        )
    if not cfg.optim.get("allow_bf16_rounding"):
        raise _rounds(f"model.dtype={cfg.model.dtype} trains all weights in that dtype")


def _gpus(cfg: RunConfig) -> None:
    """The last of these, as it asks torch."""
    if cfg.trainer.devices == 1 or not cfg.trainer.on_gpu:
        return
    import torch

    available = torch.cuda.device_count()
    if cfg.trainer.devices > available:
        raise QTargetError(
            f"trainer.devices={cfg.trainer.devices}, and this machine has {available} GPU{'s' * (available > 1)}: ask "
            "for fewer, or set trainer.accelerator=cpu"
        )


def check_trained_dtypes(policy: Policy, cfg: RunConfig) -> None:
    """Raise QTargetError where weights are trained that are not fp32, such as whole layers beside an adapter."""
    import torch  # the checks above go before it is imported

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
