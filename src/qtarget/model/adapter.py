"""Low-rank adapters (LoRA, arXiv 2106.09685) on a model that stays as it is, through peft."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qtarget.errors import QTargetError
from qtarget.model.agreement import check_logits, measured_logits
from qtarget.model.architecture import plain
from qtarget.model.policy import Policy
from qtarget.settings import ByName, Checked, Either, Listed, Number, Part, Text, Whole, setting

OPTIONS = (
    "alpha_pattern",
    "bias",
    "ensure_weight_tying",
    "exclude_modules",
    "fan_in_fan_out",
    "init_lora_weights",
    "kasa_config",
    "layers_pattern",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
    "velora_config",
)
"""Fields of peft 0.21's LoraConfig whose adapters merge into the weights, as a test measures."""
STARTS = (True, False, "gaussian", "orthogonal", "mica", "olora", "pissa")
"""Of init_lora_weights, and pissa_niter_N. The others want data (eva, corda, lora_ga) or quantised weights (loftq)."""
OUTLINED = {"init_lora_weights": False, "kasa_config": None}
"""On a model without weights, which peft can't split up: the same shapes, but for `rank` numbers a layer of KaSA."""
ALL_BESIDE = (True, False, "gaussian", "orthogonal", "mica", "eva")
"""Of init_lora_weights: those that leave the weights they stand beside as they are (peft 0.21)."""
MOVED = 0.02
"""Standard deviation of what every trained weight is moved by, for a look at an adapter that starts at nothing."""


@dataclass(frozen=True)
class Lora(Checked):
    """W + (alpha/rank)·B·A in every layer named by `targets`; B starts at zero, so training starts at the model itself.

    targets: "all-linear" (all but the output layer), or names such as [q_proj, v_proj]. options: further fields of
    peft's LoraConfig by name, of those in `OPTIONS`.
    """

    NODE_KEY: ClassVar[str] = "model.adapter"
    rank: int = setting(16, Whole(1), "r, of the matrices A and B")
    alpha: float = setting(32.0, Number(0), "the adapter is scaled by alpha/rank")
    dropout: float = setting(0.0, Number(0, 1), "of the adapter's input")
    targets: Any = setting(
        "all-linear", Either((Text("a name"), Listed(Text("a name")))), "layers; all-linear: all but the output layer"
    )
    options: Mapping[str, Any] = setting(
        {}, ByName(Part("fields of peft's LoraConfig")), "further settings of the adapter"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_options(self.options)

    def __call__(self, policy: Policy) -> Policy:
        """The same policy; only the adapter has gradients.

        Raises QTargetError for an adapter that the loss would not see, or whose weights don't merge into the model's.
        """
        is_real = policy.lm.device.type != "meta"
        before = measured_logits(policy) if is_real else None
        was_tied, names = _is_tied(policy.lm), _names_of_embeddings(policy.lm)
        self._check_names(policy.lm)
        policy.lm = self._adapted(policy.lm)
        if was_tied:
            _check_tied(policy, names[0])
        _check_head(policy, names[1])
        if before is not None:
            with _moved(policy):
                check_logits(policy)
                policy.adapter_off_is_base = _is_base(policy, before)
        return policy

    def _check_names(self, lm: Any) -> None:
        """Names that a model has no layer of: peft 0.21 leaves them out in silence where another one is there."""
        layers = dict.fromkeys(name for name, _ in lm.named_modules())
        listed = {"targets": self.targets, "options.modules_to_save": self.options.get("modules_to_save")}
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

    def _adapted(self, lm: Any) -> Any:
        from peft import LoraConfig, get_peft_model  # takes a second to import, and only adapters need it

        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        sizes: dict[str, Any] = {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout}
        with warnings.catch_warnings():
            # peft 0.21 asks by a name that transformers is about to drop
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            # what of these goes wrong is refused below
            warnings.filterwarnings("ignore", message=".*a tied layer is part of the adapter.*")
            warnings.filterwarnings("ignore", message=".*ensure_weight_tying.*")
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
            options = {**self.options, **OUTLINED} if lm.device.type == "meta" else self.options
            try:
                config = LoraConfig(**sizes, **options, target_modules=targets, task_type="CAUSAL_LM")
                return get_peft_model(lm, config)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError) as error:
                further = "".join(f" model.adapter.options.{key}={value}" for key, value in self.options.items())
                raise QTargetError(f"model.adapter.targets={self.targets}{further}: {error}") from error


def _check_options(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in OPTIONS:
            raise QTargetError(
                f"model.adapter.options.{name} is none of the fields of peft's LoraConfig that can be set here: "
                f"{', '.join(OPTIONS)}"
            )
    start = options.get("init_lora_weights", True)
    if start not in STARTS and not str(start).startswith("pissa_niter_"):
        raise QTargetError(
            f"model.adapter.options.init_lora_weights={start} needs data or quantised weights at the start: take one "
            f"of {', '.join(map(str, STARTS))} or pissa_niter_N"
        )


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
