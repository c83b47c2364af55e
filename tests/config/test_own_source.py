"""A part outside the package: its file is a part of a run's identity. Machines that lack what is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qtarget.config.composing import compose_config
from qtarget.config.identity import config_hash
from qtarget.config.own_source import edited_since, own_sources
from qtarget.config.run_config import RunConfig
from qtarget.errors import QTargetError
from qtarget.run import ranks

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")


@pytest.fixture
def own_part(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reliance of the user's in the folder that they work in; it is never imported."""
    monkeypatch.syspath_prepend(str(workdir))
    file = workdir / "my_own_parts.py"
    file.write_text("class Floored:\n    floor = 0.1\n")
    return file


def composed(*overrides: str) -> Any:
    return compose_config("train", ["model=tiny", "target.reliance._target_=my_own_parts.Floored", *overrides])


def test_an_edited_design_is_another_run(own_part: Path) -> None:
    before = config_hash(composed())
    assert config_hash(composed()) == before
    own_part.write_text("class Floored:\n    floor = 0.2\n")
    assert config_hash(composed()) != before
    assert config_hash(composed(), with_sources=False) == config_hash(composed(), with_sources=False) != before


def test_a_package_and_a_class_within_a_class_have_a_file(own_part: Path) -> None:
    (own_part.parent / "my_package").mkdir()
    (own_part.parent / "my_package/__init__.py").write_text("")
    (own_part.parent / "my_package/parts.py").write_text("x = 1\n")
    targets = ["my_own_parts.Outer.Inner", "my_package.parts.Kind", "qtarget.design.reliance.Constant", "torch.nn.ReLU"]
    found = own_sources({"a": {"_target_": targets[0]}, "b": [{"_target_": name} for name in targets[1:]]})
    assert set(found) == {"my_own_parts", "my_package.parts"}


def test_ours_and_what_is_installed_change_no_identity() -> None:
    assert own_sources({"a": {"_target_": "lightning.Trainer"}, "b": {"_target_": "json.JSONDecoder"}}) == {}
    assert own_sources({"a": {"_target_": "no_such_module.Part"}}) == {}


def test_a_tracker_of_ones_own_changes_no_identity(own_part: Path) -> None:
    tracked = composed(
        "tracker._target_=my_own_parts.Tracker", "target.reliance._target_=qtarget.design.reliance.Policy"
    )
    before = config_hash(tracked)
    own_part.write_text("y = 2\n")
    assert config_hash(tracked) == before


def test_the_file_that_was_edited_is_said(own_part: Path, tmp_path: Path) -> None:
    sources, alike = own_sources(composed()), config_hash(composed(), with_sources=False)
    for name, stored in (("old", alike), ("other", "another")):
        (tmp_path / name).mkdir()
        record = {"hash_without_sources": stored, "sources": {"my_own_parts": "an older one"}}
        (tmp_path / name / "result.json").write_text(json.dumps(record))
    (line,) = edited_since(sources, alike, tmp_path / "new")
    assert line == f"my_own_parts.py was edited since {tmp_path / 'old'}: this is a new run"
    assert edited_since({}, alike, tmp_path / "new") == []
    assert edited_since(sources, alike, tmp_path / "old") == []  # an unfinished run that goes on


@NO_GPU
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("trainer.devices=9999", r"trainer\.devices=9999 starts a process a device, and this machine has no GPU and"),
        ("trainer.accelerator=gpu", r"trainer\.accelerator=gpu, and this machine has none: it has cpu; set"),
        ("trainer.accelerator=cuda", r"trainer\.accelerator=cuda, and this machine has none"),
        ("trainer.accelerator=quantum", r"trainer\.accelerator=quantum is not known: auto, gpu, or one of cpu, "),
    ],
)
def test_what_this_machine_lacks_is_refused_before_data_is_read(given: str, message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        ranks.check_devices(RunConfig.compose(["model=tiny", given]).trainer)


@pytest.mark.parametrize("given", ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.accelerator=auto"])
def test_what_this_machine_has_passes(given: str) -> None:
    trainer = RunConfig.compose(["model=tiny", given]).trainer
    if torch.cuda.device_count() != 1 or trainer.devices == 1:
        ranks.check_devices(trainer)


@pytest.mark.parametrize("given", ["abc", "-1", "1.5", "null", "4294967296"])
def test_a_seed_that_is_none_is_refused_with_what_is_allowed(given: str) -> None:
    """numpy takes 32 bits, and Lightning 2.6 refuses more once the run has begun."""
    with pytest.raises(QTargetError, match="seed must be a whole number of at least 0 and at most 4294967295, got"):
        RunConfig.compose([f"seed={given}", "model=tiny"])
