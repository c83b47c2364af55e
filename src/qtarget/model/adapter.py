"""Low-rank adapters (LoRA, arXiv 2106.09685) on a model that stays as it is, through peft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from qtarget.errors import QTargetError
from qtarget.settings import ByName, Checked, Either, Listed, Number, Part, Text, Whole, setting

if TYPE_CHECKING:
    from qtarget.model.policy import Policy

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
        from qtarget.model.adapting import adapt  # torch comes in there, and reading a configuration needs none

        return adapt(self, policy)


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
