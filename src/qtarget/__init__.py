"""qtarget: supervised fine-tuning of language models as target distribution design.

Q_t = γ_t·δ(y_t) + (1 − γ_t)·π̃_t        loss_t = w_t·CE(sg Q_t, p_θ)        ∂loss_t/∂logits = w_t·(p − Q_t)
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "dense_loss": "qtarget.math",
    "linear_loss": "qtarget.math",
    "Head": "qtarget.math",
    "Mixture": "qtarget.math",
    "Reference": "qtarget.math",
    "Target": "qtarget.math",
    "TokenView": "qtarget.math",
    "Anchored": "qtarget.math",
    "Signed": "qtarget.math",
    "Induced": "qtarget.math",
    "InducedTarget": "qtarget.math",
    "Distribution": "qtarget.math",
    "induced_target": "qtarget.math",
    "IGNORE": "qtarget.math",
    "hf_loss": "qtarget.train.hf",
    "QTargetTrainerMixin": "qtarget.trainers.mixin",
    "load_design": "qtarget.config.composing",
    "list_designs": "qtarget.config.composing",
    "command": "qtarget.cli",
    "judge": "qtarget.data.verify",
    "read_rows": "qtarget.data.sources.rows",
    "encode": "qtarget.data.chat",
    "read_runs": "qtarget.record.run_table",
    "draw_sweep": "qtarget.compare.sweeps",
    "QTargetError": "qtarget.errors",
}

_LAB = {"command", "judge", "read_rows", "encode", "read_runs", "draw_sweep"}
"""What needs the extra `lab`."""

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that `qtarget --help` doesn't wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'qtarget' has no attribute {name!r}")
    if name in _LAB:
        importlib.import_module("qtarget.extras").require_lab(f"qtarget.{name}")
    if name == "QTargetTrainerMixin":
        importlib.import_module("qtarget.extras").require_trainer(f"qtarget.{name}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
