"""A design's formula and paper are its own: one that changes a shipped design says from which, and what it changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qtarget.config.composing import compose_config, compose_target, config_container
from qtarget.config.derived import derived
from qtarget.run.show import describe


def own(folder: Path, monkeypatch: pytest.MonkeyPatch, **design: object) -> None:
    """A yaml of the working folder, mine."""
    path = folder / "conf/target/mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(design, sort_keys=False))
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("name", ["sft", "dft", "target_sft", "sft_kl", "beyond_log", "gem", "kd_jsd"])
def test_a_shipped_design_is_its_own(name: str) -> None:
    assert derived(compose_target(name)) is None
    assert derived(config_container(compose_config("train", [f"target={name}", "model=tiny"]))["target"]) is None


def test_a_yaml_that_begins_with_a_shipped_design_says_what_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(tmp_path, monkeypatch, defaults=["dft", "_self_"], reliance={"alpha": 0.5})
    shown = describe("mine")
    assert shown["derived from"] == "dft, changed: reliance.alpha=0.5 (was 1.0)"
    assert "formula" not in shown
    assert shown["formula of dft"] == describe("dft")["formula"]
    assert shown["paper of dft"] == describe("dft")["paper"]


def test_another_part_is_named_by_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(tmp_path, monkeypatch, defaults=["dft", {"override residual": "uniform"}, "_self_"])
    assert describe("mine")["derived from"] == "dft, changed: residual=Uniform (was Self)"


def test_a_formula_of_ones_own_stands_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"formula": "L = mine", "paper": "none", "year": 2026, "differs": "nothing"}
    own(tmp_path, monkeypatch, defaults=["dft", "_self_"], reliance={"alpha": 0.5}, about=about)
    shown = describe("mine")
    assert shown["formula"] == "L = mine"
    assert "derived from" not in shown


def test_a_change_on_the_command_line_is_one_too() -> None:
    changes = ["target.reliance.alpha=0.5"]
    assert describe("dft", changes)["derived from"] == "dft, changed: reliance.alpha=0.5 (was 1.0)"
