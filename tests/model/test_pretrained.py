"""The real pretrained model, from the installed package's GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qtarget.cli import run as qtarget_cli
from qtarget.model import builtin, gguf_file, provide

pytestmark = [
    pytest.mark.slow,
    pytest.mark.pretrained,
    pytest.mark.xdist_group("pretrained"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTARGET_CACHE", str(cache))


def test_conversion_gives_an_ordinary_model(cache: Path) -> None:
    source = provide.resolve("smollm2_135m")
    assert Path(source.location).is_relative_to(cache)
    assert not list((cache / "models").glob(".*"))
    model = AutoModelForCausalLM.from_pretrained(source.location)
    tokenizer = AutoTokenizer.from_pretrained(source.location)
    assert not hasattr(model.config, "quantization_config")
    assert model.dtype == torch.float32
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0, prompt["input_ids"].shape[1] :])


def test_a_converted_model_is_not_converted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = provide.resolve("smollm2_135m")

    def never(*args: Any) -> None:
        raise AssertionError("converted twice")

    monkeypatch.setattr(gguf_file, "_convert", never)
    assert provide.resolve("smollm2_135m") == first


def test_a_conversion_cut_short_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTARGET_CACHE", str(tmp_path))

    def cut_short(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", cut_short)
    with pytest.raises(KeyboardInterrupt):
        builtin.embedded_model()
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["smollm2-135m-instruct.lock"]


def test_a_few_steps_of_target_sft_lower_the_nll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model as its own teacher, bf16 products: the nll of the answers falls, the KL to the prior starts at 0."""
    monkeypatch.chdir(tmp_path)
    overrides = [
        "target=target_sft",
        "reference@references.teacher=frozen",
        "references.teacher.name=smollm2_135m",
        "trainer.max_steps=6",
        "trainer.batch_size=8",
        "trainer.eval_every=3",
        "data.rows=48",
        "data.heldout_rows=8",
        "eval.problems_in_training=8",
        "checkpoint.save=false",
    ]
    assert qtarget_cli(["train", *overrides]) == 0
    (folder,) = tmp_path.glob("outputs/runs/*")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    start, *_, end = [line for line in lines if "val/nll" in line]
    assert start["val/kl_prior"] == 0.0
    assert end["val/nll"] < start["val/nll"]
    assert end["val/kl_prior"] > 0
