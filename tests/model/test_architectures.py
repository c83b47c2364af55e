"""Every causal language model of the installed transformers: the loss has its logits, or it is refused by name."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny_architectures import small_config, small_model
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from qtarget.errors import QTargetError
from qtarget.model.agreement import check_logits
from qtarget.model.architecture import check_config, text_config
from qtarget.model.policy import Policy

UNUSUAL = {
    "logit_scale": 0.31,
    "logits_scaling": 2.7,
    "lm_head_multiplier": 0.35,
    "output_multiplier": 0.6,
    "logits_mup_width_multiplier": 5.0,
    "final_logit_softcapping": 4.0,
    "logits_soft_cap": 3.0,
    "output_logit_soft_cap": 6.0,
}
"""What a multiplier or cap that isn't honoured would show at."""
NOT_SMALL = 19
"""Of 189 model types of transformers 5.23: those whose defaults don't shrink, or that need another package (timm)."""


def prepared(model_type: str) -> PreTrainedConfig:
    config = small_config(model_type)
    for part in {id(part): part for part in (config, text_config(config))}.values():
        for name, value in UNUSUAL.items():
            if isinstance(part.to_dict().get(name), float | int) or name in type(part).__annotations__:
                setattr(part, name, value)
    return config


@torch.no_grad()
def difference(lm: Any) -> float:
    """The largest difference between the logits of the loss and the model's, of its largest."""
    torch.nn.init.normal_(lm.get_output_embeddings().weight)
    policy, ids = Policy(lm, 90).eval(), torch.tensor([[5, 60, 7, 33, 9]])
    ours = policy.head.logits(policy(ids)[0], torch.float32)[:, :90]
    own = lm(input_ids=ids, use_cache=False).logits[0, :, :90].float()
    return float((ours - own).abs().max() / own.abs().max())


@torch.no_grad()
def unpadded_difference(lm: Any) -> float:
    """The largest difference of the hidden states between rows read without their padding and each by itself."""
    policy, lengths = Policy(lm, 90).eval(), [(40,), (7,), (23, 9)]
    ids, positions = torch.arange(120).view(3, 40) * 7 % 83 + 3, torch.arange(40).repeat(3, 1)
    positions[2, 23:] -= 23
    got = policy(ids, positions, lengths) if policy.skips_padding else None
    apart = [(0, 0, 40), (1, 0, 7), (2, 0, 23), (2, 23, 32)]
    pairs = [(got[row, at:end], policy(ids[row : row + 1, at:end])[0]) for row, at, end in apart if got is not None]
    return max((float((mine - own).abs().max() / own.abs().max()) for mine, own in pairs), default=0.0)


@pytest.mark.slow
def test_every_architecture_is_equal_or_refused_by_name() -> None:
    result = defaultdict(list)
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                config = prepared(model_type)
                refused_early = _refusal(partial(check_config, config, model_type))
                lm = small_model(config)
            except Exception as error:  # not ours: transformers can't make it from these sizes
                result["not small"].append(f"{model_type} ({type(error).__name__})")
                continue
            refused = refused_early or _refusal(partial(check_logits, Policy(lm, 90)))
            if refused:
                assert model_type in refused, refused
                result["refused"].append(model_type)
            else:
                assert difference(lm) < 1e-3, model_type
                assert unpadded_difference(lm) < 1e-3, model_type
                result["equal"].append(model_type)
    print({kind: (len(names), names if kind != "equal" else "") for kind, names in result.items()})
    assert len(result["not small"]) <= NOT_SMALL, result["not small"]
    assert len(result["equal"]) >= 130
    assert {"falcon_h1", "hyperclovax", "recurrent_gemma", "xlstm", "inkling_text", "gemma4"} <= set(result["equal"])
    assert {"bert", "bart", "xlnet"} <= set(result["refused"])


def _refusal(check: Callable[[], None]) -> str | None:
    try:
        check()
    except QTargetError as error:
        return str(error)
    return None
