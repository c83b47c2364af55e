"""The same numbers as functions that other people wrote, and designs inside their trainers."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from worlds import World, load_design

import qtarget
from qtarget import QTargetError, Reference
from qtarget.model.builtin import tiny_config, tiny_model, tiny_tokenizer

SEEDS = range(5)


def ours(name: str, world: World, references: dict[str, Reference] | None = None, **changes: Any) -> tuple[Any, Tensor]:
    logits = world.leaf()
    given = world.given(name)
    given["references"] |= references or {}
    out = qtarget.dense_loss(logits, world.labels, load_design(name, **changes), **given)
    out.total.backward()
    assert logits.grad is not None
    return out, logits.grad


def theirs(loss: Any, world: World) -> tuple[Tensor, Tensor]:
    logits = world.leaf()
    value = loss(logits)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


def batch(seed: int) -> World:
    """A few rows' worth of tokens, some not supervised."""
    world = World.random(seed, count=24, vocab=17)
    labels = world.labels.clone()
    labels[::5] = qtarget.IGNORE
    return world.changed(labels=labels)


@pytest.mark.parametrize("seed", SEEDS)
def test_torchs_label_smoothing_and_kl(seed: int) -> None:
    world = batch(seed)
    out, gradient = ours("label_smoothing", world, **{"reliance.smoothing": 0.2})
    value, expected = theirs(lambda z: F.cross_entropy(z, world.labels, label_smoothing=0.2, reduction="sum"), world)
    torch.testing.assert_close(out.total.detach(), value)
    torch.testing.assert_close(gradient, expected)
    kept = world.labels != qtarget.IGNORE
    _, gradient = ours("kd", world)
    _, expected = theirs(
        lambda z: F.kl_div(z.log_softmax(-1)[kept], world.teacher[kept], reduction="sum", log_target=True), world
    )
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_transformers_label_smoother(seed: int) -> None:
    from transformers.trainer_pt_utils import LabelSmoother

    world = batch(seed)
    out, gradient = ours("label_smoothing", world)
    smoother = LabelSmoother(epsilon=0.1)
    value, expected = theirs(lambda z: smoother({"logits": z[None]}, world.labels[None]), world)
    tokens = int((world.labels != qtarget.IGNORE).sum())
    # it adds up the smooth part in fp32
    torch.testing.assert_close(out.total.detach() / tokens, value, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient / tokens, expected, atol=1e-7, rtol=1e-6)


def from_trl(module: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its experimental parts are experimental
        return importlib.import_module(module)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_trls_generalized_jsd(seed: int, beta: float) -> None:
    world = batch(seed)
    jsd = from_trl("trl.experimental.gkd.gkd_trainer").GKDTrainer.generalized_jsd_loss
    out, gradient = ours("kd_jsd", world, **{"objective.beta": beta})
    value, expected = theirs(
        lambda z: jsd(z[None], world.teacher[None], labels=world.labels[None], beta=beta, reduction="sum"), world
    )
    torch.testing.assert_close(out.total.detach(), value)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_trls_tail_bucket(seed: int) -> None:
    """TRL's sparse forward KL over k tokens and a bucket, on tokens that the teacher stored."""
    sparse = from_trl("trl.experimental.server_distillation.server_distillation_trainer")
    world = World.random(seed, count=24, vocab=17)
    ids = world.teacher.topk(5).indices
    stored = {"teacher": Reference.topk(ids, world.teacher.gather(1, ids), 17)}

    def loss(z: Tensor) -> Tensor:
        valid = torch.ones_like(ids, dtype=torch.bool)
        student, _ = sparse._add_tail_bucket(z.log_softmax(-1).gather(1, ids), valid)
        teacher, mask = sparse._add_tail_bucket(world.teacher.gather(1, ids), valid)
        divergence: Tensor = sparse._jsd_divergence(student, teacher, 0, mask)
        return divergence.sum()

    _, gradient = ours("kd", world, stored)
    _, expected = theirs(loss, world)
    torch.testing.assert_close(gradient, expected)


# Inside their trainers


@pytest.fixture
def quiet() -> Iterator[None]:
    """Trainers warn of things that are theirs to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def rows(count: int = 8) -> list[dict[str, list[int]]]:
    """Rows of unequal length, with a prompt that isn't supervised."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(count):
        ids = torch.randint(3, 200, (5 + 3 * index,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * 3 + ids[3:]})
    return made


def trainer(folder: Path, design: Any, *, batch_size: int, accumulate: int) -> transformers.Trainer:
    """Transformers' Trainer of one plain gradient step."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=accumulate,
        learning_rate=0.5,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    collate = transformers.DataCollatorForSeq2Seq(tiny_tokenizer(), label_pad_token_id=-100)
    return transformers.Trainer(
        tiny_model(tiny_config(len(tiny_tokenizer()))),
        arguments,
        train_dataset=Dataset.from_list(rows()),
        eval_dataset=Dataset.from_list(rows()),
        data_collator=collate,
        compute_loss_func=design,
    )


def trained(folder: Path, design: Any, *, batch_size: int, accumulate: int) -> dict[str, Tensor]:
    """Weights after the step."""
    made = trainer(folder, design, batch_size=batch_size, accumulate=accumulate)
    made.train()
    return {name: tensor.detach().clone() for name, tensor in made.model.named_parameters()}


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", ["sft", "dft", "label_smoothing", "gem"])
def test_transformers_trainer_takes_the_same_step_at_any_accumulation(name: str, tmp_path: Path) -> None:
    loss = qtarget.hf_loss(load_design(name))
    whole = trained(tmp_path, loss, batch_size=8, accumulate=1)
    for batch_size, accumulate in ((2, 4), (1, 8)):
        cut = trained(tmp_path, loss, batch_size=batch_size, accumulate=accumulate)
        for key, tensor in whole.items():
            torch.testing.assert_close(cut[key], tensor, atol=1e-6, rtol=1e-5)
    if name == "sft":
        plain = trained(tmp_path, None, batch_size=8, accumulate=1)
        for key, tensor in whole.items():
            torch.testing.assert_close(plain[key], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", ["sft", "dft", "label_smoothing"])
def test_evaluation_inside_transformers_has_the_scale_of_training(name: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, qtarget.hf_loss(load_design(name)), batch_size=8, accumulate=1)
    evaluated = made.evaluate()["eval_loss"]
    assert made.train().training_loss == pytest.approx(evaluated, rel=1e-5)


@pytest.mark.usefixtures("quiet")
def test_trls_dft_is_ours_and_trl_takes_a_design(tmp_path: Path) -> None:
    trl = from_trl("trl")
    gradients = {}
    for name, loss_type, design in (("theirs", "dft", None), ("ours", "nll", load_design("dft"))):
        arguments = trl.SFTConfig(
            output_dir=str(tmp_path), loss_type=loss_type, use_cpu=True, report_to=[], bf16=False, max_length=64
        )
        trainer = trl.SFTTrainer(
            model=tiny_model(tiny_config(len(tiny_tokenizer()))),
            args=arguments,
            train_dataset=Dataset.from_list(rows()),
            processing_class=tiny_tokenizer(),
            compute_loss_func=design and qtarget.hf_loss(design),
        )
        loader = iter(trainer.get_train_dataloader())
        torch.manual_seed(0)
        inputs = next(loader)
        trainer.model.train()
        trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(57)).backward()
        gradients[name] = {key: p.grad.clone() for key, p in trainer.model.named_parameters() if p.grad is not None}
    assert gradients["ours"].keys() == gradients["theirs"].keys()
    assert any(gradient.any() for gradient in gradients["theirs"].values())
    for key, gradient in gradients["theirs"].items():
        torch.testing.assert_close(gradients["ours"][key], gradient, atol=1e-7, rtol=1e-4)


def test_hf_loss_refuses_what_a_trainer_cannot_give() -> None:
    with pytest.raises(QTargetError, match="this design looks at prior too"):
        qtarget.hf_loss(load_design("one_minus_prior"))
    with pytest.raises(QTargetError, match="looks at negatives too"):
        qtarget.hf_loss(load_design("unlikelihood"))
    with pytest.raises(QTargetError, match="normalize=sequences"):
        qtarget.hf_loss(load_design("sft", normalize="sequences"))
    with pytest.raises(QTargetError, match="follows training progress"):
        qtarget.hf_loss(load_design("dft", **{"reliance.alpha": "linear:0:1"}))
    loss = qtarget.hf_loss(load_design("dft", **{"reliance.alpha": "linear:0:1"}), progress=lambda: 0.0)
    logits, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    torch.testing.assert_close(
        loss({"logits": logits}, labels), F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    )
    whole = qtarget.hf_loss(load_design("talr"))
    whole({"logits": logits}, labels, 8)
    with pytest.raises(QTargetError, match="holds 8 of its 32 tokens: set gradient_accumulation_steps=1"):
        whole({"logits": logits}, labels, torch.tensor(32))


def test_hf_loss_leaves_padded_vocabulary_out() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.randint(5, (2, 5))
    padded = qtarget.hf_loss(load_design("label_smoothing"), true_vocab=5)({"logits": logits}, labels)
    cut = qtarget.hf_loss(load_design("label_smoothing"))({"logits": logits[..., :5]}, labels)
    torch.testing.assert_close(padded, cut)
