"""What users do with a Trainer that has a design: adapters, evaluation, logs, checkpoints, masks, examples."""

from __future__ import annotations

import math
import runpy
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny_trainers as tiny
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

import qtarget
from qtarget.errors import QTargetError
from qtarget.model import provide
from qtarget.model.builtin import tiny_tokenizer
from qtarget.model.fingerprint import model_folder
from qtarget.run.export import exported_run
from qtarget.run.stored_config import trained_config

pytestmark = [
    # TRL 1.16's default and peft 0.21 go by names that transformers 5.23 is about to drop
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]
EXAMPLES = Path(__file__).parents[2] / "examples"
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "<|end|>{% endgeneration %}{% else %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def lora(**changes: Any) -> Any:
    return peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **changes})


# PEFT


def test_the_model_with_its_adapter_off_is_the_prior_without_a_second_copy(tmp_path: Path) -> None:
    made = {
        prior: tiny.trained(tiny.sft_trainer(tmp_path, "asft", {"prior": prior}, {"peft_config": lora()}))
        for prior in ("adapter_off", "frozen")
    }
    assert any("lora_B" in name and tensor.any() for name, tensor in made["frozen"].items())
    for name, tensor in made["frozen"].items():
        torch.testing.assert_close(made["adapter_off"][name], tensor, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lora(bias="all"), r"with bias='all' that is not the model that training started from"),
        (lora(init_lora_weights="pissa"), r"with init_lora_weights='pissa' that is not the model"),
        (None, "adapter_off is a PEFT model with its adapter switched off, and this model has none: give peft_config"),
    ],
    ids=["biases", "pissa", "no adapter"],
)
def test_a_model_without_its_adapter_that_is_no_prior_is_refused(config: Any, message: str, tmp_path: Path) -> None:
    model = tiny.tiny().float()
    with pytest.raises(QTargetError, match=message):
        tiny.sft_trainer(tmp_path, "asft", {"prior": "adapter_off"}, {"peft_config": config, "model": model})


@pytest.mark.parametrize("owner", ["trl", "transformers"])
def test_what_a_trainer_with_an_adapter_leaves_is_refused_by_name_with_the_line_that_merges_it(
    owner: str, tmp_path: Path
) -> None:
    """peft 0.21's folder, with the tokenizer beside it from either trainer. The line is run as it stands."""
    base, out = tmp_path / "base", tmp_path / "it's out"
    tiny.tiny().float().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora())
    if owner == "trl":
        trainer = tiny.sft_trainer(tmp_path, "sft", given={"model": model})
    else:
        trainer = tiny.plain_trainer(tmp_path, "sft")
        trainer.model = model
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.add_(0.1 * ("lora_B" in name))
    trainer.save_model(str(out))
    for refuse in (model_folder, lambda name: exported_run(Path(name)), trained_config):
        with pytest.raises(
            QTargetError, match="is an adapter of peft, not a model by itself: merge it into "
        ) as refused:
            refuse(str(out))
    line = str(refused.value).partition(f"name the folder {out}-merged. ")[2]
    python, option, code = shlex.split(line)
    assert (python, option) == ("python", "-c")
    exec(compile(code, "the line", "exec"), {})
    merged = provide.load_policy(provide.resolve(f"{out}-merged"), len(tiny_tokenizer()))
    assert provide.load_tokenizer(provide.resolve(f"{out}-merged")).get_vocab() == tiny_tokenizer().get_vocab()
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged.lm(ids).logits, model.eval()(ids).logits, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(merged.lm(ids).logits, tiny.tiny().float()(ids).logits, atol=1e-2)


def test_the_folder_of_a_trainer_with_checkpoints_alone_is_answered_by_their_names(tmp_path: Path) -> None:
    for step in (5, 20, 100):
        (tmp_path / "out" / f"checkpoint-{step}").mkdir(parents=True)
    with pytest.raises(QTargetError, match=r"holds 3 checkpoints of a Trainer and no model: name one .*-20, .*-100\)"):
        model_folder(str(tmp_path / "out"))


def test_the_adapter_of_a_run_is_answered_by_the_run(tmp_path: Path) -> None:
    for file in ("adapter/adapter_config.json", "checkpoint/config.json"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text("{}")
    with pytest.raises(QTargetError, match=f"name {tmp_path}, whose checkpoint/ has it merged"):
        model_folder(str(tmp_path / "adapter"))


def test_virtual_tokens_are_refused(tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(QTargetError, match="PromptTuningConfig puts virtual tokens before each row"):
        tiny.sft_trainer(tmp_path, "sft", given={"peft_config": config})


# Evaluation and log


def means(lm: Any) -> dict[str, float]:
    """nll, entropy and accuracy of all supervised tokens, row by row from the model's own logits."""
    nll, entropy, hits = [], [], []
    for row in tiny.rows():
        ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logp = lm(ids[None]).logits[0, :-1].log_softmax(-1)[labels != -100]
        labels = labels[labels != -100]
        nll.append(-logp.gather(1, labels[:, None])[:, 0])
        entropy.append(-(logp.exp() * logp).sum(-1))
        hits.append((logp.argmax(-1) == labels).double())
    joined = {"nll": nll, "entropy": entropy, "mean_token_accuracy": hits}
    return {name: float(torch.cat(values).mean()) for name, values in joined.items()}


@pytest.mark.parametrize("make", [tiny.plain_trainer, tiny.sft_trainer])
def test_an_evaluation_measures_every_token_once(make: Any, tmp_path: Path) -> None:
    rows = Dataset.from_list(tiny.rows())
    trainer = make(tmp_path, "dft", {"prior": "frozen"}, per_device_eval_batch_size=3)
    trainer.eval_dataset = rows
    result = trainer.evaluate()
    for name, value in means(trainer.model).items():
        assert result[f"eval_{name}"] == pytest.approx(value, rel=1e-9), name
    assert result["eval_target/kl_prior"] == pytest.approx(0, abs=1e-12)
    assert result["eval_target/reliance"] < 0.1 < result["eval_target/weight"] == 1
    assert trainer.evaluate(rows, metric_key_prefix="other")["other_nll"] == pytest.approx(result["eval_nll"])
    assert trainer.state.log_history[-1]["other_nll"] == pytest.approx(result["eval_nll"])


def test_logits_are_there_where_metrics_want_them(tmp_path: Path) -> None:
    seen = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions.shape)
        labels = prediction.label_ids[:, 1:]
        hits = prediction.predictions[:, :-1].argmax(-1) == labels
        return {"hits": float(np.mean(hits[labels != -100]))}

    trainer = tiny.plain_trainer(tmp_path, "sft")
    trainer.compute_metrics = metrics
    result = trainer.evaluate()
    assert seen[0][0] == 8
    assert seen[0][2] == len(tiny_tokenizer())
    assert result["eval_hits"] == pytest.approx(result["eval_mean_token_accuracy"])


def test_dropout_is_on_in_the_step_and_off_in_the_prior_and_in_evaluations(tmp_path: Path) -> None:
    """adapter_off switches modes around each of its forwards."""
    given = {"peft_config": lora(lora_dropout=0.5), "eval_dataset": Dataset.from_list(tiny.rows())}
    settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    trainer = tiny.sft_trainer(tmp_path, "asft", {"prior": "adapter_off"}, given, **settings)
    layer = trainer.model.get_base_model().model.layers[0]
    seen = []  # (is it the step's own forward, dropout)
    layer.register_forward_hook(
        lambda *_: seen.append((torch.is_grad_enabled(), layer.self_attn.q_proj.lora_dropout["default"].training))
    )
    trainer.train()
    step, prior, evaluation = (True, True), (False, False), [(False, False)] * 2
    assert sorted(seen[:2]) == sorted([step, prior])
    assert seen[2:4] == evaluation
    assert sorted(seen[4:6]) == sorted([step, prior])
    assert seen[6:8] == evaluation


def test_autocast_reaches_the_loss_and_an_evaluation_after_training_works(tmp_path: Path) -> None:
    given = {"model": tiny.tiny().float(), "eval_dataset": Dataset.from_list(tiny.rows())}
    trainer = tiny.sft_trainer(tmp_path, "kd", {"teacher": tiny.teacher().float()}, given, bf16=True)
    dtypes = set()
    trainer.design_loss.policy.decoder.layers[0].mlp.register_forward_hook(lambda *call: dtypes.add(call[2].dtype))
    trainer.train()
    assert dtypes == {torch.bfloat16}
    assert math.isfinite(trainer.evaluate()["eval_nll"])


# Checkpoints


@pytest.mark.parametrize(
    ("design", "changes", "references"),
    [("psft", {}, {"old": "snapshot:3"}), ("dft", {"reliance.alpha": "linear:0:1"}, {})],
    ids=["the old policy", "a schedule"],
)
def test_a_run_that_goes_on_from_a_checkpoint_ends_where_the_whole_one_does(
    design: str, changes: Any, references: Any, tmp_path: Path
) -> None:
    settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4}
    made = qtarget.load_design(design, **changes)
    whole = tiny.trained(tiny.plain_trainer(tmp_path, made, references, **settings))
    again = tiny.plain_trainer(tmp_path, made, references, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    tiny.assert_same(tiny.weights(again.model), whole)
    if design == "psft":
        (tmp_path / "checkpoint-2" / "qtarget_old.safetensors").unlink()
        fresh = tiny.plain_trainer(tmp_path, made, references, **settings)
        with pytest.raises(QTargetError, match="can't read the old policy of the checkpoint"):
            fresh.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# What is supervised is TRL's say


@pytest.mark.parametrize("only", ["assistant_only_loss", "completion_only_loss"])
def test_what_trl_masks_is_context(only: str, tmp_path: Path) -> None:
    talk = [[("user", f"{n}?"), ("assistant", str(n)), ("user", "more"), ("assistant", str(n + 1))] for n in range(8)]
    messages = [[{"role": role, "content": text} for role, text in turns] for turns in talk]
    rows = [{"prompt": turns[:-1], "completion": turns[-1:]} for turns in messages]
    if only == "assistant_only_loss":
        rows = [{"messages": turns} for turns in messages]
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    given = {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer, "model": tiny.tiny().float()}
    ours = tiny.sft_trainer(tmp_path, "sft", given=given, max_steps=1, **{only: True})
    kept = [label for row in ours.train_dataset for label in row["labels"] if label != -100]
    text = tokenizer.decode(kept)
    assert "?" not in text
    assert "more" not in text
    assert text.count("<|end|>") == (16 if only == "assistant_only_loss" else 8)
    theirs = tiny.trl.SFTTrainer(**{**given, "model": tiny.tiny().float()}, args=ours.args)
    tiny.trained(ours), tiny.trained(theirs)
    mine, other = (made.state.log_history[0] for made in (ours, theirs))
    assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_wrapped_packing_cuts_rows_as_trl_does(tmp_path: Path) -> None:
    """packing_strategy="wrapped" (TRL 1.16): documents see each other in rows of max_length; sft is TRL's own loss."""
    settings = {"packing": True, "packing_strategy": "wrapped", "max_length": 64, "max_steps": 1}
    ours = tiny.sft_trainer(tmp_path, "sft", given={"model": tiny.tiny().float()}, **settings)
    theirs = tiny.trl.SFTTrainer(
        tiny.tiny().float(),
        ours.args,
        train_dataset=Dataset.from_list(tiny.rows()),
        processing_class=tiny_tokenizer(),
    )
    tiny.assert_same(tiny.trained(ours), tiny.trained(theirs), atol=2e-5)
    mine, other = (made.state.log_history[0]["loss"] for made in (ours, theirs))
    assert mine == pytest.approx(other, rel=1e-5)


def test_a_part_of_ones_own_reads_a_column_of_the_batch(tmp_path: Path) -> None:
    """Columns are aligned with input_ids; a collator of one's own brings them."""
    trainer = tiny.plain_trainer(tmp_path, replace(qtarget.load_design("sft"), reliance=Told()))
    collate = trainer.data_collator

    def with_column(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(collate(rows))
        return {**batch, "told": batch["input_ids"] % 2 == 0}

    trainer.data_collator = with_column
    labels = [label for row in tiny.rows() for label in row["labels"][1:] if label != -100]
    expected = sum(label % 2 == 0 for label in labels) / len(labels)
    assert trainer.evaluate()["eval_target/reliance"] == pytest.approx(expected)
    trainer.data_collator = collate
    with pytest.raises(QTargetError, match="the batch has no told: give a data_collator"):
        trainer.train()


@dataclass(frozen=True)
class Told:
    """γ_t as the data says."""

    columns = ("told",)

    def __call__(self, view: Any) -> torch.Tensor:
        told: torch.Tensor = view.column("told").to(view.logp.dtype)
        return told


# Examples


@pytest.mark.parametrize("name", ["trl_prior", "trl_teacher", "trainer_prior"])
def test_an_example_runs_and_learns(
    name: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    nll = [float(line[line.index("nll") + 1]) for line in lines]
    assert [line[1] for line in lines] == ["10", "20", "30"]
    assert nll[-1] < nll[0]
