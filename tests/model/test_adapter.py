"""Adapters: the checkpoint is the model that was measured, under every setting of peft 0.21 that can be made here."""

from __future__ import annotations

import json
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from resuming import SMALL, only_run
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig, LlamaForCausalLM

from qtarget import QTargetError
from qtarget.cli import run as qtarget_cli
from qtarget.model import adapting
from qtarget.model.adapter import OPTIONS, Lora
from qtarget.model.adapting import adapter_weights, merge
from qtarget.model.frozen import AdapterOff
from qtarget.model.policy import Policy

ROWS = 64
IDS = torch.arange(1, 13)[None]


def policy(*, tied: bool, dtype: torch.dtype = torch.float32) -> Policy:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=ROWS, **sizes, tie_word_embeddings=tied, attention_bias=True)
    return Policy(LlamaForCausalLM(config).to(dtype), ROWS).eval()


def move(made: Policy) -> None:
    """What is trained, as training would."""
    draw = torch.Generator().manual_seed(1)
    for tensor in made.parameters():
        if tensor.requires_grad:
            tensor.data += 0.05 * torch.randn(tensor.shape, generator=draw)


def logits(made: Policy) -> torch.Tensor:
    """As the loss makes them: from hidden states and head."""
    with torch.no_grad():
        return made.head.logits(made(IDS).flatten(0, 1), torch.float32)


BOTH = ["embed_tokens", "lm_head"]
MERGE: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (["q_proj", "v_proj"], {}),
    "all-linear": ("all-linear", {}),
    "a pattern": (r".*layers\.1\..*(q|k)_proj", {}),
    "rsLoRA": (["q_proj"], {"use_rslora": True}),
    "DoRA": (["q_proj"], {"use_dora": True}),
    "ranks by layer": (["q_proj", "v_proj"], {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 7}}),
    "some layers": (["q_proj"], {"layers_to_transform": [1], "layers_pattern": "layers"}),
    "all but some": (["q_proj", "v_proj"], {"exclude_modules": ["v_proj"]}),
    **{f"start {name}": (["q_proj"], {"init_lora_weights": name}) for name in (False, "gaussian", "orthogonal")},
    **{f"start {name}": (["q_proj"], {"init_lora_weights": name}) for name in ("mica", "olora", "pissa")},
    "start pissa_niter_2": (["q_proj"], {"init_lora_weights": "pissa_niter_2"}),
    "biases": (["q_proj"], {"bias": "all"}),
    "biases of its layers": (["q_proj"], {"bias": "lora_only"}),
    "a bias of its own": (["q_proj"], {"lora_bias": True}),
    "the other way round": (["q_proj"], {"fan_in_fan_out": True}),
    "a parameter": ([], {"target_parameters": ["q_proj.weight"]}),
    "KaSA": (["q_proj"], {"kasa_config": {}}),
    "VeLoRA": (["q_proj"], {"velora_config": {}}),
    "norms whole": (["q_proj"], {"modules_to_save": ["norm"]}),
    "input embeddings whole": (["q_proj"], {"modules_to_save": ["embed_tokens"]}),
    "output layer whole": (["q_proj"], {"modules_to_save": ["lm_head"]}),
    "both whole": (["q_proj"], {"modules_to_save": BOTH}),
    "embeddings whole and tied": (["q_proj"], {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "head whole and tied": (["q_proj"], {"modules_to_save": ["lm_head"], "ensure_weight_tying": True}),
    "some tokens": (["q_proj"], {"trainable_token_indices": [1, 2]}),
    "some tokens of both": (["q_proj"], {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [1, 2]}}),
}
UNTIED: dict[str, tuple[Any, dict[str, Any]]] = {
    "embeddings": (["embed_tokens", "q_proj"], {}),
    "embeddings by a pattern": (r".*embed_tokens", {}),
    "embeddings under DoRA": (["embed_tokens"], {"use_dora": True}),
    "embeddings, said to be tied": (["embed_tokens", "q_proj"], {"ensure_weight_tying": True}),
    "tokens of the output layer": (["q_proj"], {"trainable_token_indices": {"lm_head": [1]}}),
    "other tokens on each side": (["q_proj"], {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [3]}}),
}
"""Right where input and output embeddings are two weights, refused where they are one."""


@pytest.mark.parametrize(
    ("case", "tied"), [*((case, tied) for case in MERGE for tied in (True, False)), *((case, False) for case in UNTIED)]
)
def test_the_checkpoint_of_an_adapter_is_what_was_measured(case: str, tied: bool, tmp_path: Path) -> None:
    targets, options = (MERGE | UNTIED)[case]
    made = policy(tied=tied)
    base = logits(made)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft remarks on several of these
        made = Lora(rank=4, alpha=8.0, targets=targets, options=options)(made).eval()
    move(made)
    measured = logits(made)
    assert float((measured - base).abs().max()) > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(made.lm(input_ids=IDS).logits.flatten(0, 1), measured, atol=1e-5, rtol=0)
    merge(made)
    made.lm.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(read(IDS).logits.flatten(0, 1), measured, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("case", MERGE)
def test_an_adapter_without_weights_has_the_sizes_of_the_real_one(case: str, tied: bool) -> None:
    """For saying what a run will write; some starts of peft's split the weights up, of which there are none here."""
    targets, options = MERGE[case]
    real = policy(tied=tied)
    with torch.device("meta"):
        outlined = Policy(AutoModelForCausalLM.from_config(real.lm.config), real.vocab_size)
    sizes = []
    for plain in (policy(tied=tied), outlined):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            made = Lora(rank=4, alpha=8.0, targets=targets, options=options)(plain)
        alone = sum(tensor.numel() for tensor in adapter_weights(made).values())
        merge(made)
        sizes.append((alone, sum(tensor.numel() for tensor in made.parameters())))
    assert sizes[1][1] == sizes[0][1]
    assert sizes[1][0] == sizes[0][0] - (4 * 2 if case == "KaSA" else 0)  # a diagonal in each of two layers


@pytest.mark.parametrize("case", UNTIED)
def test_an_adapter_of_one_use_of_a_tied_weight_is_refused(case: str) -> None:
    """In peft 0.21 it merges into the weight that both uses share (peft #2777), also with ensure_weight_tying."""
    targets, options = UNTIED[case]
    with pytest.raises(QTargetError, match=r"are one weight.*modules_to_save=\[embed_tokens\]"):
        Lora(rank=4, targets=targets, options=options)(policy(tied=True))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("options", [{}, {"ensure_weight_tying": True}])
def test_an_adapter_of_the_output_layer_is_refused(tied: bool, options: dict[str, Any]) -> None:
    with pytest.raises(QTargetError, match=r"model\.adapter"):
        Lora(rank=4, targets=["lm_head"], options=options)(policy(tied=tied))


@pytest.mark.parametrize(
    ("config", "targets", "named"),
    [
        (GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=ROWS, bos_token_id=1, eos_token_id=2), "wte", "wte"),
        (BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=ROWS), "word_embeddings", "word_embeddings"),
    ],
)
def test_the_way_on_names_the_models_own_embeddings(config: Any, targets: str, named: str) -> None:
    made = Policy(AutoModelForCausalLM.from_config(config), ROWS)
    with pytest.raises(QTargetError, match=rf"modules_to_save=\[{named}\]"):
        Lora(rank=4, targets=[targets])(made)
    made = Policy(AutoModelForCausalLM.from_config(config), ROWS)
    assert Lora(rank=4, options={"modules_to_save": [named]})(made) is made


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (["q_proj", "v_porj"], {}, r"targets names v_porj, .* no such layer.*v_proj"),
        ("all-linear", {"modules_to_save": ["embed_out"]}, r"modules_to_save names embed_out, .*lm_head"),
        (["layers.2.self_attn.q_proj", "v_proj"], {}, r"targets names layers\.2\.self_attn\.q_proj"),
    ],
)
def test_a_layer_that_the_model_does_not_have_is_refused(targets: Any, options: dict[str, Any], message: str) -> None:
    """Peft 0.21 trains the others in silence; embed_out is what GPT-NeoX's lm_head was called until transformers 5."""
    with pytest.raises(QTargetError, match=message):
        Lora(rank=4, targets=targets, options=options)(policy(tied=False))


REFUSED: dict[str, dict[str, Any]] = {
    "alora_invocation_tokens": {"alora_invocation_tokens": [1]},
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "use_qalora": {"use_qalora": True},
    "monteclora_config": {"monteclora_config": {}},
    "init_lora_weights=eva": {"init_lora_weights": "eva"},
    "init_lora_weights=corda": {"init_lora_weights": "corda"},
    "init_lora_weights=lora_ga": {"init_lora_weights": "lora_ga"},
    "init_lora_weights=loftq": {"init_lora_weights": "loftq"},
    "use_doraa": {"use_doraa": True},
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_do_not_merge_are_refused_by_name(name: str) -> None:
    with pytest.raises(QTargetError, match=f"model.adapter.options.{name}"):
        Lora(options=REFUSED[name])


def test_every_option_is_a_field_of_pefts_and_is_tried_here() -> None:
    tried = {name for _, options in (MERGE | UNTIED).values() for name in options}
    assert set(OPTIONS) == tried <= {field.name for field in fields(LoraConfig)}


def test_values_that_peft_refuses_are_told_with_their_key() -> None:
    with pytest.raises(QTargetError, match=r"model\.adapter\.options\.bias=some"):
        Lora(options={"bias": "some"})(policy(tied=False))


@pytest.mark.parametrize(
    "options",
    [{"bias": "all"}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"kasa_config": {}}],
    ids=str,
)
def test_a_prior_that_would_not_be_the_base_model_is_refused(options: dict[str, Any]) -> None:
    made = Lora(rank=4, options=options)(policy(tied=False))
    with pytest.raises(QTargetError, match=r"adapter_off .* Take reference@references\.prior=frozen"):
        AdapterOff(made)


@pytest.mark.parametrize(
    "options", [{}, {"modules_to_save": BOTH}, {"trainable_token_indices": [1, 2]}, {"use_dora": True}], ids=str
)
def test_a_prior_without_the_adapter_is_the_base_model(options: dict[str, Any]) -> None:
    made = policy(tied=False)
    base = logits(made)
    made = Lora(rank=4, options=options)(made).eval()
    move(made)
    AdapterOff(made)
    with made.lm.disable_adapter():
        torch.testing.assert_close(logits(made), base, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_making_an_adapter_leaves_weights_and_draws_as_peft_does() -> None:
    from peft import get_peft_model

    ours, theirs = policy(tied=True), policy(tied=True)
    torch.manual_seed(3)
    Lora(rank=4, targets=["q_proj"])(ours)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    theirs.lm = get_peft_model(
        theirs.lm, LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    assert torch.equal(torch.rand(3), drawn)
    expected = theirs.lm.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.lm.state_dict().items())


# The command

SAVED = ("checkpoint/model.safetensors", "adapter/adapter_model.safetensors")
RUN = ["train", *SMALL, "trainer.max_steps=2", "trainer.eval_every=0", "model/adapter=lora", "optim.lr=1e-2"]


@pytest.mark.parametrize(
    "options", [["+model.adapter.options.use_dora=true"], ["+model.adapter.options.modules_to_save=[embed_tokens]"]]
)
def test_the_adapter_folder_and_the_checkpoint_say_the_same(options: list[str], workdir: Path) -> None:
    assert qtarget_cli([*RUN, *options]) == 0
    run = only_run(Path("outputs"))
    from qtarget.model.builtin import tiny_config, tiny_model, tiny_tokenizer

    base = tiny_model(tiny_config(len(tiny_tokenizer()))).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied embeddings
        adapted = PeftModel.from_pretrained(base, str(run / "adapter"))
    read = AutoModelForCausalLM.from_pretrained(run / "checkpoint")
    with torch.no_grad():
        torch.testing.assert_close(read(IDS).logits, adapted(input_ids=IDS).logits, atol=1e-5, rtol=0)
    assert (run / "adapter/tokenizer.json").is_file()


def test_an_adapter_on_bf16_weights_merges_in_fp32(workdir: Path) -> None:
    """Merged into bfloat16, as peft does by itself, q_proj would be off by up to 2⁻⁹ of itself."""
    beside = ["model.dtype=bfloat16", "trainer.precision=bf16-mixed", "model.adapter.targets=[q_proj]"]
    assert qtarget_cli([*RUN, *beside]) == 0
    run = only_run(Path("outputs"))
    from qtarget.model.builtin import tiny_config, tiny_model, tiny_tokenizer

    start = tiny_model(tiny_config(len(tiny_tokenizer()))).state_dict()
    saved, trained = (load_file(run / name) for name in SAVED)
    name = "model.layers.0.self_attn.q_proj"
    scale = 32.0 / 16
    change = (
        scale * trained[f"base_model.model.{name}.lora_B.weight"] @ trained[f"base_model.model.{name}.lora_A.weight"]
    )
    weight = start[f"{name}.weight"].bfloat16().float()
    assert float(change.abs().max()) > 1e-4
    torch.testing.assert_close(saved[f"{name}.weight"], weight + change, atol=1e-7, rtol=0)


def test_a_merge_that_goes_wrong_is_told_and_loses_nothing(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from qtarget.run import exported_model

    def wrong(made: Policy) -> None:
        merge(made)
        made.lm.get_submodule("model.layers.0.self_attn.q_proj").weight.data.mul_(3)

    monkeypatch.setattr(exported_model, "merge", wrong)
    assert qtarget_cli(RUN) == 2
    assert "the adapter makes other logits than it made in training: they differ by" in capfd.readouterr().err
    run = only_run(Path("outputs"))
    assert not (run / "checkpoint").exists()
    assert any(float(tensor.abs().max()) for tensor in load_file(run / "adapter/adapter_model.safetensors").values())
    assert json.loads((run / "result.json").read_text())["status"] == "failed"


def test_bf16_layers_beside_an_adapter_are_refused(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    beside = ["model.dtype=bfloat16", "+model.adapter.options.modules_to_save=[embed_tokens]"]
    assert qtarget_cli([*RUN, *beside]) == 2
    assert "weights are trained in bfloat16" in capfd.readouterr().err


def test_the_look_at_an_adapter_can_be_seen_to_move_it() -> None:
    made = Lora(rank=4)(policy(tied=False)).eval()
    before = logits(made)
    with adapting._moved(made):
        assert float((logits(made) - before).abs().max()) > 1e-4
    assert torch.equal(logits(made), before)
