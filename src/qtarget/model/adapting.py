"""What peft does with a `Lora`: on the model, into its weights, into a folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qtarget.errors import QTargetError
from qtarget.model.agreement import check_logits, measured_logits
from qtarget.model.architecture import plain
from qtarget.model.policy import Policy

if TYPE_CHECKING:
    from qtarget.model.adapter import Lora

OUTLINED = {"init_lora_weights": False, "kasa_config": None}
"""On a model without weights, which peft can't split up: the same shapes, but for `rank` numbers a layer of KaSA."""
ALL_BESIDE = (True, False, "gaussian", "orthogonal", "mica", "eva")
"""Of init_lora_weights: those that leave the weights they stand beside as they are (peft 0.21)."""
MOVED = 0.02
"""Standard deviation of what every trained weight is moved by, for a look at an adapter that starts at nothing."""


def adapt(lora: Lora, policy: Policy) -> Policy:
    """See `Lora`, which calls this."""
    is_real = policy.lm.device.type != "meta"
    before = measured_logits(policy) if is_real else None
    was_tied, names = _is_tied(policy.lm), _names_of_embeddings(policy.lm)
    _check_names(lora, policy.lm)
    policy.lm = _adapted(lora, policy.lm)
    if was_tied:
        _check_tied(policy, names[0])
    _check_head(policy, names[1])
    if before is not None:
        with _moved(policy):
            check_logits(policy)
            policy.adapter_off_is_base = _is_base(policy, before)
    return policy


def _check_names(lora: Lora, lm: Any) -> None:
    """Names that a model has no layer of: peft 0.21 leaves them out in silence where another one is there."""
    layers = dict.fromkeys(name for name, _ in lm.named_modules())
    listed = {"targets": lora.targets, "options.modules_to_save": lora.options.get("modules_to_save")}
    for key, value in listed.items():
        names = [] if value is None or isinstance(value, str) else list(value)
        lacking = [name for name in names if not any(f".{layer}".endswith(f".{name}") for layer in layers)]
        if lacking:
            kinds = dict.fromkeys(layer.rpartition(".")[2] for layer in layers)
            own = ", ".join(kind for kind in kinds if kind and not kind.isdecimal())
            raise QTargetError(
                f"model.adapter.{key} names {', '.join(lacking)}, and the model has no such layer: leave it out, "
                f"or take one of {own}"
            )


def _adapted(lora: Lora, lm: Any) -> Any:
    from peft import LoraConfig, get_peft_model  # takes a second to import, and only adapters need it

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    sizes: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    with warnings.catch_warnings():
        # peft 0.21 asks by a name that transformers is about to drop
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        # what of these goes wrong is refused below
        warnings.filterwarnings("ignore", message=".*a tied layer is part of the adapter.*")
        warnings.filterwarnings("ignore", message=".*ensure_weight_tying.*")
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        options = {**lora.options, **OUTLINED} if lm.device.type == "meta" else lora.options
        try:
            config = LoraConfig(**sizes, **options, target_modules=targets, task_type="CAUSAL_LM")
            return get_peft_model(lm, config)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError) as error:
            further = "".join(f" model.adapter.options.{key}={value}" for key, value in lora.options.items())
            raise QTargetError(f"model.adapter.targets={lora.targets}{further}: {error}") from error


def _check_head(policy: Policy, name: str) -> None:
    """The loss multiplies by the output layer's own weight, and would not see an adapter there."""
    if _has_lora(plain(policy.lm).get_output_embeddings()):
        raise QTargetError(
            "model.adapter.targets names the output layer, which the loss reads without its adapter: leave it out, or "
            f"train it whole with +model.adapter.options.modules_to_save=[{name}]"
        )


def _is_tied(lm: Any) -> bool:
    words, out = lm.get_input_embeddings(), lm.get_output_embeddings()
    return out is not None and getattr(out, "weight", None) is getattr(words, "weight", 0)


def _names_of_embeddings(lm: Any) -> list[str]:
    """Of the input and the output ones, as a list of layers would name them: GPT-2 has wte, BLOOM word_embeddings."""
    names = {id(module): name.rpartition(".")[2] for name, module in lm.named_modules()}
    return [names.get(id(layer), "") for layer in (lm.get_input_embeddings(), lm.get_output_embeddings())]


def _check_tied(policy: Policy, name: str) -> None:
    """An adapter of one of two uses of a weight has no place in a model that holds the weight once."""
    lm = plain(policy.lm)
    words, out = lm.get_input_embeddings(), lm.get_output_embeddings()
    first, second = (getattr(layer, "token_adapter", None) for layer in (words, out))
    apart = first is not second and (first is None or getattr(second, "tied_adapter", None) is not first)
    if _has_lora(words) or apart:
        raise QTargetError(
            "the model's input and output embeddings are one weight, and model.adapter would change one of its two "
            "uses: merged into the checkpoint it would change both. Leave the embeddings out of model.adapter.targets, "
            f"or train them with +model.adapter.options.modules_to_save=[{name}] (all rows; the checkpoint then "
            "holds two weights) or +model.adapter.options.trainable_token_indices=[IDS] (some rows)"
        )


def _has_lora(layer: nn.Module | None) -> bool:
    return layer is not None and any("lora_" in name for name, _ in layer.named_parameters())


@contextmanager
def _moved(policy: Policy) -> Iterator[None]:
    """Meanwhile everything that is trained is somewhere else: at its start an adapter says what the model says."""
    draw = torch.Generator().manual_seed(0)
    trained = [tensor for tensor in policy.parameters() if tensor.requires_grad]
    starts = [tensor.detach().clone() for tensor in trained]
    with torch.no_grad():
        for tensor in trained:
            tensor.add_((MOVED * torch.randn(tensor.shape, generator=draw)).to(tensor))
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, start in zip(trained, starts, strict=True):
                tensor.copy_(start)


def _is_base(policy: Policy, before: Tensor) -> bool:
    """Whether the model without its adapter is the one that there was before: not where biases are trained, or where
    the adapter starts with a part of the weights (PiSSA, OLoRA, KaSA).
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*disabling adapter layers with bias configured.*")
        with policy.lm.disable_adapter():
            now = measured_logits(policy)
    return torch.allclose(now, before, rtol=0, atol=1e-4 * float(before.abs().max()))


def check_adapter(policy: Policy) -> None:
    """Raise QTargetError for an adapter, made by whomever, that the loss would not see."""
    kinds = [type(config).__name__ for config in policy.lm.peft_config.values() if config.is_prompt_learning]
    if kinds:
        raise QTargetError(
            f"{kinds[0]} puts virtual tokens before each row, which the loss would take for the row's own: take an "
            "adapter of the weights, such as LoraConfig"
        )
    if _has_lora(plain(policy.lm).get_output_embeddings()):
        raise QTargetError(
            "the adapter is on the output layer too, which the loss reads without it: leave lm_head out of "
            "target_modules, or train it whole with modules_to_save"
        )
    with _moved(policy):
        check_logits(policy)


def check_base(lm: Any) -> None:
    """Raise QTargetError where a model with its adapter switched off is not the one that the adapter was put on."""
    for config in lm.peft_config.values():
        bias, start = getattr(config, "bias", "none"), getattr(config, "init_lora_weights", True)
        if bias != "none" or start not in ALL_BESIDE:
            what = f"bias={bias!r}" if bias != "none" else f"init_lora_weights={start!r}"
            raise QTargetError(
                f"adapter_off is the model without its adapter, and with {what} that is not the model that training "
                'started from: give references={"prior": "frozen"}, a copy of the weights'
            )


def save_adapter(policy: Policy, folder: Path) -> None:
    """The adapter alone, as peft loads it."""
    with _whole_weights():
        policy.lm.save_pretrained(folder, save_embedding_layers=False)  # "auto" would ask the hub


def adapter_weights(policy: Policy) -> dict[str, Tensor]:
    """What `save_adapter` saves."""
    from peft import get_peft_model_state_dict

    with _whole_weights():
        weights: dict[str, Tensor] = get_peft_model_state_dict(policy.lm, save_embedding_layers=False)
    return weights


@contextmanager
def _whole_weights() -> Iterator[None]:
    """Without what peft says of weights that it takes for shards: 0.21 does of lora_bias, which has one dimension."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*save_embedding_layers.*")
        warnings.filterwarnings("ignore", message=".*tensor.s. have invalid shape.*")
        yield


def merge(policy: Policy) -> None:
    """The adapter into the weights: from now on an ordinary model."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no longer tied after merging.*")  # and so they are saved
        policy.lm = policy.lm.merge_and_unload()
