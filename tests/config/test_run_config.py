"""The typed configuration: what Hydra composes, read once, and the same when it is written again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import qtarget
from hydra_plugins.qtarget_launchers import RayLauncher, SlotsLauncher, SlurmLauncher
from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import compose_config, conf_dir, config_container, options
from qtarget.config.identity import config_hash
from qtarget.config.manual import GROUPS, classes, every_key, manual
from qtarget.config.names import nodes
from qtarget.config.references import KINDS, KINDS_OF
from qtarget.config.run_config import NODES, RunConfig
from qtarget.evaluate.server_settings import ServerConfig
from qtarget.settings import settings_of

SOURCE = Path(qtarget.__file__).parent
SMALL = ["model=tiny", "data=arithmetic"]
CHOICES = {
    "experiments": [
        ["model.name=tiny", f"experiment={path.relative_to(conf_dir() / 'experiment').with_suffix('')}"]
        for path in sorted((conf_dir() / "experiment").rglob("*.yaml"))
        if "common" not in path.parts
    ],
    "data": [[f"data={name}", "model=tiny"] for name in options("data") if name not in ("files", "jsonl", "hub")],
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
    if kind.NODE_KEY == "eval":
        defaults["server"] = ServerConfig().container()
    assert defaults == composed


@pytest.mark.parametrize("kind", KINDS)
def test_a_references_yaml_and_its_dataclass_have_the_same_defaults(kind: str) -> None:
    role = next(role for role, kinds in KINDS_OF.items() if kind in kinds)
    chosen = ["model/adapter=lora", f"reference@references.{role}={kind}"]
    assert KINDS[kind](role=role).container() == config_container(compose_config("train", chosen))["references"][role]


def test_every_key_says_what_it_is() -> None:
    for key, one in every_key():
        assert one.about, key
        assert one.kind.text, key


def test_the_manual_is_that_of_the_dataclasses() -> None:
    """Where it isn't: python -m qtarget.config.manual > docs/configuration.md"""
    page = SOURCE.parents[1] / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == manual()


def test_every_key_of_every_option_is_on_the_page() -> None:
    """Where one isn't: write the field of its class as setting(default, what it may be, "what it is")."""
    documented = {key for key, _ in every_key()}
    for group, place, *_ in GROUPS:
        for part, shipped in classes(group).items():
            for option, values in shipped.items():
                keys = {f"{place}.{key}" for key in values if key not in ("about", "kind")}
                assert keys <= documented, f"{group}={option} ({part.__name__}): {keys - documented}"


def test_every_key_of_the_page_is_set_without_a_plus() -> None:
    """Where one isn't: give the option's yaml the key, at its default. Parts are options of other groups."""
    parts = {place for _, place, *_ in GROUPS}
    for group, place, *_ in GROUPS:
        for part, shipped in classes(group).items():
            keys = {one.key for one in settings_of(part) if f"{place}.{one.key}" not in parts}
            for option, values in shipped.items():
                assert keys - set(values) <= FIXED.get(f"{group}={option}", set()), f"{group}={option}"


FIXED = {"data/source=arithmetic": {"tasks"}, "data/source=gsm_symbolic": {"tasks"}}
"""Options that are one task of reasoning-gym: several are data=reasoning_gym."""


COMPOSED = {
    "usual": [],
    "a design with an objective": ["target=kd_jsd", "reference@references.teacher=cached"],
    "parts of its own": ["target=asft", "target/reliance=threshold", "tracker=wandb", "model/adapter=lora"],
    "a hub's data": ["data=gsm8k", "data/noise=random_token", "eval=small", "optim=equal_norm"],
    "a flaw": ["reference/flaw@references.prior.flaw=token_bias", "trainer=dry", "eval=retention"],
}


@pytest.mark.parametrize("overrides", COMPOSED.values(), ids=COMPOSED)
def test_no_key_of_a_composed_configuration_is_missing_from_the_page(overrides: list[str]) -> None:
    composed = config_container(compose_config("train", ["model=tiny", *overrides]))
    documented = {key for key, _ in every_key()}
    for place, node in nodes(composed):
        if place.partition(".about")[0] != place or place.startswith(("eval.benchmarks", "eval.retention")):
            continue  # what a design says of itself; sources below names of the user's
        role = re.sub(r"^references\.\w+", "references.ROLE", place)
        keys = {f"{role}.{key}".lstrip(".") for key in node if key not in ("_target_", "kind", "about", "references")}
        inside = {one for one in keys if isinstance(node[one.rpartition(".")[2]], dict)}
        free = place in documented  # a mapping whose keys are another library's
        assert free or keys - inside <= documented, sorted(keys - inside - documented)


def test_every_key_of_a_launcher_is_on_the_page() -> None:
    documented = {key for key, _ in every_key()}
    for path in sorted((conf_dir() / "hydra" / "launcher").glob("*.yaml")):
        yaml_keys = {
            f"hydra.launcher.{place}.{key}".replace("..", ".")
            for place, node in nodes(yaml.safe_load(path.read_text()))
            for key, value in node.items()
            if key != "_target_" and not (isinstance(value, dict) and value)
        }
        assert yaml_keys <= documented, f"{path.stem}: {yaml_keys - documented}"


WRONG = {
    "data.rows=abc": r"data.rows must be a whole number of at least 0, got 'abc'",
    "data.rows=-1": r"data.rows must be a whole number of at least 0, got -1",
    "data.packing=0": r"data.packing must be a whole number of at least 1, got 0",
    "data.supervise=none": r"data.supervise must be one of all, last, got 'none'",
    "data.noise=typo": r"data.noise=typo sets a value, not an option: write data/noise=typo",
    "data.noise.rate=2": r"data.noise.rate must lie in \[0, 1\], got 2",
    "data.source.seed=x": r"data.source.seed must be a whole number of at least 0, got 'x'",
    "data.source.options=[1]": r"data.source.options can't be \[1\]: .*: set data.source.options.KEY=VALUE",
    "data.source.limit=-1": r"unknown key 'data.source.limit'",
    "+data.source.limit=-1": r"unknown key 'data.source.limit'.*Allowed: .*trust_scorer",
    "target.reliance.value=abc": r"target.reliance.value must lie in \[0, 1\]: 'abc' is neither a number",
    "target.reliance.value=1.5": r"target.reliance.value must lie in \[0, 1\], got 1.5",
    "model.adapter=lora": r"model.adapter=lora sets a value, not an option: write model/adapter=lora",
    "references=7": r"references=7 sets a value: write reference@references.ROLE=OPTION",
    "target.reliance=half": r"target.reliance=half sets a value, not an option: write target/reliance=half",
    "target.normalize=rows": r"target.normalize must be one of tokens, kept, weight_sum, sequences, got 'rows'",
    "optim.lr=abc": r"optim.lr must lie in \[0, 1\], got 'abc'",
    "optim.betas=[0.9]": r"optim.betas must be a list of 2, each: number in \[0, 1\], got \[0.9\]",
    "optim.betas=0.9": r"optim.betas must be a list of 2, each: number in \[0, 1\], got 0.9: write optim.betas=\[A,B\]",
    "tracker.mode=on": r"tracker.mode must be one of offline, online, shared, disabled, got 'on'",
    "tracker.artifact=1.5": r"tracker.artifact must be one of True, False, got 1.5",
    "tracker.project=[]": r"tracker.project is text, and \[\] is none",
    "model.adapter.rank=0": r"model.adapter.rank must be a whole number of at least 1, got 0",
    "model.adapter.targets={q: 1}": "model.adapter.targets must be a name or list, each: a name, got ",
    "references.prior.flaw.sigma=-1": r"references.prior.flaw.sigma must lie in \[0, ∞\), got -1",
}


@pytest.mark.parametrize(("override", "message"), WRONG.items(), ids=WRONG)
def test_a_wrong_value_is_answered_with_its_key_and_what_is_allowed(override: str, message: str) -> None:
    parts = ["tracker=wandb", "model/adapter=lora", "reference/flaw@references.prior.flaw=noisy_weights"]
    with pytest.raises(qtarget.QTargetError, match=message):
        RunConfig.compose([*SMALL, *parts, override])


LAUNCHED = {
    "slots": ({"slots": 0}, r"hydra.launcher.slots must be a whole number of at least 1, got 0"),
    "devices": ({"devices": 3}, r"hydra.launcher.devices must be a list, each: whole number ≥ 0, got 3"),
    "retry": ({"retry": "x"}, r"hydra.launcher.retry must be a whole number of at least 0, got 'x'"),
}


@pytest.mark.parametrize(("settings", "message"), LAUNCHED.values(), ids=LAUNCHED)
def test_a_wrong_value_of_a_launcher_is_answered_before_a_job_starts(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(qtarget.QTargetError, match=message):
        SlotsLauncher(**settings)
    with pytest.raises(qtarget.QTargetError, match=r"hydra.launcher.timeout_min must be a whole number of at least 1"):
        SlurmLauncher(timeout_min="long")
    with pytest.raises(qtarget.QTargetError, match=r"hydra.launcher.ray.remote.num_gpus must lie in \[0, ∞\), got -1"):
        RayLauncher(ray={"init": {"address": None}, "remote": {"num_gpus": -1}})


def test_values_of_ones_own_stand_at_the_top_level() -> None:
    cfg = RunConfig.compose([*SMALL, "+mine.rate=0.25", "optim.lr=${mine.rate}"])
    assert (cfg.own, cfg.optim["lr"]) == ({"mine": {"rate": 0.25}}, 0.25)
    with pytest.raises(qtarget.QTargetError, match=r"unknown key 'trainer\.rate'.*stands at the top level"):
        RunConfig.compose([*SMALL, "+trainer.rate=0.25"])


@pytest.mark.parametrize("key", ["checkpoint", "loss"])
def test_a_node_that_is_set_to_a_value_on_the_command_line_is_told(
    key: str, workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its folder is named by a configuration that isn't read yet."""
    Path("outputs/runs").mkdir(parents=True)
    assert qtarget_cli(["train", *SMALL, f"{key}=3"]) == 2
    assert f"{key}=3 sets a value, and {key} has fields: set {key}.FIELD=VALUE" in capfd.readouterr().err


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


def test_micro_batches_follow_the_rows_of_a_step() -> None:
    for spread, expected in (
        ([], 4),
        (["trainer.devices=2"], 2),
        (["trainer.devices=4"], 1),
        (["trainer.devices=2", "trainer.num_nodes=2", "trainer.batch_size=4"], 4),
    ):
        assert RunConfig.compose(["trainer.rows_per_step=64", *spread]).trainer.micro_batches == expected
    for spread, message in (
        (["trainer.devices=8"], r"=64 on 8 devices is 8 rows each, .* trainer.batch_size=16: set trainer.batch_size=8"),
        (["trainer.devices=3"], r"=64 on 3 devices is 21.3333 rows each, .*: take a number of devices that divides it"),
        (["trainer.batch_size=10"], r"=64 on 1 device is 64 rows each, .*=10: set trainer.batch_size=8"),
        (["trainer.accumulate=2"], r"trainer.accumulate=2 say one thing twice: leave trainer.accumulate out"),
    ):
        with pytest.raises(qtarget.QTargetError, match=message):
            RunConfig.compose(["trainer.rows_per_step=64", *spread])
