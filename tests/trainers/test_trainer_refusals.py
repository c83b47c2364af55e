"""What a Trainer with a design can't do is said before anything is trained, with what to do."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_trainers as tiny
import torch
import transformers
import yaml

import qtarget
from qtarget import extras
from qtarget.config.composing import compose_target
from qtarget.config.design_file import design_of
from qtarget.errors import QTargetError
from qtarget.model.builtin import tiny_tokenizer
from qtarget.model.provide import UnknownModelError
from qtarget.trainers.collated import batch_of
from qtarget.trainers.trainer_settings import check_given, check_trainer

REFUSED = {
    'loss_type can\'t be honoured.*design="dft"': {"loss_type": "dft"},
    "label_smoothing_factor can't be honoured.*reliance.smoothing": {"label_smoothing_factor": 0.1},
    "use_liger_kernel can't be honoured.*use_kernels": {"use_liger_kernel": True},
    "torch_compile can't be honoured": {"torch_compile": True},
    "activation_offloading can't be honoured.*activation_checkpointing": {"activation_offloading": True},
    "deepspeed can't be honoured.*DDP": {"deepspeed": "zero3.json"},
    "fsdp can't be honoured.*qtarget train trainer.strategy=fsdp2": {"fsdp": "full_shard"},
    "parallelism_config can't be honoured": {"parallelism_config": object()},
    "average_tokens_across_devices=False can't": {"average_tokens_across_devices": False, "world_size": 2},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_setting_that_cannot_be_honoured_is_named(message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        check_given({"args": SimpleNamespace(**REFUSED[message])})


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # TRL 1.16's default
def test_what_is_usual_is_taken() -> None:
    check_given({})
    check_given({"args": tiny.trl.SFTConfig(output_dir="x", use_cpu=True, bf16=False, report_to=[])})


def test_another_loss_beside_a_design_is_refused_before_trl_warns_of_it(tmp_path: Path) -> None:
    loss = qtarget.hf_loss(qtarget.load_design("sft"))
    with pytest.raises(QTargetError, match="compute_loss_func can't be honoured: the design is the loss"):
        tiny.sft_trainer(tmp_path, "sft", given={"compute_loss_func": loss})
    with pytest.raises(QTargetError, match="model_init can't be honoured"):
        tiny.QTargetTrainer(model_init=tiny.tiny, design="sft")
    with pytest.raises(QTargetError, match="chunk_size must be"):
        tiny.QTargetTrainer(tiny.tiny(), design="sft", chunk_size=0)


def test_a_mixture_of_experts_loses_no_loss_of_its_router_in_silence(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(vocab_size=len(tiny_tokenizer()), num_key_value_heads=2, **sizes)
    with pytest.raises(QTargetError, match=r"load-balancing loss of its router.*router_aux_loss_coef=0.0"):
        tiny.sft_trainer(tmp_path, "sft", given={"model": transformers.MixtralForCausalLM(config)})
    model = transformers.MixtralForCausalLM(config)
    trainer = tiny.sft_trainer(tmp_path, "sft", given={"model": model}, router_aux_loss_coef=0.0, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(trainer.state.log_history[0]["nll"], rel=1e-5)


def test_images_in_the_data_set_and_several_gpus_in_a_process_are_refused() -> None:
    usual = {"is_model_parallel": False, "args": SimpleNamespace(n_gpu=1), "model": object()}
    for changed, message in (
        ({"_is_vision_dataset": True}, "the data set has images"),
        ({"args": SimpleNamespace(n_gpu=2)}, "one process sees 2 GPUs.*torchrun"),
        ({"is_model_parallel": True}, "device_map spreads the model over several devices"),
    ):
        with pytest.raises(QTargetError, match=message):
            check_trainer(SimpleNamespace(**usual | changed))


ROLES: dict[str, tuple[str, Any]] = {
    "this design looks at the prior: give references=.*adapter_off": ("one_minus_prior", {}),
    "this design looks at the teacher: give": ("kd", {"prior": "frozen"}),
    "this design looks at the old: .*snapshot:N": ("psft", None),
    "doesn't look at the teacher: leave": ("sft", {"teacher": "frozen"}),
    "the role of a reference must be one of": ("sft", {"priors": "frozen"}),
    "'teacher'.* is a model, or a model's name.*; frozen is not": ("kd", {"teacher": "frozen"}),
    "snapshot:N takes a whole number": ("psft", {"old": "snapshot:x"}),
    "N of snapshot:N must be": ("psft", {"old": "snapshot:0"}),
    "frozen:3 is not": ("sft", {"prior": "frozen:3"}),
    "'prior'.* is .frozen.*; got int": ("sft", {"prior": 3}),
    "'prior'.: did you mean 'adapter_off'. It is .frozen.*folder; can't load the model 'adapter'": (
        "sft",
        {"prior": "adapter"},
    ),
    "can't load the model|no model at": ("kd", {"teacher": "./nowhere"}),
}


@pytest.mark.parametrize("message", ROLES)
def test_references_that_are_missing_or_wrong_are_named(message: str, tmp_path: Path) -> None:
    design, references = ROLES[message]
    with pytest.raises(QTargetError, match=message):
        tiny.plain_trainer(tmp_path, design, references)


def test_an_unknown_model_is_said_alike_in_the_process_that_waits_for_another() -> None:
    error = UnknownModelError("can't load the model 'x'", "Give a folder")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "can't load the model 'x'. Give a folder"
    assert again.reason == error.reason


def test_a_reference_by_name_is_loaded_and_one_that_is_trained_itself_is_refused(tmp_path: Path) -> None:
    trainer = tiny.plain_trainer(tmp_path, "kd", {"teacher": "tiny"})
    own = trainer.design_loss.references["teacher"].policy
    assert all(not weight.requires_grad for weight in own.parameters())
    model = tiny.tiny()
    with pytest.raises(QTargetError, match="the teacher shares weights with the model that is trained"):
        tiny.sft_trainer(tmp_path, "kd", {"teacher": model}, {"model": model})
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_design_is_a_name_a_file_or_an_object(tmp_path: Path) -> None:
    expected = qtarget.load_design("dft")
    whole = tmp_path / "whole.yaml"
    whole.write_text(yaml.safe_dump(compose_target("dft")))
    run = tmp_path / "config.yaml"
    run.write_text(yaml.safe_dump({"target": compose_target("dft"), "seed": 0}))
    mine = tmp_path / "target" / "mine.yaml"
    mine.parent.mkdir()
    shipped = Path(qtarget.__file__).parents[2] / "conf" / "target" / "dft.yaml"
    mine.write_text(shipped.read_text())
    for design in ("dft", expected, whole, str(run), mine, str(mine), shipped):
        assert design_of(design) == expected


def test_what_is_no_design_is_refused(tmp_path: Path) -> None:
    def written(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    for design, message in (
        (3, "a design is a name"),
        ("dtf", "unknown target 'dtf': did you mean 'dft'"),
        (tmp_path / "none.yaml", "can't read the design"),
        (written("broken.yaml", "a: ["), "can't read the design"),
        (written("list.yaml", "[1]"), "it holds list, not keys"),
        (written("other.yaml", "a: 1"), "is no design: it has neither a defaults list"),
        (written("mine.yaml", "defaults: []"), "move it to .*target/mine.yaml"),
        (written("target/dft.yaml", "defaults: []"), "a design that ships with qtarget is called 'dft' too"),
    ):
        with pytest.raises(QTargetError, match=message):
            design_of(design)


# Batches


def test_a_batch_of_anything_but_text_is_refused() -> None:
    ids = torch.tensor([[1, 2, 3]])
    text = {"input_ids": ids, "labels": ids}
    for changed, message in (
        ({"pixel_values": torch.ones(1, 3)}, "the batch has pixel_values, which a policy of text doesn't read"),
        ({"attention_mask": torch.ones(1, 1, 3, 3)}, r"attention_mask \(1, 1, 3, 3\) must be \[B, T\]"),
        ({"position_ids": torch.arange(2)[None]}, r"position_ids \(1, 2\) must be"),
    ):
        with pytest.raises(QTargetError, match=message):
            batch_of({**text, **changed})
    with pytest.raises(QTargetError, match="the batch has no labels: give a data_collator"):
        batch_of({"input_ids": ids})


def test_rows_move_to_the_left_and_first_tokens_of_documents_are_nobodys_labels() -> None:
    batch = batch_of(
        {
            "input_ids": torch.tensor([[0, 0, 5, 6, 7, 8]]),
            "labels": torch.tensor([[9, 9, 5, 6, 7, 8]]),
            "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]]),
            "position_ids": torch.tensor([[1, 1, 3, 4, 3, 4]]),
        }
    )
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 0, 0]]
    assert batch.labels.tolist() == [[6, -100, 8, -100, -100, -100]]
    assert batch.position_ids is not None
    assert batch.position_ids[0, :4].tolist() == [0, 1, 0, 1]


# The extra


def test_a_missing_trl_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in ("trl", "transformers") else known(name))
    monkeypatch.delitem(sys.modules, "qtarget.trl")
    with pytest.raises(QTargetError, match=r"qtarget.trl needs transformers, trl: pip install 'qtarget\[trl\]'"):
        importlib.import_module("qtarget.trl")
    with pytest.raises(QTargetError, match=r"qtarget.QTargetTrainerMixin needs transformers: pip install"):
        qtarget.QTargetTrainerMixin  # noqa: B018
