"""Which models have other logits here than in builds that read three keys of the outer configuration only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from qtarget.errors import QTargetError
from qtarget.model.folders import model_folder, names_a_folder

KEYS: Mapping[str, tuple[str, float | None, float | None]] = {
    "falcon_h1": ("lm_head_multiplier", 1.0, 1.0),
    "hyperclovax": ("logits_scaling", 1.0, 1.0),
    "inkling_text": ("logits_mup_width_multiplier", 24.0, 1.0),
    "mpt": ("logit_scale", None, None),
    "recurrent_gemma": ("logits_soft_cap", 30.0, None),
    "xlstm": ("output_logit_soft_cap", 30.0, None),
    "gemma3n": ("final_logit_softcapping", 30.0, None),
    "gemma4": ("final_logit_softcapping", None, None),
    "gemma4_unified": ("final_logit_softcapping", None, None),
}
"""model_type → the key that wasn't read, its value where config.json leaves it out, the value that does nothing."""

HUB_NAMES = re.compile(r"falcon-?h1|hyperclova|recurrent-?gemma|xlstm|inkling|gemma-?3n|gemma-?4", re.IGNORECASE)
"""Of the same families, where no config.json is at hand."""


def head_changed(config: Mapping[str, Any]) -> bool:
    """Whether a model with this configuration, as plain data, has other logits since."""
    known = KEYS.get(str(config.get("model_type")))
    if known is None:
        return False
    key, default, without = known
    held: Mapping[str, Any] = config.get("text_config") or config
    return bool(held.get(key, default) != without)


def named_head_changed(name: str) -> bool:
    """The same of a model by name: of a folder by its config.json, of a hub id by the family in its name."""
    if not names_a_folder(name):
        return HUB_NAMES.search(name) is not None
    try:
        text = (model_folder(name) / "config.json").read_text(encoding="utf-8")
        return head_changed(json.loads(text))
    except (OSError, ValueError, AttributeError, QTargetError):
        return False  # the job itself says what is missing
