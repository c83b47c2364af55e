"""Prompts and answers that run past a model's positions: refused before training where the model would fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_row_keys import TEMPLATE, TOOL
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from qtarget import QTargetError
from qtarget.cli import run as qtarget_cli
from qtarget.config.benchmarks import Benchmarks
from qtarget.data.example import Demonstration
from qtarget.data.module import Prepared
from qtarget.model.builtin import tiny_tokenizer
from qtarget.model.provide import ModelSource, context_length, is_bounded
from qtarget.run.row_checks import check_answer_length

LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": None, "eos_token_id": None}
OWN = {"max_position_embeddings": 16}
# transformers 5.23: learned rows (GPT-2, OPT, GPT-Neo, BioGPT), tables of sines (CTRL, GPT-J, CodeGen) and of
# distances (MPT) end; rotary positions, Falcon's, XGLM's sines and BLOOM's ALiBi are computed for any length.
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {**GPT2, "n_positions": 16},
    "gpt_bigcode": {**GPT2, "n_positions": 16},
    "ctrl": {**GPT2, "n_positions": 16, "dff": 64},
    "gptj": {**GPT2, "n_positions": 16, "rotary_dim": 4},
    "codegen": {**GPT2, "n_positions": 16, "n_ctx": 16, "rotary_dim": 4},
    "gpt_neo": {**OWN, "hidden_size": 32, "num_layers": 2, "attention_types": [[["global"], 2]], "num_heads": 4},
    "opt": {**LLAMA, **OWN, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "biogpt": {**LLAMA, **OWN},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 16},
    "llama": {**LLAMA, **OWN},
    "gpt_neox": {**LLAMA, **OWN},
    "falcon": {**LLAMA, **OWN},
    "xglm": {**OWN, "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
}


def saved_config(folder: Path, kind: str, **changes: Any) -> Any:
    config = CONFIG_MAPPING[kind](**{"vocab_size": 261, **KINDS[kind], **changes})
    config.save_pretrained(folder)
    return config


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_called_bounded_where_it_fails_beyond_its_context(kind: str, tmp_path: Path) -> None:
    config = saved_config(tmp_path, kind)
    assert context_length(config) == 16
    lm = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        lm(input_ids=torch.arange(16)[None], use_cache=False)
        try:
            lm(input_ids=torch.arange(17)[None], use_cache=False)
        except (IndexError, RuntimeError):
            fails = True
        else:
            fails = False
    assert is_bounded(ModelSource(str(tmp_path)), 261, 16) == fails


def test_the_context_is_read_where_the_configuration_has_it() -> None:
    """Gemma 3 keeps it in its text part, MPT calls it max_seq_len; BLOOM has none."""
    text = {"text_config": {**LLAMA, "max_position_embeddings": 77, "vocab_size": 99}}
    assert context_length(CONFIG_MAPPING["gemma3"](**text)) == 77
    assert context_length(CONFIG_MAPPING["mpt"](max_seq_len=55)) == 55
    assert context_length(CONFIG_MAPPING["gpt2"](n_positions=44)) == 44
    assert context_length(CONFIG_MAPPING["bloom"]()) == 2**20


def test_the_tools_of_a_prompt_count(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    saved_config(tmp_path, "gpt2", n_positions=64)
    talk = [{"role": "user", "content": "weather?"}, {"role": "assistant", "content": "sunny"}]
    entry = {"verifier": "exact", "answer": "sunny"}
    for tools, fits in (([], True), ([TOOL], False)):
        row = Demonstration(talk, row=1, tools=tools, entry=entry)
        prepared = Prepared([], [], [row], {}, [])
        given = (5, ModelSource(str(tmp_path)), tokenizer, prepared, Benchmarks())
        if fits:
            check_answer_length(*given)
            continue
        with pytest.raises(
            QTargetError, match=r"has 64 positions, and the longest prompt of the held-out rows has \d{3}"
        ):
            check_answer_length(*given)


def model(folder: Path, kind: str, positions: int) -> None:
    """A random one of a kind with the tiny model's tokenizer; a prompt of arithmetic has 60 to 90 tokens."""
    name = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    config = saved_config(folder, kind, **{name: positions})
    tokenizer = tiny_tokenizer()
    config.vocab_size = len(tokenizer)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


SMALL = ["model=path", "model.name=made", "data.rows=16", "data.heldout_rows=4", "data.source.system=null"]
SMALL += ["trainer.max_steps=1", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.eval_every=0"]
SMALL += ["eval.kl_prior=false", "checkpoint.save=false", "trainer.batch_size=4"]
BENCHMARK = ["eval.problems_in_training=2", "+data/source@eval.benchmarks.sums.source=arithmetic"]


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("gpt2", ["eval.new_tokens=200"], "the model has 150 positions, and the longest prompt of the held-out rows"),
        ("opt", ["eval.new_tokens=130"], "that up to 130 new ones follow: set eval.new_tokens="),
        (
            "gpt2",
            ["eval.new_tokens=130", *BENCHMARK, "+eval.benchmarks.sums.rows=3", "data.heldout_rows=0"],
            "the longest prompt of eval.benchmarks.sums has",
        ),
    ],
)
def test_answers_that_cannot_fit_are_refused_before_training(
    kind: str, overrides: list[str], message: str, workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model(workdir / "made", kind, 150)
    assert qtarget_cli(["train", *SMALL, *overrides]) == 2
    assert message in (said := capfd.readouterr().err)
    assert "Traceback" not in said
    assert not list(workdir.glob("outputs/runs/*/metrics.jsonl")) or not any(
        path.stat().st_size for path in workdir.glob("outputs/runs/*/metrics.jsonl")
    )


def test_the_longest_answer_that_fits_is_written(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The number that the message names is the largest one that works: its last token is never read."""
    model(workdir / "made", "gpt2", 150)
    assert qtarget_cli(["train", *SMALL, "eval.new_tokens=200"]) == 2
    most = int(capfd.readouterr().err.partition("eval.new_tokens=")[2].split()[0])
    assert qtarget_cli(["train", *SMALL, f"eval.new_tokens={most + 1}"]) == 2
    assert qtarget_cli(["train", *SMALL, f"eval.new_tokens={most}"]) == 0


def test_a_model_that_goes_on_beyond_its_context_is_warned_of(workdir: Path) -> None:
    model(workdir / "made", "llama", 150)
    with pytest.warns(UserWarning, match="150 positions.* it goes on beyond them"):
        assert qtarget_cli(["train", *SMALL, "eval.new_tokens=130"]) == 0
