"""model=FOLDER and model=OWNER/NAME: the same run as model=path with the name, on every way to a configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qtarget.cli import run as qtarget_cli
from qtarget.config.completion import completions
from qtarget.config.composing import compose_config, config_container
from qtarget.config.identity import config_hash
from qtarget.config.overrides import override
from qtarget.errors import QTargetError
from qtarget.launch import announcing, multirun
from qtarget.model.builtin import tiny_config


def save_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    tiny_config(260).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(str(folder).encode())


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("./mine", "./mine"),
        ("mine", "mine"),
        ("runs/mine/", "runs/mine"),
        ("'./my model, (2nd)'", "./my model, (2nd)"),
        ("./lr=0.1", "./lr=0.1"),
        ("./été", "./été"),
        ("2026/1e5", "2026/1e5"),
        ("~/qtarget/none", "~/qtarget/none"),
        ("org/name-1.5B", "org/name-1.5B"),
    ],
)
def test_a_folder_or_hub_id_is_the_same_run_as_path_with_that_name(given: str, name: str, workdir: Path) -> None:
    if not name.startswith(("org", "~")):
        save_model(workdir / name)
    cfg = compose_config("train", [f"model={given}", "model/adapter=lora", "model.dtype=bfloat16"], with_hydra=True)
    quoted = name.replace("'", "\\'")
    same = compose_config(
        "train", ["model=path", f"model.name='{quoted}'", "model/adapter=lora", "model.dtype=bfloat16"]
    )
    assert cfg.model == same.model
    assert cfg.model.adapter.rank == 16
    assert cfg.hydra.runtime.choices.model == (name if "/" in name else f"./{name}")
    if not name.startswith("~"):  # where no model is, no identity can be told
        assert config_hash(cfg) == config_hash(same)


def test_an_absolute_path_and_one_above_are_models_too(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(workdir / "train")  # as a yaml of ours is called
    (workdir / "below").mkdir()
    monkeypatch.chdir(workdir / "below")
    above, absolute = (compose_config("train", [f"model={name}"]) for name in ("../train", workdir / "train"))
    assert (above.model.name, absolute.model.name) == ("../train", str(workdir / "train"))
    assert config_hash(above) == config_hash(absolute)


def test_a_built_in_name_and_a_yaml_of_the_users_go_before_a_folder_of_that_name(workdir: Path) -> None:
    save_model(workdir / "tiny")
    save_model(workdir / "mine")
    (workdir / "conf" / "model").mkdir(parents=True)
    (workdir / "conf" / "model" / "mine.yaml").write_text("defaults: [tiny]\ndtype: bfloat16\n")
    assert compose_config("train", ["model=tiny"]).model.name == "tiny"
    assert compose_config("train", ["model=mine"]).model.dtype == "bfloat16"
    assert compose_config("train", ["model=./tiny"]).model.name == "./tiny"
    assert compose_config("train", ["model=./mine"]).model.name == "./mine"
    assert compose_config("train", ["model=tiny"]).model.name == "tiny"


def test_a_multirun_mixes_built_in_models_folders_and_hub_ids(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(workdir / "lr=0.1")
    ran: list[Any] = []
    monkeypatch.setattr(multirun, "_run_or_dry", lambda composed, *_: ran.append(config_container(composed)) or {})
    monkeypatch.setattr(announcing, "_check", lambda *_: announcing.CheckedJob())  # the hub isn't asked
    assert multirun.launch(["-m", "model=tiny,./lr=0.1,org/name", "model.dtype=bfloat16"]) == 0
    assert [(cfg["model"]["name"], cfg["model"]["dtype"]) for cfg in ran] == [
        ("tiny", "bfloat16"),
        ("./lr=0.1", "bfloat16"),
        ("org/name", "bfloat16"),
    ]


@pytest.mark.parametrize("name", ["./lr=0.1", "org/name", "tiny", "./it's, [odd]"])
def test_a_point_of_a_sweep_is_a_model_by_name(name: str, workdir: Path) -> None:
    assert compose_config("train", [override("model", name)]).model.name == name


@pytest.mark.parametrize("command", ["train", "data", "cache"])
def test_the_configuration_of_a_command_shows_the_model(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli([command, "--cfg", "job", "model=org/name"]) == 0
    assert "name: org/name\n" in capsys.readouterr().out


def test_a_mistyped_name_is_answered_by_the_built_in_ones_and_by_how_a_folder_is_written(workdir: Path) -> None:
    with pytest.raises(QTargetError) as error:
        compose_config("train", ["model=tinny"])
    told = str(error.value)
    assert "unknown model 'tinny': did you mean 'tiny'? Allowed: llama3_1_8b, " in told
    assert told.endswith("of that name is here, ./NAME; a model of the hub OWNER/NAME")


def test_a_folder_without_a_model_is_answered_as_with_path(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (workdir / "empty").mkdir()
    (workdir / "notes").mkdir()
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        (workdir / "notes" / name).touch()
    for name, what in (
        ("./nowhere", f"there is no such folder below {workdir}"),
        ("/nowhere/at/all", "there is no such folder"),
        ("./empty", "the folder holds nothing, and no config.json"),
        ("./notes", "the folder holds a.txt, b.txt, c.txt, …, and no config.json"),
    ):
        for key in ("model={}", "target=kd reference@references.teacher=frozen references.teacher.name={}"):
            assert qtarget_cli(["train", "model=tiny", *key.format(name).split()]) == 2
            assert f"qtarget: no model at {name}: {what}. Name a folder with config.json" in capfd.readouterr().err


def test_a_slash_at_the_end_says_that_a_folder_is_meant(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The hub is not asked, which takes half a minute where it is out of reach."""
    for key, name in (("model={}", "./nowhere"), ("references.prior.name={}", "nowhere/")):
        assert qtarget_cli(["train", "model=tiny", key.format("nowhere/")]) == 2
        assert f"qtarget: no model at {name}: there is no such folder below" in capfd.readouterr().err


def test_a_folder_without_a_model_is_found_without_torch(workdir: Path) -> None:
    """Importing it takes seconds."""
    code = (
        "import sys; from qtarget.cli import run; status = run(['train', 'model=./nowhere']); "
        "print(status, {'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-1] == "2 set()"
    assert done.stderr.startswith("qtarget: no model at ./nowhere: ")


def test_folders_are_completed(workdir: Path) -> None:
    save_model(workdir / "runs" / "one")
    (workdir / "rubbish.txt").touch()
    assert completions("qtarget train model=./ru") == ["model=./runs/"]
    assert completions("qtarget data model=tiny,ru") == ["model=tiny,runs/"]
    assert completions("qtarget train model=./runs/one optim.wa") == ["optim.warmup="]


def test_keys_of_names_take_signs_that_hydra_reads_in_quotes_alone() -> None:
    cfg = compose_config("train", ["model=path", "model.name=./lr=0.1", "name=größer", "references.prior.name=~/x"])
    assert (cfg.model.name, cfg.name, cfg.references.prior.name) == ("./lr=0.1", "größer", "~/x")
