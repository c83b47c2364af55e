"""What a design says about itself, read from its yaml without composing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtarget.config.composing import about, compose_target, list_designs, options

FIELDS = ("formula", "paper", "year", "differs")


def test_a_shipped_design_says_what_its_composed_yaml_says() -> None:
    assert len(options("target")) > 40
    for name in options("target"):
        composed = compose_target(name)["about"]
        assert about(name) == {field: composed[field] for field in FIELDS}, name


def test_a_design_of_the_users_says_what_it_inherits_and_a_dash_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "conf" / "target"
    own.mkdir(parents=True)
    (own / "sharper.yaml").write_text("defaults: [dft, _self_]\nabout: {paper: ours}\n")
    (own / "silent.yaml").write_text(
        "defaults: [{reliance: power}, {residual: self}, {weight: one}, _self_]\n"
        "_target_: qtarget.math.target.Mixture\n"
    )
    monkeypatch.chdir(tmp_path)
    assert about("sharper") == {**about("dft"), "paper": "ours"}
    assert about("silent") == dict.fromkeys(FIELDS, "–")


def test_a_file_with_the_name_of_a_shipped_design_is_described_as_it_is_composed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "conf" / "target"
    own.mkdir(parents=True)
    (own / "dft.yaml").write_text("defaults: [sft, _self_]\nabout: {paper: ours}\n")
    monkeypatch.chdir(tmp_path)
    assert list_designs()["dft"] == {field: compose_target("dft")["about"][field] for field in FIELDS}
