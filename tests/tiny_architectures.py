"""A tiny random model of each causal language model that the installed transformers has."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

LARGEST = 3_000_000
"""Weights that still count as small."""
TOKENS = 99

SIZES: dict[int, str] = {
    TOKENS: "vocab_size vocab_size_per_layer_input n_words",
    64: "max_position_embeddings n_positions n_ctx max_seq_len",
    48: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim dff dim_ff ffn_hidden_size n_inner "
    "dense_intermediate_size",
    32: "hidden_size d_model n_embd dim embedding_size attention_hidden_size emb_dim embed_dim",
    16: "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size shared_intermediate_size "
    "intermediate_size_mlp moe_shared_expert_intermediate_size shared_experts_intermediate_size sliding_window "
    "qk_head_dim image_size",
    8: "head_dim kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim index_head_dim index_topk "
    "linear_key_head_dim linear_value_head_dim linear_head_dim hidden_size_per_layer_input state_size mamba_d_state "
    "patch_size",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads rotary_dim "
    "num_encoder_attention_heads num_decoder_attention_heads num_experts n_routed_experts num_local_experts "
    "moe_num_experts",
    2: "num_hidden_layers n_layer n_layers num_layers num_blocks decoder_layers num_decoder_layers num_key_value_heads "
    "num_kv_heads num_experts_per_tok moe_topk num_experts_per_token moe_k index_n_heads linear_num_key_heads "
    "linear_num_value_heads linear_num_heads",
    1: "encoder_layers num_encoder_layers n_shared_experts num_shared_experts n_group topk_group depth",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}

_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
EXTRAS: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA,
    "granitemoehybrid": _MAMBA,
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 4},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
    "roc_bert": {
        "pronunciation_vocab_size": 20,
        "pronunciation_embed_dim": 8,
        "shape_vocab_size": 20,
        "shape_embed_dim": 8,
    },
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "attention_head_size": 8,
        "feed_forward_size": 32,
        "attn_layers": ["local", "lsh"],
    },
}
"""model_type, or model_type.part of a configuration in parts → what it needs besides `SMALL`."""


def small_config(model_type: str) -> PreTrainedConfig:
    """The configuration of a model_type with everything in it made small."""
    return _small(CONFIG_MAPPING[model_type], model_type)


def _small(config_class: Any, place: str) -> PreTrainedConfig:
    default = config_class().to_dict()
    values = {name: size for name, size in SMALL.items() if _is_count(default.get(name))}
    values |= {name: id for id, name in enumerate(("pad_token_id", "bos_token_id", "eos_token_id")) if name in default}
    if "kv_lora_rank" in default and "num_key_value_heads" in default:
        values["num_key_value_heads"] = SMALL["num_attention_heads"]
    for part, made in config_class.sub_configs.items():
        if isinstance(default.get(part), dict) and made.__name__ != "AutoConfig":
            values[part] = _small(made, f"{place}.{part}").to_dict()
    config: PreTrainedConfig = config_class(**values | EXTRAS.get(place, {}))
    return config


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def small_model(config: PreTrainedConfig) -> Any:
    """The causal LM of a configuration, random; ValueError where it isn't small."""
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()
