"""hydra/launcher=slots: a process a job, a device or a share of the cores each, crashes that cost one job alone."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import pytest

from qtarget.cli import run
from qtarget.config.parsers import gpus
from qtarget.errors import QTargetError
from qtarget.launch import slots

pytestmark = pytest.mark.usefixtures("eight_devices")

BROKEN = """
import os
import sys

class Raising:
    def __call__(self, view):
        raise RuntimeError("this design is broken")

class Killed:
    def __call__(self, view):
        os._exit(137)
"""
SMALL = ["model=tiny", "trainer.max_steps=1", "data.rows=16", "data.heldout_rows=2", "eval.new_tokens=2"]
SMALL += ["checkpoint.save=false", "trainer.precision=32-true", "eval.kl_prior=false", "trainer.eval_every=0"]


@pytest.fixture
def broken_designs(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two designs of the user's own that don't survive training."""
    (workdir / "broken.py").write_text(BROKEN)
    (workdir / "conf/target").mkdir(parents=True)
    for name in ("Raising", "Killed"):
        (workdir / f"conf/target/{name.lower()}.yaml").write_text(f"_target_: broken.{name}\n")
    monkeypatch.syspath_prepend(workdir)  # the identity of a job is that of its own code too
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(workdir), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return workdir


def records(folder: Path) -> dict[str, dict[str, object]]:
    found = (json.loads(path.read_text()) for path in folder.glob("outputs/runs/*/result.json"))
    return {record["name"]: record for record in found}


@pytest.mark.slow
def test_a_crash_costs_its_job_alone_and_a_second_start_runs_only_that(
    broken_designs: Path, warm: None, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = "sft,dft,raising,killed"
    command = ["train", "-m", "hydra/launcher=slots", "hydra.launcher.devices=[0,1]", f"target={targets}", *SMALL]
    assert run(command) == 1
    told = capsys.readouterr().err
    assert "this design is broken" in told
    assert "killed by SIGKILL (out of memory?)" in told
    assert "2 of 4 jobs failed" in told
    found = records(broken_designs)
    assert sum(record["status"] == "finished" for record in found.values()) == 2
    assert {record["cuda_visible_devices"] for record in found.values()} == {"0", "1"}
    started = {name: record["started"] for name, record in found.items()}
    assert run(command) == 1
    assert capsys.readouterr().err.count("finished already") == 2
    again = {name for name, record in records(broken_designs).items() if record["started"] != started[name]}
    assert again == {"raising", "killed"}


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would see none, and train on the CPU."""
    monkeypatch.setattr(slots, "_visible_devices", lambda: ["4", "5"])
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots.make_slots(None, [1, 0])] == ["5", "4"]
    with pytest.raises(QTargetError, match=r"no CUDA device 2,3 here: this process may use the numbers 0 to 1"):
        slots.make_slots(None, [0, 2, 3])
    monkeypatch.setattr(slots, "_visible_devices", list)
    with pytest.raises(QTargetError, match="this process may use no CUDA devices"):
        slots.make_slots(None, [0])


def test_a_slot_is_a_device_and_devices_may_be_shared() -> None:
    assert [slot.environment for slot in slots.make_slots(None, [3, 5])] == [
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"CUDA_VISIBLE_DEVICES": "5"},
    ]
    shown = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots.make_slots(3, [3, 5])]
    assert shown == ["3", "5", "3"]


def test_without_devices_the_cores_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_visible_devices", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 4, 6})
    assert [slot.cores for slot in slots.make_slots(2, None)] == [(0, 2, 6), (1, 4)]
    assert [slot.environment["OMP_NUM_THREADS"] for slot in slots.make_slots(2, None)] == ["3", "2"]
    assert len(slots.make_slots(None, None)) == 1
    assert all(slot.cores for slot in slots.make_slots(9, None))


@pytest.mark.parametrize(
    ("count", "devices", "message"),
    [
        (0, None, "slots must be"),
        (None, [], "devices is empty"),
        (1.5, [0], "slots must be"),
        (None, 1, "is a list"),
        (None, "0-3", "is a list"),
    ],
)
def test_slots_that_cannot_be_are_refused(count: int | None, devices: Any, message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        slots.make_slots(count, devices)


@pytest.mark.parametrize(
    ("code", "words"), [(-9, "SIGKILL (out of memory?)"), (137, "SIGKILL"), (-15, "SIGTERM"), (3, "exit code 3")]
)
def test_exit_codes_are_told_in_words(code: int, words: str) -> None:
    assert words in slots.exit_code_in_words(code)


@pytest.mark.parametrize(
    ("text", "found"), [("0-3", [0, 1, 2, 3]), ("0,1", [0, 1]), ("0-1,6", [0, 1, 6]), ("5", [5]), ("2, 4", [2, 4])]
)
def test_devices_are_read(text: str, found: list[int]) -> None:
    assert gpus(text) == found


@pytest.mark.parametrize("text", ["", "a", "3-1", "0,,1", "0-", "0,0", "0-2,1", "-1"])
def test_what_names_no_devices_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="write 0-7 or 0,1"):
        gpus(text)


@pytest.mark.parametrize(("launcher", "package"), [("submitit_slurm", "submitit"), ("ray", "ray")])
def test_a_launcher_whose_package_is_missing_says_what_to_install(
    launcher: str, package: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert run(["train", "-m", f"hydra/launcher={launcher}", "target=sft,dft", *SMALL]) == 2
    assert f"pip install 'qtarget[{launcher.removeprefix('submitit_')}]'" in capsys.readouterr().err
    assert not records(workdir)


@pytest.mark.slow
def test_a_job_whose_files_were_edited_since_the_multirun_began_is_refused_in_words(
    workdir: Path, warm: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its process composes it anew. Nothing is trained under the name of another job, and it isn't tried again."""
    own = workdir / "conf" / "experiment" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\noptim: {lr: 1.0e-3}\n")
    start = slots.JobStarter.start

    def start_after_an_edit(*arguments: Any, **options: Any) -> Any:
        own.write_text("# @package _global_\noptim: {lr: 5.0e-3}\n")
        return start(*arguments, **options)

    monkeypatch.setattr(slots.JobStarter, "start", start_after_an_edit)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = ["train", "-m", "hydra/launcher=slots", "hydra.launcher.slots=1", "hydra.launcher.retry=2"]
    assert run([*command, "experiment=mine", "seed=0,1", *SMALL]) == 2
    said = capsys.readouterr().err
    assert said.count("has changed since its multirun began") == 2
    assert said.count("starts in") == 2
    assert {record["status"] for record in records(workdir).values()} == {"failed"}
