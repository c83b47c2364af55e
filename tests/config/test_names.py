"""Names that look like something else are the text that was typed, on every way from the command line to a record."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import (
    _design_override,
    compose_config,
    compose_target,
    conf_dir,
    config_container,
    load_design,
)
from qtarget.config.identity import config_hash
from qtarget.config.names import GROUPS, as_typed
from qtarget.config.run_config import RunConfig
from qtarget.errors import QTargetError
from qtarget.record.trackers import Wandb
from qtarget.run.job_record import run_info
from qtarget.run.stored_config import trained_config

PARSER = OverridesParser.create()


@cache
def composed(*overrides: str) -> DictConfig:
    return compose_config("train", ["model=tiny", *overrides])


# What Hydra 1.3's grammar reads as a number or a truth value: 2026_11_27 is the number 20261127 to it, 1e5 is 100000.0.
LOOKS = ["20261127", "7", "2026_11_27", "1e5", "7300e11", "1.10", "-3", "nan", "-inf", "true", "False", ".5"]
KEYS = {
    "name": "name",
    "experiment_name": "experiment_name",
    "output_dir": "output_dir",
    "tracker.project": "tracker.project",
    "tracker.entity": "tracker.entity",
    "model.name": "model.name",
    "references.prior.name": "references.prior.name",
    "data.source.revision": "data.source.revision",
    "data.source.path": "data.source.path",
}


@pytest.mark.parametrize("text", LOOKS)
def test_a_name_is_the_text_that_was_typed(text: str) -> None:
    given = [f"{key}={text}" for key in KEYS]
    cfg = compose_config("train", ["model=path", "data=gsm8k", "tracker=wandb", *given, f"tracker.tags=[{text},a]"])
    assert [OmegaConf.select(cfg, key) for key in KEYS.values()] == [text] * len(KEYS)
    assert cfg.tracker.tags == [text, "a"]


@given(st.lists(st.sampled_from([*LOOKS, "a", "_", "-", "e", "0", "1"]), min_size=1).map("".join))
def test_no_plain_text_is_anything_else(text: str) -> None:
    values = PARSER.parse_override(*as_typed([f"name={text}"])).value(), PARSER.parse_override(f"seed={text}").value()
    assert values[0] == text
    assert as_typed([f"seed={text}"]) == [f"seed={text}"]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("name=null", None),
        ("name='null'", "null"),
        ("name=None", "None"),
        ("name='7'", "7"),
        ('name="1e5"', "1e5"),
        ("tracker.tags=[]", []),
        ("tracker.tags=[[1],'2',a b]", [["1"], "2", "a b"]),
        ("hydra.launcher.account=1_0", "1_0"),
        ("hydra.launcher.mem_gb=10", 10),
        ("data.source.files.train=2024_05", "2024_05"),
        ("data.noise.marker=1e5", "1e5"),
        ("seed=1_0", 10),
        ("trainer.max_steps=1e3", 1000.0),
    ],
)
def test_null_quotes_lists_and_numbers_stay_what_they_are(argument: str, value: Any) -> None:
    assert PARSER.parse_override(*as_typed([argument])).value() == value


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("data.source.prompt={question}", "{question}"),
        ("data.source.prompt={Question Text}, {n}: 'yes'", "{Question Text}, {n}: 'yes'"),
        ("data.source.prompt=Q: {question}\nA:", "Q: {question}\nA:"),
        ("data.source.prompt='{question}'", "{question}"),
        ("data.source.completion=Réponse", "Réponse"),
        ("data.source.hint=indice n°", "indice n°"),
        ("data.source.train=2026", "2026"),
        ("data.source.messages=null", None),
        ("data.source.heldout=Prüfung.jsonl", "Prüfung.jsonl"),
        ("data.heldout_source=Prüfung.jsonl", "Prüfung.jsonl"),
        ("data.source.key=${seed}", "${seed}"),
    ],
)
def test_columns_and_templates_are_what_was_typed(argument: str, value: Any) -> None:
    (typed,) = as_typed([argument])
    assert PARSER.parse_override(typed).value() == value
    assert as_typed([typed]) == [typed]


def test_columns_are_swept_as_ever() -> None:
    sweep = PARSER.parse_override(*as_typed(["data.source.prompt=a,é"])).value()
    assert isinstance(sweep, ChoiceSweep)
    assert [str(getattr(one, "text", one)) for one in sweep.list] == ["a", "é"]


@pytest.mark.parametrize("multirun", [[], ["-m"]])
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("eval.server=größe", """eval.server=größe can't be read: token recognition error at: 'ö'. Lists are [A,B]"""),
        ("eval.server=größe", """put in quotes of its own: 'eval.server='"'"'größe'"'"''"""),
        ("optim.betas=[0.9,1", "optim.betas=[0.9,1 can't be read: no viable alternative at input '[0.9,1'"),
        ("größe=1", "größe=1: 'größe' is no key or group, which hold ASCII letters, digits and _ . / @"),
    ],
)
def test_what_cannot_be_read_is_answered_by_its_quoted_form(
    multirun: list[str], argument: str, message: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert qtarget_cli(["train", *multirun, "model=tiny", argument]) == 2
    assert message in capsys.readouterr().err


def test_several_names_are_several_texts(capsys: pytest.CaptureFixture[str], workdir: Path) -> None:
    """Hydra's sweeper makes the jobs' command lines: each holds the text."""
    small = ["model=tiny", "trainer=dry", "data.rows=2", "data.heldout_rows=2", "trainer.batch_size=2"]
    assert qtarget_cli(["train", "-m", *small, "name=1e5,2026_11_27"]) == 0
    told = capsys.readouterr().out
    assert "1e5" in told
    assert "2026_11_27" in told
    assert "100000" not in told


def test_an_option_that_is_called_like_a_date_is_chosen_or_missed_by_its_name(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`target=2026_11_27` was the number 20261127, with which Hydra 1.3 raises a bare ValueError."""
    (workdir / "conf/target").mkdir(parents=True)
    (workdir / "conf/target/2026_11_27.yaml").write_text("defaults: [dft]\n")
    assert compose_config("train", ["target=2026_11_27"]).target == compose_config("train", ["target=dft"]).target
    assert qtarget_cli(["train", "target=1e5"]) == 2
    assert "unknown target '1e5'" in capsys.readouterr().err


def test_every_group_picks_its_options_by_name() -> None:
    assert set(GROUPS) == {folder.name for folder in conf_dir().iterdir() if folder.is_dir()} - {"hydra"}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("experiment_name", 20261127, "experiment_name is text, and 20261127 is none: write it in quotes"),
        ("experiment_name", None, "experiment_name is text, and None is none"),
        ("name", 1e5, "name is text, and 100000.0"),
        ("name", True, "name is text, and True"),
        ("output_dir", 2026, "output_dir is text"),
        ("name", ["1", "2"], "name is text"),
        ("data.source", 7, "data.source=7 sets a value, not an option: write data/source=7"),
        ("data.noise", "typo", "data.noise=typo sets a value, not an option: write data/noise=typo"),
        ("references.prior", 7, "references.prior=7 sets a value, not a reference: write reference@references.prior=7"),
        ("tracker.project", 123, "tracker.project is text"),
        ("tracker.tags", "fast", r"tracker.tags is a list of texts, got 'fast': write tracker.tags=\[NAME"),
        ("tracker.tags", [1, "a"], "tracker.tags is a list of texts"),
        ("tracker.tags", None, "tracker.tags is a list of texts"),
        ("references.prior.name", 7, "references.prior.name is text"),
        ("data.source.revision", 7.3e14, "data.source.revision is text"),
        ("data.source.prompt", 7, "data.source.prompt is text"),
        ("data.source.train", 202405, "data.source.train is text"),
        ("data.source.files", {"train": "a.csv", "test": ["b.csv", 2024]}, "data.source.files.test is text, and 2024"),
    ],
)
def test_a_name_that_a_yaml_file_holds_as_something_else_is_refused(place: str, value: Any, message: str) -> None:
    cfg = deepcopy(composed("data=gsm8k", "tracker=wandb"))
    OmegaConf.update(cfg, place, value)
    with pytest.raises(QTargetError, match=message):
        RunConfig.read(cfg)


def test_a_label_may_be_another_keys_number() -> None:
    cfg = RunConfig.compose(["model=tiny", "name=${seed}", "experiment_name=${optim.lr}"])
    info = run_info(cfg.container(), {"target": "sft"}, [])
    assert (info["name"], info["experiment"]) == ("sft", str(cfg.optim["lr"]))  # seed 0 is no name
    assert run_info(RunConfig.compose(["model=tiny", "name=${seed}", "seed=3"]).container(), {}, [])["name"] == "3"


def test_a_tag_without_brackets_is_refused_before_the_job(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It became a tag a letter."""
    assert qtarget_cli(["train", "model=tiny", "tracker=wandb", "tracker.tags=fast"]) == 2
    assert "write tracker.tags=[NAME" in capsys.readouterr().err
    assert not list(workdir.glob("outputs/runs/*/checkpoint"))
    assert not (workdir / "wandb").exists()  # nothing was sent


def record(folder: Path, config: dict[str, Any]) -> None:
    """The folder of a run, as far as its configuration is read."""
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint/config.json").touch()
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


@pytest.mark.parametrize(
    "name", ["1e5", "2026_11_27", "null", "true", "1:30", "no", "~", "0x10", "a ${price}", r"\${x}"]
)
def test_a_name_survives_the_record(name: str, tmp_path: Path) -> None:
    """PyYAML, which writes records, leaves 1e5 without quotes; OmegaConf 2.3's reader takes that for a number."""
    record(tmp_path, config_container(composed()) | {"name": name})
    assert trained_config(str(tmp_path)).name == name


def test_a_record_is_read_with_other_names(tmp_path: Path) -> None:
    record(tmp_path, config_container(composed()))
    cfg = trained_config(str(tmp_path), ["name=7_0", "seed=3", "data.source.task=1e5", "data.max_length=null"])
    assert (cfg.name, cfg.seed, cfg.data["source"]["task"], cfg.data["max_length"]) == ("7_0", 3, "1e5", None)


def test_a_record_of_an_earlier_build_may_hold_a_number(tmp_path: Path) -> None:
    record(tmp_path, config_container(composed()) | {"name": 7})
    assert trained_config(str(tmp_path)).name == "7"


@pytest.mark.parametrize(("text", "number"), [("20261127", 20261127), ("0.5", 0.5)])
def test_runs_whose_name_was_a_number_keep_their_folders(text: str, number: float) -> None:
    """Build 08cbad9 hashed the number that Hydra made of it; where it printed otherwise the folder was another one."""
    for key in ("experiment_name", "name"):
        cfg = compose_config("train", ["model=tiny", f"{key}={text}"])
        before = deepcopy(composed())
        before[key] = number
        assert (cfg[key], config_hash(cfg)) == (text, config_hash(before))
        assert config_hash(composed()) != config_hash(cfg)


def test_none_of_python_is_null_in_a_design() -> None:
    """Hydra reads `None` as a text of four letters."""
    design = compose_target("label_smoothing", [_design_override("reliance.smoothing", None)])
    assert design["reliance"]["smoothing"] is None
    assert load_design("dft", **{"reliance.alpha": 1e-05}) != load_design("dft", **{"reliance.alpha": 1e5})


def test_wandb_takes_them(workdir: Path) -> None:
    """Its client, 0.31.0, refuses a number for a name, a group and a tag."""
    cfg = compose_config("train", ["tracker=wandb", "tracker.project=123", "tracker.tags=[1,a]", "name=7"])
    sink = Wandb(project=cfg.tracker.project, tags=list(cfg.tracker.tags))
    info = {"name": cfg.name, "role": "design", "experiment": "20261127", "choices": {}, "config_hash": "abc"}
    sink.start(workdir, info, {})
    run = sink._run
    assert (run.name, run.project, run.group, run.tags) == ("7", "123", "20261127", ("1", "a"))
    sink.finish({}, failed=False)
