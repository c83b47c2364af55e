"""Tokens without an embedding, and padding that has none: right, or said before training with both numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from resuming import only_run
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from qtarget import encode
from qtarget.cli import run as qtarget_cli
from qtarget.model.builtin import tiny_config, tiny_model, tiny_tokenizer
from qtarget.run.row_checks import with_pad

RUN = ["train", "model=path", "model.name=base", "data=jsonl", "data.source.path=rows.jsonl", "data.rows=null"]
RUN += ["data.heldout_rows=null", "trainer.batch_size=4", "trainer.max_steps=2", "trainer.precision=32-true"]
RUN += ["trainer.accelerator=cpu", "trainer.eval_every=0"]


def model(folder: Path, words: PreTrainedTokenizerFast, rows: int) -> None:
    tiny_model(tiny_config(rows)).save_pretrained(folder)
    words.save_pretrained(folder)


def rows(text: str = "ok") -> None:
    told = [{"prompt": f"say {n}", "completion": text if n == 7 else "fine, thank you" * (n % 3)} for n in range(20)]
    Path("rows.jsonl").write_text(
        "\n".join(json.dumps(row | {"completion": row["completion"] or "no"}) for row in told)
    )


def longer(count: int) -> PreTrainedTokenizerFast:
    words = tiny_tokenizer()
    words.add_tokens([f"[{n}]" for n in range(count)])
    return words


@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_row_that_uses_a_token_without_an_embedding_is_refused(
    count: int, workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model(workdir / "base", longer(count), 260)
    rows("[0]")
    assert qtarget_cli([*RUN]) == 2
    said = capfd.readouterr().err
    assert f"the tokenizer has {260 + count} tokens and the model has 260 embedding rows: [0] have none" in said
    assert "Traceback" not in said


def test_tokens_without_an_embedding_that_no_row_uses_don_t_matter(workdir: Path) -> None:
    model(workdir / "base", longer(4), 260)
    rows()
    assert qtarget_cli([*RUN]) == 0


def test_a_teacher_with_fewer_rows_is_named(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model(workdir / "base", longer(2), 262)
    model(workdir / "teacher", longer(2), 260)
    rows("[1]")
    teacher = ["target=kd", "reference@references.teacher=frozen", "references.teacher.name=teacher"]
    assert qtarget_cli([*RUN, *teacher]) == 2
    assert "has 262 tokens and the teacher has 260 embedding rows: [1] have none" in capfd.readouterr().err


def test_a_padding_token_without_an_embedding_is_replaced(workdir: Path) -> None:
    """The usual add_special_tokens({"pad_token": "<pad>"}) without resizing: padding is never seen."""
    words = tiny_tokenizer()
    words.add_special_tokens({"pad_token": "<pad>"})
    assert words.pad_token_id == 260
    model(workdir / "base", words, 260)
    rows()
    assert qtarget_cli([*RUN]) == 0
    saved = only_run(Path("outputs")) / "checkpoint"
    assert json.loads((saved / "generation_config.json").read_text())["pad_token_id"] == 256


def test_a_tokenizer_without_pad_and_eos_pads_with_its_end_of_turn(workdir: Path) -> None:
    words = tiny_tokenizer()
    words.eos_token = words.pad_token = None
    assert with_pad(words, {"the model": 260}).pad_token == "<|end|>"
    words.eos_token = words.pad_token = None
    model(workdir / "base", words, 260)
    rows()
    assert qtarget_cli([*RUN]) == 0


def test_a_padding_token_that_has_an_embedding_stays() -> None:
    words = tiny_tokenizer()
    words.pad_token = "<|user|>"
    assert with_pad(words, {"the model": 260}).pad_token == "<|user|>"
    assert with_pad(words, {"the model": None}).pad_token == "<|user|>"


def test_padding_has_an_embedding_in_the_teacher_too(workdir: Path) -> None:
    words = tiny_tokenizer()
    words.add_special_tokens({"pad_token": "<pad>"})
    assert words.pad_token_id == 260
    model(workdir / "base", words, 261)
    model(workdir / "teacher", words, 260)
    rows()
    teacher = ["target=kd", "reference@references.teacher=frozen", "references.teacher.name=teacher"]
    assert qtarget_cli([*RUN, *teacher]) == 0


def test_ids_that_no_token_has_are_counted(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As of tokenizers with holes: here 260 tokens, of which k is number 299."""
    model(workdir / "base", tiny_tokenizer(), 280)
    path = Path("base/tokenizer.json")
    kept = json.loads(path.read_text())
    kept["model"]["vocab"]["k"] = 299
    path.write_text(json.dumps(kept))
    rows()
    assert qtarget_cli([*RUN]) == 2
    refusal = capfd.readouterr().err
    assert "the tokenizer has 300 tokens and the model has 280 embedding rows: k have none" in refusal
    assert "resize_token_embeddings(300)" in refusal


def test_a_tokenizer_without_offsets_is_trained_as_it_is_asked(workdir: Path) -> None:
    """ByT5's is Python alone in transformers 5.23: it can't tell where in a text a token stands."""
    words = ByT5Tokenizer(extra_ids=0)
    words.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    words.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert not words.is_fast
    model(workdir / "base", words, len(words))
    talk = [{"role": "user", "content": "a é"}, {"role": "assistant", "content": "ok"}]
    (example,) = encode(words, talk)
    prompt = words("<|im_start|>user\na é<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    reply = words("ok<|im_end|>", add_special_tokens=False)["input_ids"]
    assert list(example.input_ids) == prompt + reply
    assert [one for one, taught in zip(example.input_ids, example.supervised, strict=True) if taught] == reply
    rows()
    assert qtarget_cli([*RUN]) == 0
    saved = json.loads((only_run(Path("outputs")) / "checkpoint/generation_config.json").read_text())
    assert saved["eos_token_id"][0] == reply[-1]


# The dtype of what is trained


@pytest.mark.parametrize("more", [[], ["trainer.precision=bf16-mixed"], ["optim.warmup=0.5"]])
def test_weights_in_bf16_are_refused_with_the_way_on(
    more: list[str], workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert qtarget_cli(["train", "model=tiny", "model.dtype=bfloat16", *more]) == 2
    said = capfd.readouterr().err
    assert "model.dtype=bfloat16 trains all weights in that dtype" in said
    assert "Set model.dtype=float32 with trainer.precision=bf16-mixed" in said


def test_weights_in_bf16_are_trained_where_that_is_allowed(workdir: Path) -> None:
    model(workdir / "base", tiny_tokenizer(), 260)
    rows()
    bf16 = ["model.dtype=bfloat16", "trainer.precision=32-true", "eval.kl_prior=false"]
    assert qtarget_cli([*RUN, *bf16, "optim.allow_bf16_rounding=true"]) == 0
    assert "allow_bf16_rounding: true" in (only_run(Path("outputs")) / "config.yaml").read_text()


def test_steps_of_a_length_are_refused_for_bf16_layers_beside_an_adapter(
    workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model(workdir / "base", tiny_tokenizer(), 260)
    rows()
    beside = ["model.dtype=bfloat16", "model/adapter=lora", "+model.adapter.options.modules_to_save=[lm_head]"]
    assert qtarget_cli([*RUN, *beside, "optim=equal_norm", "optim.allow_bf16_rounding=true"]) == 2
    assert "optim.update_norm keeps the length of a step, and 1 weights are trained in bf" in capfd.readouterr().err


def test_bf16_weights_under_an_adapter_are_trained_in_fp32(workdir: Path) -> None:
    model(workdir / "base", tiny_tokenizer(), 260)
    rows()
    assert qtarget_cli([*RUN, "model.dtype=bfloat16", "model/adapter=lora", "trainer.precision=bf16-mixed"]) == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.precision=16-mixed", "trainer.precision must be one of 32-true, bf16-mixed"),
        ("trainer.precision=16-true", "trainer.precision must be one of 32-true, bf16-mixed"),
        ("model.dtype=float16", "model.dtype must be one of float32, bfloat16"),
        ("checkpoint.dtype=float16", "checkpoint.dtype must be one of trained, float32, bfloat16"),
        ("references.prior.dtype=float16", "references.prior.dtype must be one of float32, bfloat16"),
    ],
)
def test_fp16_is_refused_by_name(override: str, message: str, workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["train", "model=tiny", override]) == 2
    assert message in capfd.readouterr().err
