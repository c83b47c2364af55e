"""Low-rank adapters (LoRA, arXiv 2106.09685) on a model that stays as it is, through peft."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtarget import checks
from qtarget.errors import QTargetError
from qtarget.model.policy import Policy


@dataclass(frozen=True)
class Lora:
    """W + (alpha/rank)·B·A in every layer named by `targets`; B starts at zero, so training starts at the model itself.

    targets: "all-linear" (all but the output layer), or names such as [q_proj, v_proj].
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: Any = "all-linear"

    def __post_init__(self) -> None:
        checks.whole("model.adapter.rank", self.rank, 1)
        checks.number("model.adapter.alpha", self.alpha, 0)
        checks.number("model.adapter.dropout", self.dropout, 0, 1)

    def __call__(self, policy: Policy) -> Policy:
        """The same policy; only the adapter has gradients."""
        from peft import LoraConfig, get_peft_model  # takes a second to import, and only adapters need it

        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        sizes: dict[str, Any] = {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout}
        config = LoraConfig(**sizes, target_modules=targets, task_type="CAUSAL_LM")
        with warnings.catch_warnings():
            # peft 0.21 asks by a name that transformers is about to drop
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*a tied layer is part of the adapter.*")  # refused below
            try:
                policy.lm = get_peft_model(policy.lm, config)
            except ValueError as error:
                raise QTargetError(f"model.adapter.targets={self.targets}: {error}") from error
        _check_head(policy)
        return policy


def _check_head(policy: Policy) -> None:
    """The loss multiplies by the output layer's own weight, and would not see an adapter there."""
    if any("lora_" in name for name, _ in policy.lm.get_output_embeddings().named_parameters()):
        raise QTargetError("model.adapter.targets names the output layer, which the loss reads without its adapter")


def save_adapter(policy: Policy, folder: Path) -> None:
    """The adapter alone, as peft loads it."""
    policy.lm.save_pretrained(folder, save_embedding_layers=False)  # "auto" would ask the hub


def merge(policy: Policy) -> None:
    """The adapter into the weights: from now on an ordinary model."""
    policy.lm = policy.lm.merge_and_unload()
