"""The head is the model's own: the logits the loss uses are those that transformers' forward gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_architectures import small_config, small_model
from torch import nn
from transformers import AutoConfig

from qtarget.config.changed_inputs import head_changed
from qtarget.config.composing import compose_config
from qtarget.config.identity import config_hash
from qtarget.config.run_config import RunConfig
from qtarget.errors import QTargetError
from qtarget.model import provide
from qtarget.model.adapter import Lora
from qtarget.model.agreement import check_logits
from qtarget.model.builtin import tiny_tokenizer
from qtarget.model.policy import Policy, cast_products
from qtarget.run.plan import make_plan

REAL = 90
"""Of the 99 rows of the tiny models' output layers; the others are padding."""
UNUSUAL: dict[str, dict[str, Any]] = {
    "llama": {},
    "phi": {},
    "cohere": {"logit_scale": 0.31},
    "granite": {"logits_scaling": 3.7},
    "falcon_h1": {"lm_head_multiplier": 0.05},
    "hyperclovax": {"logits_scaling": 0.4},
    "minicpm3": {"dim_model_base": 8},
    "gemma2": {"final_logit_softcapping": 5.0},
    "recurrent_gemma": {"logits_soft_cap": 3.0},
    "xlstm": {"output_logit_soft_cap": 4.0},
    "inkling_text": {"logits_mup_width_multiplier": 6.0, "unpadded_vocab_size": 95},
    "modernbert-decoder": {},
    "llama4_text": {},
    "opt": {"word_embed_proj_dim": 16},
}


def made(model_type: str, **values: Any) -> Any:
    """A tiny model whose output layer is as large as a trained one's."""
    config = small_config(model_type)
    for name, value in (UNUSUAL.get(model_type, {}) | values).items():
        setattr(config, name, value)
    lm = small_model(config)
    with torch.no_grad():
        lm.get_output_embeddings().weight.normal_(generator=torch.Generator().manual_seed(1))
        if getattr(lm.get_output_embeddings(), "bias", None) is not None:
            lm.get_output_embeddings().bias.normal_(generator=torch.Generator().manual_seed(2))
    return lm


@torch.no_grad()
def both(lm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of the loss, and those of the model, of the tokens that are real."""
    policy, ids = Policy(lm, REAL).eval(), torch.tensor([[5, 60, 7, 33, 9]])
    ours = policy.head.logits(policy(ids)[0], torch.float32)
    assert torch.isneginf(ours[:, REAL:]).all()
    return ours[:, :REAL], lm(input_ids=ids, use_cache=False).logits[0, :, :REAL].float()


@pytest.mark.parametrize("model_type", UNUSUAL)
def test_the_logits_of_the_loss_are_the_models_own(model_type: str) -> None:
    lm = made(model_type)
    torch.testing.assert_close(*both(lm), atol=1e-4, rtol=1e-4)
    check_logits(Policy(lm, REAL))


def test_the_gradient_of_a_scaled_and_capped_head_is_autograds() -> None:
    """Muse: multiplier, then cap; here with a bias, which the multiplier scales too."""
    import qtarget

    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (4, 9))
    bias = torch.randn(9, generator=generator, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    labels = torch.tensor([1, 3, 0, 8])
    head = qtarget.Head(weight, bias, softcap=2.5, scale=0.4)
    got = torch.autograd.grad(qtarget.linear_loss(hidden, head, labels, qtarget.load_design("sft")).total, leaves)
    logits = 2.5 * torch.tanh(0.4 * nn.functional.linear(hidden, weight, bias) / 2.5)
    expected = torch.autograd.grad(nn.functional.cross_entropy(logits, labels, reduction="sum"), leaves)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


# What can't be reproduced


def multiplied(lm: Any) -> None:
    lm.lm_head.register_forward_hook(lambda module, args, output: output * 1.1)


def capped(lm: Any) -> None:
    lm.lm_head.register_forward_hook(lambda module, args, output: 30 * torch.tanh(output / 30))


def projected(lm: Any) -> None:
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(3)))[0]
    lm.lm_head.register_forward_pre_hook(lambda module, args: (args[0] @ turn.to(args[0].dtype),))


def nan(lm: Any) -> None:
    lm.lm_head.register_forward_hook(lambda module, args, output: output * torch.nan)


@pytest.mark.parametrize("change", [multiplied, capped, projected, nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e-3], ids=["trained", "near zero"])
def test_another_way_to_logits_is_refused_with_both_numbers(
    change: Callable[[Any], None], dtype: torch.dtype, size: float
) -> None:
    lm = made("llama", tie_word_embeddings=False).to(dtype)
    with torch.no_grad():
        lm.lm_head.weight.mul_(size)
    check_logits(Policy(lm, REAL))
    change(lm)
    with pytest.raises(QTargetError, match=r"LlamaForCausalLM \(llama\).*model says .*, the loss would use -?\d"):
        check_logits(Policy(lm, REAL))


@pytest.mark.parametrize("model_type", ["bert-generation", "cpmant", "xlnet"])
def test_a_model_whose_tokens_see_later_ones_is_refused(model_type: str) -> None:
    with pytest.raises(QTargetError, match="lets tokens see the ones that follow"):
        check_logits(Policy(made(model_type), REAL))


def test_the_check_leaves_everything_as_it_was() -> None:
    lm = made("gemma3_text").train()
    lm.set_attn_implementation("sdpa")
    state, hooks = torch.get_rng_state(), len(lm.model._forward_hooks)
    check_logits(Policy(lm, REAL, compiled=True))
    assert lm.training
    assert lm.model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert lm.config._attn_implementation == "sdpa"
    assert len(lm.model._forward_hooks) == hooks
    assert all(weight.grad is None for weight in lm.parameters())


def test_an_adapter_and_bf16_products_leave_the_head_as_it_is() -> None:
    adapted = Lora(rank=2, targets=["q_proj"])(Policy(made("falcon_h1"), REAL))
    assert adapted.has_adapter
    torch.testing.assert_close(*both(adapted.lm), atol=1e-4, rtol=1e-4)
    policy = Policy(made("falcon_h1"), REAL)
    cast_products(policy, torch.bfloat16)
    assert policy.head.weight.dtype == torch.float32


# Loading


def saved(lm: Any, folder: Path) -> provide.ModelSource:
    lm.save_pretrained(folder)
    return provide.ModelSource(str(folder))


def test_policy_prior_and_teacher_are_held_against_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(made("hyperclovax"), tmp_path)
    assert provide.load_policy(source, REAL).head.scale == 0.4
    monkeypatch.setattr("qtarget.model.architecture.RULES", {})  # as Granite: divided
    monkeypatch.setattr(provide, "_CHECKED", set())  # a process checks a model once
    with pytest.raises(QTargetError, match="makes other logits"):
        provide.load_policy(source, REAL)


def test_weights_that_are_not_in_the_files_are_not_drawn_at_random(tmp_path: Path) -> None:
    """transformers 5.23 warns and draws them."""
    from safetensors.torch import load_file, save_file

    source = saved(made("llama", tie_word_embeddings=False), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QTargetError, match=r"lacks 1 of the weights of LlamaForCausalLM.*lm_head\.weight"):
        provide.load_policy(source, REAL)


@pytest.mark.parametrize(
    ("model_type", "told"),
    [
        ("bert", "is an encoder"),
        ("roberta", "is an encoder"),
        ("t5", "is an encoder-decoder"),
        ("bart", r"is an encoder-decoder.*decoder alone"),
        ("mistral3", r"multimodal model only.*text model \(mistral\)"),
        ("llava", "multimodal model only"),
        ("vit", "no causal language model"),
    ],
)
def test_what_is_no_language_model_is_refused_by_name(model_type: str, told: str, tmp_path: Path) -> None:
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    for load in (provide.load_config, lambda source: provide.load_policy(source, REAL)):
        with pytest.raises(QTargetError, match=rf"\({model_type}\) .*{told}"):
            load(provide.ModelSource(str(tmp_path)))


# Identity


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({"model_type": "falcon_h1", "lm_head_multiplier": 0.05}, True),
        ({"model_type": "falcon_h1"}, False),
        ({"model_type": "hyperclovax", "logits_scaling": 1.0}, False),
        ({"model_type": "recurrent_gemma"}, True),
        ({"model_type": "gemma4", "text_config": {"final_logit_softcapping": 30.0}}, True),
        ({"model_type": "gemma4", "text_config": {}}, False),
        ({"model_type": "gemma2", "final_logit_softcapping": 30.0}, False),
        ({"model_type": "granite", "logits_scaling": 8.0}, False),
    ],
)
def test_runs_of_models_with_other_logits_are_run_anew(config: dict[str, Any], changed: bool, workdir: Path) -> None:
    def named(folder: str, held: dict[str, Any], role: str = "model") -> str:
        Path(folder).mkdir(exist_ok=True)
        Path(folder, "config.json").write_text(json.dumps(held))
        name = ["model=path", f"model.name={folder}"]
        teacher = ["model=tiny", "reference@references.teacher=frozen", f"references.teacher.name={folder}"]
        return config_hash(compose_config("train", name if role == "model" else teacher))

    assert head_changed(config) is changed
    for role in ("model", "teacher"):
        with pytest.MonkeyPatch.context() as patch:
            now = named("m", config, role)
            patch.setattr("qtarget.config.versions.RESULT_CHANGES", ())
            assert (named("m", config, role) != now) is changed


def test_a_hub_model_is_known_by_its_family() -> None:
    def versions_of(name: str) -> bool:
        with pytest.MonkeyPatch.context() as patch:
            cfg = compose_config("train", ["model=path", f"model.name={name}"])
            now = config_hash(cfg)
            patch.setattr("qtarget.config.versions.RESULT_CHANGES", ())
            return config_hash(cfg) != now

    assert versions_of("tiiuae/Falcon-H1-0.5B-Base")
    assert not versions_of("google/gemma-2-2b")


def test_a_cache_of_wrong_logits_is_not_read_again(workdir: Path) -> None:
    """The cache is another one for a model whose logits changed, and the same for all others."""
    for model_type, version in (("falcon_h1", "2"), ("llama", None)):
        saved(made(model_type, vocab_size=260, max_position_embeddings=512), workdir / model_type)
        tiny_tokenizer().save_pretrained(workdir / model_type)
        overrides = ["model=path", f"model.name={model_type}", "target=asft", "reference@references.prior=cached"]
        plan = make_plan(RunConfig.compose([*overrides, "data.rows=8", "data.heldout_rows=2"]))
        assert plan.caches["prior"].identity.get("head") == version
