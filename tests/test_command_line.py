"""The command line: any order of arguments, help everywhere."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from qtarget.app.cli import COMMANDS
from qtarget.app.cli import run as qtarget_cli

ORDERS = {
    "config last": ["target=dft", "seed=7", "--cfg", "job"],
    "config first": ["--cfg", "job", "target=dft", "seed=7"],
    "config between": ["target=dft", "--cfg", "job", "seed=7"],
    "config as one word": ["target=dft", "--cfg=job", "seed=7"],
    "a short option": ["-c", "job", "target=dft", "seed=7"],
    "two options": ["--resolve", "target=dft", "--cfg", "job", "seed=7"],
    "an own folder": ["--config-dir", "mine", "target=dft", "--cfg", "job", "seed=7"],
}


@pytest.fixture(params=[True, False], ids=["./conf", "no ./conf"])
def folder(request: pytest.FixtureRequest, workdir: Path) -> Path:
    if request.param:
        (workdir / "conf" / "target").mkdir(parents=True)
    (workdir / "mine").mkdir()
    return workdir


@pytest.mark.parametrize("case", ORDERS)
def test_arguments_come_in_any_order(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["train", *ORDERS[case]]) == 0
    shown = capsys.readouterr().out
    assert "seed: 7\n" in shown
    assert "L = −p(y)·log p(y)" in shown or "qtarget.design.reliance.Power" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "target=sft,dft"],
        ["target=sft,dft", "-m"],
        ["seed=0", "-m", "target=sft,dft"],
        ["--multirun", "seed=1,2"],
    ],
    ids=" ".join,
)
def test_a_multirun_is_one_wherever_m_stands(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to Hydra's launch of two jobs, which refuse themselves: nothing is trained."""
    assert qtarget_cli(["train", *arguments, "model=tiny", "trainer.precision=none"]) == 2
    assert "2 of 2 jobs failed" in capsys.readouterr().err


@pytest.mark.parametrize("topic", [[], ["searchpath"]])
def test_info_takes_a_topic_or_none(topic: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["train", "--info", *topic, "target=dft"]) == 0
    assert "Config search path" in capsys.readouterr().out


def test_a_package_is_shown_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["train", "--package", "optim", "--cfg", "job", "optim.lr=0.5"]) == 0
    assert "lr: 0.5" in capsys.readouterr().out


def test_a_users_part_is_found_in_every_order(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "conf" / "optim").mkdir(parents=True)
    (workdir / "conf" / "optim" / "mine.yaml").write_text("defaults: [adamw]\nlr: 0.125\n")
    for arguments in (["optim=mine", "--cfg", "job"], ["--cfg", "job", "optim=mine"]):
        assert qtarget_cli(["train", *arguments]) == 0
        assert "lr: 0.125" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["first", "last"])
def test_every_command_has_help(command: str, place: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"train": ["seed=1"], "cache": ["detail=label"], "evaluate": ["seed=1"]}.get(command, [])
    for option in ("--help", "-h"):
        arguments = [option, *words] if place == "first" else [*words, option]
        assert qtarget_cli([command, *arguments]) == 0
        assert len(capsys.readouterr().out.split()) > 5
    assert not (workdir / "outputs").exists()


@pytest.mark.parametrize("command", ["doctor", "cache", "completion", "show"])
def test_words_that_a_command_does_not_take_are_refused(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli([command, "nonsense"]) == 2
    assert "nonsense" in capfd.readouterr().err or command == "completion"


def test_paths_of_compare_may_stand_around_its_options(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        (workdir / name).mkdir()
    assert qtarget_cli(["compare", "one", "--format", "md", "two"]) == 2
    assert "one, two" in capfd.readouterr().err


@pytest.mark.parametrize("module", ["qtarget", "qtarget.app.cli"])
def test_the_command_is_a_module_too(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(sys, "argv", ["qtarget", "--version"])
    monkeypatch.delitem(sys.modules, "qtarget.app.cli")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("qtarget ")
