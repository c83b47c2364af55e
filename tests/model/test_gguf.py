"""Models in GGUF files: converted once, tied again, refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from qtarget.config.model_folders import check_folders
from qtarget.config.named_models import with_named_models
from qtarget.errors import QTargetError
from qtarget.model import gguf_file, provide
from qtarget.model.fingerprint import fingerprint

WORDS = [*"abcdefghijklmnopqrstuvwxyz", "ab", "cd", "ef", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTARGET_CACHE", str(tmp_path / "cache"))


def a_model(*, tied: bool) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": len(WORDS)}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, tie_word_embeddings=tied)).eval()


def write(path: Path, model: Qwen2ForCausalLM, *, own_head: bool, rule: str = "") -> Path:
    """As llama.cpp writes: the embedding in 4 bits; own_head: the output layer once more, in 32. rule: of cutting."""
    config, weights = model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    file = gguf.GGUFWriter(str(path), "qwen2")
    file.add_block_count(1)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_tokenizer_model("gpt2")
    if rule:
        file.add_tokenizer_pre(rule)
    file.add_token_list(WORDS)
    file.add_token_merges(["a b", "c d", "e f"])
    file.add_eos_token_id(len(WORDS) - 1)
    for theirs, ours in LAYER.items():
        file.add_tensor(f"blk.0.{theirs}", weights[f"model.layers.0.{ours}"])
    file.add_tensor("output_norm.weight", weights["model.norm.weight"])
    rounded = gguf.quants.quantize(weights["model.embed_tokens.weight"], gguf.GGMLQuantizationType.Q4_0)
    file.add_tensor("token_embd.weight", rounded, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    if own_head:
        file.add_tensor("output.weight", np.ascontiguousarray(weights["lm_head.weight"]))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(12)[None]).logits


def test_a_tied_model_whose_file_holds_the_output_layer_apart_is_tied_again(tmp_path: Path) -> None:
    original = a_model(tied=True)
    source = provide.resolve(str(write(tmp_path / "m.gguf", original, own_head=True)))
    read = AutoModelForCausalLM.from_pretrained(source.location)
    assert read.config.tie_word_embeddings
    assert read.get_output_embeddings().weight is read.get_input_embeddings().weight
    assert not hasattr(read.config, "quantization_config")
    torch.testing.assert_close(logits(read), logits(original))  # the copy in 32 bits is the one that is kept


def test_an_output_layer_that_was_trained_apart_stays_apart(tmp_path: Path) -> None:
    original = a_model(tied=False)
    source = provide.resolve(str(write(tmp_path / "m.gguf", original, own_head=True)))
    read = AutoModelForCausalLM.from_pretrained(source.location)
    assert not read.config.tie_word_embeddings
    torch.testing.assert_close(read.lm_head.weight, original.lm_head.weight)
    assert not torch.equal(read.lm_head.weight, read.get_input_embeddings().weight)


def test_a_file_without_an_output_layer_is_of_a_tied_model(tmp_path: Path) -> None:
    source = provide.resolve(str(write(tmp_path / "m.gguf", a_model(tied=True), own_head=False)))
    assert AutoModelForCausalLM.from_pretrained(source.location).config.tie_word_embeddings


def test_a_file_is_converted_once_and_again_where_its_content_is_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "m.gguf", a_model(tied=True), own_head=False)
    first, identity = provide.resolve(str(path)), fingerprint(str(path))
    assert "converting m.gguf" in capsys.readouterr().out
    moved = tmp_path / "moved.gguf"
    path.rename(moved)
    assert fingerprint(str(moved)) == identity
    path = write(tmp_path / "m.gguf", a_model(tied=True), own_head=False)
    assert provide.resolve(str(path)) == first
    assert capsys.readouterr().out == ""
    other = provide.resolve(str(write(tmp_path / "m.gguf", a_model(tied=False), own_head=True)))
    assert other != first
    assert fingerprint(str(path)) != identity


@pytest.mark.parametrize(("rule", "is_named"), [("smollm", True), ("gpt-2", False), ("qwen2", False), ("", False)])
def test_a_file_whose_texts_transformers_cuts_otherwise_says_so(
    rule: str, is_named: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers 5.23.0 knows none of llama.cpp's rules that cut around every digit, and takes GPT-2's for them."""
    provide.resolve(str(write(tmp_path / "m.gguf", a_model(tied=True), own_head=False, rule=rule)))
    said = f"m.gguf has texts cut as '{rule}', and transformers cuts them as GPT-2: several spaces before a digit"
    assert (said in capsys.readouterr().out) == is_named


def test_it_is_trained_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "m.gguf", a_model(tied=True), own_head=True)
    assert with_named_models(["model=m.gguf"], [tmp_path]) == ["model='./m.gguf'"]
    source = provide.resolve("m.gguf")
    policy = provide.load_policy(source, len(provide.load_tokenizer(source)))
    assert policy.vocab_size == len(WORDS)
    assert AutoTokenizer.from_pretrained(source.location).eos_token == "<|endoftext|>"


def test_what_is_no_whole_gguf_file_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(QTargetError, match=message):
            check_folders({"model": {"name": str(tmp_path / name)}, "references": {}})

    refused("missing.gguf", "there is no such file. Name a GGUF file")
    (tmp_path / "text.gguf").write_text("<html>")
    refused("text.gguf", "is no GGUF file: it doesn't begin with GGUF")
    part = write(tmp_path / "m-00002-of-00003.gguf", a_model(tied=True), own_head=False)
    refused(part.name, "llama-gguf-split --merge")
    whole = part.rename(tmp_path / "m-00001-of-00001.gguf")
    check_folders({"model": {"name": str(whole)}, "references": {"teacher": {"name": str(whole)}}})


def test_a_file_that_transformers_cannot_read_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    file = gguf.GGUFWriter(str(path), "nobodys")
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.close()
    with pytest.raises(QTargetError, match=r"transformers can't read .*m\.gguf"):
        gguf_file.converted(str(path))
    assert [left.suffix for left in (tmp_path / "cache" / "models").iterdir()] == [".lock"]
