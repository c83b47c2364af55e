"""Model yamls and the experiments of the paper, against stand-ins: shrunk models of the same family, a few rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import compose_config, conf_dir, options
from qtarget.config.run_config import RunConfig
from qtarget.data.chat import ChatFormat
from qtarget.data.epochs import steps_an_epoch
from qtarget.data.example import Demonstration
from qtarget.data.lightning_data import SFTData
from qtarget.errors import QTargetError
from qtarget.model import provide
from qtarget.model.builtin import tiny_tokenizer
from qtarget.model.chat_template import give
from qtarget.model.provide import ModelSource
from qtarget.run import estimate
from qtarget.run.plan import check_design, make_plan
from qtarget.units import in_time

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
PAPER = sorted(path.stem for path in (conf_dir() / "experiment/paper").glob("*.yaml"))
LARGE = ("qwen2_5_math_7b", "qwen2_5_7b", "llama3_1_8b")
TARGETS = ("sft", "dft", "kd", "target_sft")
FAMILIES: dict[str, Any] = {"Qwen/Qwen2.5": Qwen2Config, "Qwen/Qwen3": Qwen3Config, "meta-llama": LlamaConfig}
SHRUNK = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": 256,
}
OF_MODELS = {"name", "dtype", "attention", "gradient_checkpointing", "compile", "chat_template", "adapter"}
ONE_DEVICE = ["trainer.devices=1", "trainer.strategy=auto", "trainer.accelerator=cpu"]


def stand_in(folder: Path, name: str, *, weights: bool = False) -> str:
    """A folder with the configuration of a small model of a hub model's family, and where asked its random weights."""
    family = next(config for prefix, config in FAMILIES.items() if name.startswith(prefix))
    config = family(**SHRUNK)
    config.save_pretrained(folder)
    if weights:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    if family is LlamaConfig:
        tokenizer.chat_template = None  # as the pretrained Llamas come
    tokenizer.save_pretrained(folder)
    return str(folder)


def stand_ins(folder: Path, experiment: str, *, weights: bool = False) -> list[str]:
    """Overrides that put small things in place of the experiment's data, policy and teacher."""
    model = compose_config("train", [f"experiment=paper/{experiment}", "data=jsonl", "eval=default"]).model
    rows = [{"prompt": f"say {number}", "completion": f"It is {number}."} for number in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = stand_in(folder / "model", model.name, weights=weights)
    data = ["data=jsonl", f"data.source.path={folder / 'rows.jsonl'}", "eval=default"]
    dropped = ["~data.source.pick=100000"] if experiment.startswith("numina") else []  # a field of data sets of the hub
    return [*data, *dropped, f"model.name={path}", f"references.teacher.name={path}", "trainer.accelerator=cpu"]


# Models


@pytest.mark.parametrize("name", options("model"))
def test_every_model_has_the_same_fields(name: str) -> None:
    model = compose_config("train", [f"model={name}"]).model
    assert set(model) == OF_MODELS
    assert OmegaConf.is_missing(model, "name") == (name == "path")


def test_any_of_them_takes_an_adapter() -> None:
    assert compose_config("train", ["model=llama3_2_3b", "model/adapter=lora"]).model.adapter.rank == 16


@pytest.mark.parametrize("name", ["llama3_2_3b", "llama3_1_8b"])
def test_models_without_a_chat_template_are_given_one(tmp_path: Path, name: str) -> None:
    cfg = compose_config("train", [f"model={name}"]).model
    source = ModelSource(stand_in(tmp_path, cfg.name))
    with pytest.raises(QTargetError, match=r"no chat template.* add model\.chat_template=chatml"):
        ChatFormat(provide.load_tokenizer(source))
    chat = ChatFormat(provide.load_tokenizer(source, cfg.chat_template))
    turns = [("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "2"), ("user", "Sure?"), ("assistant", "Yes")]
    messages = [{"role": role, "content": content} for role, content in turns]
    shown = "System:\nBe brief.\n\nUser:\n1 + 1?\n\nAssistant:\n2<|end|>\n\nUser:\nSure?\n\nAssistant:\n"
    assert chat.render(messages[:-1], reply=True) == shown
    (example,) = chat.encode(Demonstration(messages, row=0))
    taught = [token for token, taught in zip(example.input_ids, example.supervised, strict=True) if taught]
    assert chat.tokenizer.decode(taught) == "2<|end|>Yes<|end|>"


def test_a_template_that_writes_a_first_token_writes_it_once() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|system|>"
    give(tokenizer, compose_config("train", ["model=llama3_1_8b"]).model.chat_template)
    prompt = ChatFormat(tokenizer).render([{"role": "user", "content": "a"}], reply=True)
    assert prompt == "<|system|>User:\na\n\nAssistant:\n"


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    model, ran = tmp_path / "model", tmp_path / "ran"
    tiny_tokenizer().save_pretrained(model)
    code = f"open({str(ran)!r}, 'w')\nfrom transformers import LlamaConfig as C, LlamaForCausalLM as M"
    (model / "code.py").write_text(code)
    auto = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    (model / "config.json").write_text(json.dumps({"model_type": "unheard_of", "auto_map": auto}))
    for load in (provide.load_config, lambda source: provide.load_policy(source, 260)):
        with pytest.raises(QTargetError, match="comes with code of its own, and qtarget runs none"):
            load(ModelSource(str(model)))
    assert not ran.exists()


# How long


@pytest.mark.parametrize(
    ("rows", "batch_size", "accumulate"), [(16, 4, 2), (17, 4, 2), (9, 4, 4), (1, 4, 1), (7, 1, 3)]
)
def test_an_epoch_has_as_many_steps_as_the_loader_has_windows(rows: int, batch_size: int, accumulate: int) -> None:
    (tokens,) = ChatFormat(tiny_tokenizer()).encode(
        Demonstration([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], row=0)
    )
    data = SFTData([tokens] * rows, 0, batch_size=batch_size, accumulate=accumulate, seed=0)
    windows = [batch.window for batch in data.train_dataloader() if batch.window and batch.window.index == 0]
    assert steps_an_epoch(rows, batch_size=batch_size, accumulate=accumulate, world=1) == len(windows)


def test_ranks_share_an_epoch() -> None:
    assert steps_an_epoch(17, batch_size=4, accumulate=1, world=4) == 2  # 5 rows a rank: 4 and 1


@pytest.mark.parametrize(("epochs", "steps"), [(1, 6), (2, 12), (0.5, 3), (0.01, 1), (0, 0)])
def test_epochs_become_steps(epochs: float, steps: int) -> None:
    given = ["model=tiny", "data.rows=24", "data.heldout_rows=2", "trainer.batch_size=4", "trainer.max_steps=null"]
    cfg = RunConfig.compose([*given, f"trainer.epochs={epochs}"])
    plan = make_plan(cfg)
    assert plan.cfg.trainer.max_steps == steps
    assert plan.extent.startswith(
        f"{steps} steps × 4 rows = {epochs:.2g} epochs" if epochs >= 0.5 else f"{steps} steps"
    )
    assert cfg.trainer.max_steps is None


@pytest.mark.parametrize("given", [["trainer.epochs=1"], ["trainer.max_steps=null"]])
def test_exactly_one_of_steps_and_epochs_is_given(given: list[str]) -> None:
    with pytest.raises(QTargetError, match=r"exactly one of trainer\.max_steps and trainer\.epochs says how long"):
        check_design(RunConfig.compose(["model=tiny", *given]))


# What a dry run says of time


def trainer(*overrides: str) -> Any:
    return RunConfig.compose(overrides).trainer


def test_time_is_operations_at_a_share_of_what_devices_can_do() -> None:
    given = ["trainer.devices=8", "trainer.device_tflops=989", "trainer.utilisation=0.4"]
    said = estimate.estimate(trainer(*given), operations=8 * 989e12 * 0.4 * 3.1 * 3600)
    assert said.startswith("about 3.1 h on 8 devices at 40 % of 989 TFLOP/s each (trainer.utilisation, ")
    assert "evaluation left out" in said


def test_a_cpu_is_measured_and_shared_by_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "product_rate", lambda device, precision: {"cpu": 5e11}[device])
    for devices in (1, 2):
        said = estimate.estimate(trainer(f"trainer.devices={devices}", "trainer.accelerator=cpu"), operations=1.2e13)
        assert said.startswith("about 60 s on 1 device at 40 % of the 0.5 TFLOP/s just measured")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_rate_of_this_machine_is_a_number(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "MEASURED_FOR", 0.01)
    monkeypatch.setitem(estimate.SIDES, "cpu", 128)
    rate = estimate.product_rate("cpu", precision)
    assert 0 < rate < math.inf


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.25, "0.25 s"), (59, "59 s"), (600, "10 min"), (5400, "1.5 h"), (4e5, "4.6 days")]
)
def test_times_are_told_in_fitting_units(seconds: float, said: str) -> None:
    assert in_time(seconds) == said


@pytest.mark.parametrize("given", ["trainer.utilisation=0", "trainer.utilisation=40", "trainer.device_tflops=fast"])
def test_what_a_dry_run_assumes_is_checked(given: str) -> None:
    with pytest.raises(QTargetError, match=given.partition("=")[0]):
        check_design(RunConfig.compose(["model=tiny", given]))


def test_a_sharded_policy_takes_its_share_of_each_device() -> None:
    tiny = ["model=tiny", "data.rows=16", "data.heldout_rows=2", "eval.kl_prior=false"]

    def memory(*more: str) -> int:
        plan = make_plan(RunConfig.compose([*tiny, *more]))
        return estimate._memory(plan, provide.outline(plan.model, 260)) - 4 * estimate.CHUNK_BYTES

    eighth = memory("trainer.devices=8", "trainer.strategy=fsdp2", "trainer.accelerator=cpu")
    assert eighth == memory() // 8


# The paper's settings


def test_there_are_ten_settings() -> None:
    models = {"numina_math_cot": 3, "openr1_math_15k": 3, "m23k": 4}
    assert len(PAPER) == 10
    for data, count in models.items():
        assert len([name for name in PAPER if name.startswith(f"{data}_")]) == count


@pytest.mark.parametrize("name", PAPER)
def test_every_setting_has_the_recipe(name: str) -> None:
    cfg = compose_config("train", [f"experiment=paper/{name}", "data=jsonl", "eval=default"])
    steps = cfg.trainer
    assert steps.batch_size * steps.accumulate * steps.devices == 256
    assert (steps.epochs, steps.max_steps, steps.clip) == (1, None, 1.0)
    assert cfg.optim.lr == (2e-5 if name == "m23k_llama3_1_8b" else 5e-5)
    assert (cfg.optim.betas, cfg.optim.weight_decay, cfg.optim.warmup) == ([0.9, 0.95], 0.01, 0.1)
    lengths = {"numina_math_cot": 3072, "openr1_math_15k": 4096, "m23k": 800}
    assert cfg.data.max_length == next(length for data, length in lengths.items() if name.startswith(data))
    assert cfg.experiment_name == f"paper/{name}"
    assert name.endswith(next(model for model in options("model") if name.endswith(f"_{model}")))


@pytest.mark.parametrize("name", PAPER)
def test_every_setting_composes_as_it_stands(name: str) -> None:
    """With its own data and evaluation; under the design that needs most, and one setting under each of the four."""
    defaults = yaml.safe_load((conf_dir() / f"experiment/paper/{name}.yaml").read_text())["defaults"]
    chosen = {key.split("/")[1]: option for item in defaults if isinstance(item, dict) for key, option in item.items()}
    missing = [f"{group}={option}" for group, option in chosen.items() if option not in options(group)]
    if missing:
        pytest.skip(f"no {', '.join(missing)}")
    for target in TARGETS if name == PAPER[0] else ("target_sft",):
        assert RunConfig.compose([f"experiment=paper/{name}", f"target={target}"]).model.name


@pytest.mark.parametrize("name", PAPER)
def test_every_setting_says_what_it_would_take(name: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"experiment=paper/{name}", *stand_ins(workdir, name), "trainer.device_tflops=989"]
    estimate.dry_run(RunConfig.compose([*given, "target=target_sft"]), name)
    said = capsys.readouterr().out
    assert f"{name}, nothing is run:" in said
    assert "1 steps × 36 rows = 1 epochs of 36 rows" in said
    assert "reference   teacher: frozen" in said
    devices = "8 devices" if name.endswith(LARGE) else "1 device"
    assert f"on {devices} at 40 % of 989 TFLOP/s each" in said


def test_a_setting_is_a_multirun_of_its_four_targets(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command; a target on the command line stands in for the four."""
    name = "numina_math_cot_qwen3_1_7b"
    command = ["train", f"experiment=paper/{name}", *stand_ins(workdir, name), "trainer=dry", "trainer.device_tflops=1"]
    assert qtarget_cli(command) == 0
    said = capsys.readouterr().out
    assert [line.split(",")[0] for line in said.splitlines() if "nothing is run" in line] == list(TARGETS)
    assert qtarget_cli([*command, "target=eaft"]) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if "nothing is run" in line] == ["eaft"]


@pytest.mark.parametrize(
    "name",
    [
        "numina_math_cot_qwen3_1_7b",
        pytest.param("openr1_math_15k_qwen2_5_math_1_5b", marks=pytest.mark.slow),
        pytest.param("m23k_llama3_1_8b", marks=pytest.mark.slow),
    ],
)
def test_a_setting_runs_on_a_model_of_its_family(name: str, workdir: Path) -> None:
    torch.manual_seed(0)
    small = ["trainer.batch_size=8", "trainer.accumulate=4", "eval.new_tokens=4", *ONE_DEVICE]
    given = [f"experiment=paper/{name}", *stand_ins(workdir, name, weights=True), *small]
    assert qtarget_cli(["train", *given, "target=dft,target_sft"]) == 0
    results = [json.loads(path.read_text()) for path in workdir.glob(f"outputs/paper/{name}/*/result.json")]
    assert {result["name"]: result["status"] for result in results} == {"dft": "finished", "target_sft": "finished"}
    assert [result["steps"] for result in results] == [math.ceil(results[0]["rows"]["train"] / 32)] * 2
