"""The typed configuration: what Hydra composes, read once, and the same when it is written again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import qtarget
from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import compose_config, conf_dir, config_container, options
from qtarget.config.identity import config_hash
from qtarget.config.manual import manual
from qtarget.config.references import KINDS, KINDS_OF
from qtarget.config.run_config import NODES, RunConfig

SOURCE = Path(qtarget.__file__).parent
SMALL = ["model=tiny", "data=arithmetic"]
CHOICES = {
    "experiments": [
        ["model.name=tiny", f"experiment={path.relative_to(conf_dir() / 'experiment').with_suffix('')}"]
        for path in sorted((conf_dir() / "experiment").rglob("*.yaml"))
        if "common" not in path.parts
    ],
    "data": [[f"data={name}", "model=tiny"] for name in options("data") if name not in ("jsonl", "hub")],
    "eval": [[f"eval={name}", "model=tiny"] for name in options("eval")],
    "references": [
        [*SMALL, "model/adapter=lora", f"reference@references.{role}={kind}"]
        for role, kinds in KINDS_OF.items()
        for kind in kinds
    ],
    "others": [
        [*SMALL, "+mine.rate=0.25", "optim.lr=${mine.rate}"],
        [*SMALL, "tracker=wandb"],
        [*SMALL, "optim=equal_norm", "trainer.epochs=2", "trainer.max_steps=null"],
    ],
}


@pytest.mark.parametrize("overrides", [one for some in CHOICES.values() for one in some], ids=" ".join)
def test_what_is_read_is_written_again(overrides: list[str]) -> None:
    """To the last key: the hash of a run is that of what Hydra composed, before it was read."""
    composed = compose_config("train", overrides)
    cfg = RunConfig.read(composed)
    assert cfg.container() == config_container(composed)
    assert RunConfig.read(cfg.container()) == cfg


def test_the_hash_is_that_of_what_was_composed() -> None:
    for overrides in (SMALL, *CHOICES["others"]):
        composed = compose_config("train", overrides)
        assert RunConfig.read(composed).hash == config_hash(composed)


@pytest.mark.parametrize("kind", NODES, ids=lambda kind: kind.NODE_KEY)
def test_the_yaml_and_the_dataclass_have_the_same_defaults(kind: type) -> None:
    composed = config_container(compose_config("train"))[kind.NODE_KEY]
    defaults = {one.key: one.default for one in kind.settings()}
    if kind.NODE_KEY == "model":
        defaults["name"] = composed["name"]  # each model has its own
    assert defaults == composed


@pytest.mark.parametrize("kind", KINDS)
def test_a_references_yaml_and_its_dataclass_have_the_same_defaults(kind: str) -> None:
    role = next(role for role, kinds in KINDS_OF.items() if kind in kinds)
    chosen = ["model/adapter=lora", f"reference@references.{role}={kind}"]
    assert KINDS[kind](role=role).container() == config_container(compose_config("train", chosen))["references"][role]


def test_every_key_says_what_it_is() -> None:
    for kind in (*NODES, RunConfig, *KINDS.values()):
        for one in kind.settings():
            assert one.about, f"{kind.__name__}.{one.key}"
            assert one.kind.text, f"{kind.__name__}.{one.key}"


def test_the_manual_is_that_of_the_dataclasses() -> None:
    """Where it isn't: python -m qtarget.config.manual > docs/configuration.md"""
    page = SOURCE.parents[1] / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == manual()


def test_values_of_ones_own_stand_at_the_top_level() -> None:
    cfg = RunConfig.compose([*SMALL, "+mine.rate=0.25", "optim.lr=${mine.rate}"])
    assert (cfg.own, cfg.optim["lr"]) == ({"mine": {"rate": 0.25}}, 0.25)
    with pytest.raises(qtarget.QTargetError, match=r"unknown key 'trainer\.rate'.*stands at the top level"):
        RunConfig.compose([*SMALL, "+trainer.rate=0.25"])


def test_a_node_that_is_set_to_a_value_is_told() -> None:
    with pytest.raises(
        qtarget.QTargetError, match=r"loss=off sets a value, and loss has fields: set loss\.FIELD=VALUE"
    ):
        RunConfig.read(config_container(compose_config("train", SMALL)) | {"loss": "off"})


def test_a_record_of_an_earlier_build_has_the_defaults_for_what_it_does_not_know() -> None:
    older = config_container(compose_config("train", SMALL))
    for place, key in (("trainer", "utilisation"), ("eval", "test_on"), ("checkpoint", "every")):
        del older[place][key]
    del older["references"]["old"], older["resume"]
    cfg = RunConfig.read(older)
    assert (cfg.trainer.utilisation, cfg.eval.test_on, cfg.checkpoint.every) == (0.4, "all", None)
    assert (cfg.references["old"].KIND, cfg.resume) == ("none", "auto")


def test_hydras_own_types_are_seen_where_configurations_are_composed_alone() -> None:
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if re.search(r"import .*\b(DictConfig|OmegaConf)\b", path.read_text())
    }
    # composing, completion by Hydra's own, and the base of launchers, which Hydra hands its configuration
    assert found == {"config/composing.py", "config/keys.py", "launch/launcher.py"}


BAD = ["train", *SMALL, "data.rows=16", "data.heldout_rows=4", "trainer.max_steps=1", "model.dtype=bfloat16"]


def test_what_can_not_be_read_is_in_the_record(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(BAD) == 2
    (result,) = (json.loads(path.read_text()) for path in workdir.glob("outputs/runs/*/result.json"))
    assert (result["status"], result["name"]) == ("failed", "sft")
    assert "model.dtype=bfloat16 trains all weights in that dtype" in result["error"]
    assert "bfloat16" in next(workdir.glob("outputs/runs/*/traceback.txt")).read_text()


def test_a_finished_run_that_an_earlier_build_could_read_is_returned(
    workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """08cbad9 trained bfloat16 weights; what it made stays."""
    assert qtarget_cli(BAD) == 2
    (path,) = workdir.glob("outputs/runs/*/result.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "finished", "metrics": {"test/nll": 1.0}}))
    before = path.read_text()
    capfd.readouterr()
    assert qtarget_cli(BAD) == 0
    assert "finished already, not trained again" in capfd.readouterr().out
    assert path.read_text() == before


def test_a_dry_run_of_what_can_not_be_read_leaves_nothing_behind(
    workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert qtarget_cli([*BAD, "trainer=dry"]) == 2
    assert "model.dtype=bfloat16 trains all weights in that dtype" in capfd.readouterr().err
    assert not list(workdir.glob("outputs/runs/*"))


def test_the_help_of_train_says_what_every_key_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["train", "--help"]) == 0
    shown = capsys.readouterr().out.partition("== Keys ==")[2].splitlines()
    keys = {line.partition("=")[0] for line in shown if "=" in line}
    assert {f"{node.NODE_KEY}.{one.key}" for node in NODES for one in node.settings()} <= keys
    assert "trainer.batch_size=16  (whole number ≥ 1)  rows of a micro-batch" in shown
