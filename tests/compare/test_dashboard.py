"""`qtarget dashboard` against a W&B server in memory: what it has saved, read back, names what runs really log."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_wandb import INFO, SMALL
from wandb_server import ENTITY, Backend

from qtarget.cli import run as qtarget_cli
from qtarget.compare.workspace import USUAL, axes, find_project, parts
from qtarget.plot.looks import GREY, looks
from qtarget.record.trackers import Wandb

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
NOISY = ["target=one_minus_prior", "data/noise=wrong_answer", "data.noise.rate=0.5"]
CONFIG = ("xAxis", "yAxis", "accessor")


def two_runs(backend: Backend) -> None:
    """Runs of two designs that differ in their learning rate too."""
    for name, rate in (("sft", 1e-4), ("dft", 1e-3)):
        run = backend.run(name, ENTITY, "designs")
        held = {"optim.lr": rate, "seed": 0, "output_dir": name, "target": name, "experiment": name}
        run.config = {key: {"value": value} for key, value in held.items()}


@pytest.fixture
def saved(wandb_server: Backend, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The specifications of the workspace and the report by their type, and what the command has printed."""
    two_runs(wandb_server)
    assert qtarget_cli(["dashboard", "--project", f"{ENTITY}/designs", "--name", "First look"]) == 0
    views = {view["type"]: view for view in wandb_server.views.values()}
    assert {view["displayName"] for view in views.values()} == {"First look"}
    assert {(view["entityName"], view["projectName"]) for view in views.values()} == {(ENTITY, "designs")}
    return {kind: json.loads(view["spec"]) for kind, view in views.items()}, capsys.readouterr().out


def found(node: Any, wanted: str) -> Iterator[Any]:
    """Every value of a key, however deep."""
    if isinstance(node, dict):
        yield from ([node[wanted]] if wanted in node else [])
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from found(child, wanted)


def sections(workspace: Any) -> dict[str, list[Any]]:
    return {one["name"]: one["panels"] for one in workspace["section"]["panelBankConfig"]["sections"]}


def grids(report: Any) -> list[Any]:
    return [block["metadata"] for block in report["blocks"] if block["type"] == "panel-grid"]


def shown(panels: list[Any]) -> list[Any]:
    """What panels show, without what names and places them."""
    return [(panel["viewType"], panel["config"]) for panel in panels]


def test_a_workspace_and_a_report_with_the_same_panels(saved: tuple[dict[str, Any], str]) -> None:
    specs, told = saved
    assert set(specs) == {"project-view", "runs"}
    expected = [part.name for part in parts(USUAL)]
    assert list(sections(specs["project-view"])) == expected
    headings = [block["children"][0]["text"] for block in specs["runs"]["blocks"] if block["type"] == "heading"]
    assert headings == expected
    both = zip(sections(specs["project-view"]).values(), grids(specs["runs"]), strict=True)
    for panels, grid in both:
        assert shown(panels) == shown(grid["panelBankSectionConfig"]["panels"])
        spots = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in grid["panelBankSectionConfig"]["panels"]]
        assert len(set(spots)) == len(spots)
        assert all(run_set["project"]["name"] == "designs" for run_set in grid["runSets"])
    assert re.search(rf"workspace +http\S+/{ENTITY}/designs\?nw=\w+", told)
    assert re.search(rf"report +http\S+/{ENTITY}/designs/reports/First-look--\w+", told)
    assert "axes of the sweeps: target, optim.lr\n" in told


def test_a_run_has_the_colour_that_its_design_has_everywhere(saved: tuple[dict[str, Any], str]) -> None:
    """By the run's id, as wandb-workspaces 0.4.13 names colours; every plan of a report's panels has its own."""
    specs, _ = saved
    expected = {name: looks([name])[name][0] for name in ("sft", "dft")}
    (of_workspace,) = found(specs["project-view"], "customRunColors")
    assert {name: of_workspace[name] for name in expected} == expected
    of_grids = [grid["customRunColors"] for grid in grids(specs["runs"])]
    assert len(of_grids) == len(parts(USUAL))
    assert all(colours == expected for colours in of_grids)


def test_a_model_before_training_is_grey(wandb_server: Backend) -> None:
    two_runs(wandb_server)
    wandb_server.runs["sft"].told["jobType"] = "base"
    assert find_project(f"{ENTITY}/designs").colours == {"sft": GREY, "dft": looks(["dft"])["dft"][0]}


def test_designs_side_by_side_curves_with_their_range_and_sweeps(saved: tuple[dict[str, Any], str]) -> None:
    workspace = sections(saved[0]["project-view"])
    bar = workspace["Designs side by side"][0]
    assert bar["viewType"] == "Bar Chart"
    assert bar["config"]["metrics"] == ["test/accuracy"]
    assert (bar["config"]["groupBy"], bar["config"]["groupAgg"]) == ("target.value", "mean")
    line = workspace["While training"][1]["config"]
    assert (line["xAxis"], line["metrics"]) == ("step", ["val/nll"])
    assert (line["groupBy"], line["groupAgg"], line["groupArea"]) == ("target.value", "mean", "minmax")
    coordinates, *importance = workspace["Sweeps"]
    assert [column["accessor"] for column in coordinates["config"]["columns"]] == [
        "config:target.value",
        "config:optim.lr.value",
        "summary:test/accuracy",
    ]
    assert [panel["config"]["targetKey"] for panel in importance] == ["test/accuracy", "test/nll"]
    scatter = workspace["Noise"][0]["config"]
    assert (scatter["xAxis"], scatter["yAxis"]) == ("config:data.noise.rate.value", "summary:test/accuracy")
    (grid,) = [
        grid for grid in grids(saved[0]["runs"]) if shown(grid["panelBankSectionConfig"]["panels"])[0][1] == scatter
    ]
    assert [key["name"] for key in grid["runSets"][0]["grouping"]] == ["target.value", "data.noise.rate.value"]
    assert workspace["Reliance, weight, trust"][0]["config"]["metrics"] == [
        "target/reliance_clean",
        "target/reliance_noisy",
    ]


def test_a_config_key_is_where_wandb_has_the_value_of_a_flat_one(
    saved: tuple[dict[str, Any], str], wandb_server: Backend, workdir: Path
) -> None:
    """Looked up in the config as the client sends it: the whole dotted key, then "value"."""
    sink = Wandb(mode="online")
    config = {"optim": {"lr": 1e-4}, "data": {"noise": {"rate": 0.5}}, "seed": 0, "target": {"alpha": 1.0}}
    sink.start(workdir, INFO, config)
    sink.finish({}, failed=False)
    (run,) = (run for run in wandb_server.runs.values() if run.project == "qtarget")
    named = [config_keys(spec) for spec in saved[0].values()]
    assert named == [{"target", "optim.lr", "data.noise.rate", "seed"}, {"target", "optim.lr", "data.noise.rate"}]
    assert {key: run.config[key]["value"] for key in named[0]} == {
        "target": "sft",
        "optim.lr": 1e-4,
        "data.noise.rate": 0.5,
        "seed": 0,
    }
    assert "optim" not in run.config


def config_keys(spec: Any) -> set[str]:
    """Config keys that a specification names, as flat keys; fails where one isn't written as a flat key's place."""
    named = [
        name for key in CONFIG for name in found(spec, key) if isinstance(name, str) and name.startswith("config:")
    ]
    named += [name for columns in found(spec, "columnOrder") for name in columns if name.startswith("config:")]
    groups = [key["name"] for grouping in found(spec, "grouping") for key in grouping] + list(found(spec, "groupBy"))
    places = [name.removeprefix("config:") for name in named] + groups
    assert all(place.endswith(".value") for place in places)
    return {place.removesuffix(".value") for place in places}


def metric_names(spec: Any) -> set[str]:
    """Metrics that a specification names, in panels, columns and orders."""
    named = {name for metrics in found(spec, "metrics") for name in metrics} | set(found(spec, "targetKey"))
    axes = [name for key in CONFIG for name in found(spec, key) if isinstance(name, str)]
    axes += [name for columns in found(spec, "columnOrder") for name in columns]
    named |= {name.removeprefix("summary:") for name in axes if name.startswith("summary:")}
    return named | {
        sort["key"]["name"] for keys in found(spec, "sort") for sort in keys["keys"] if "summary" in str(sort)
    }


def test_what_the_dashboard_names_is_what_a_run_records(saved: tuple[dict[str, Any], str], workdir: Path) -> None:
    spec = saved[0]["project-view"]
    assert qtarget_cli(["train", *(f"{name}={value}" for name, value in SMALL.items()), *NOISY]) == 0
    (folder,) = workdir.glob("outputs/runs/*")
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    recorded = set(result["metrics"]) | {name for line in lines for name in line}
    metrics = metric_names(spec)
    assert {"test/accuracy", "val/nll", "train/loss", "detection/auroc", "target/reliance_noisy"} <= metrics
    assert metrics <= recorded
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for key in config_keys(spec):
        assert key in result["choices"] or reached(config, key) is not None
    kept = {path.stem for path in folder.glob("samples.jsonl")} | set(result)
    panels = [panel for panel in sections(spec)["Answers and tokens"] if panel["viewType"] == "Weave"]
    tables = [name for panel in panels for name in table_names(panel)]
    assert len(tables) == len(panels) == 3
    assert set(tables) <= kept
    assert set(found(spec, "xAxis")) >= {"step"}


def table_names(panel: Any) -> list[str]:
    """The run's table that a panel picks out of the summaries."""
    return [key["val"] for key in found(panel, "key") if isinstance(key, dict) and isinstance(key.get("val"), str)]


def reached(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def test_the_axes_are_what_most_runs_hold_and_some_differ_in() -> None:
    same = {"seed": 0, "optim.lr": 1e-4, "output_dir": "a", "target": "sft", "data/noise": "none"}
    runs = [same, same | {"optim.lr": 1e-3, "output_dir": "b", "target": "dft", "target.residual.eta": 0.5}, same]
    assert axes(runs) == ("target", "optim.lr")
    assert axes([same, same]) == USUAL
    many = [{f"key{place}": value for place in range(20)} for value in (0, 1)]
    assert len(axes(many)) == 8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--project", "nothere"], r"no W&B project nothere.*tracker.mode=online.*wandb sync"),
        (["--project", "empty"], r"project tester/empty has no runs: .*tracker.project=NAME"),
        (["--project", "empty", "--name", "a = b"], r"without symbols or emoji"),
    ],
)
def test_a_project_that_holds_nothing(
    arguments: list[str], said: str, wandb_server: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb_server.created.add("empty")
    assert qtarget_cli(["dashboard", *arguments]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not wandb_server.views


@pytest.mark.usefixtures("no_wandb")
def test_without_a_key_or_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["dashboard", "--project", "designs"]) == 2
    told = capsys.readouterr().err
    assert "set WANDB_API_KEY (or run `wandb login`), and WANDB_BASE_URL" in told
    assert "qtarget compare DIR" in told


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert qtarget_cli(["dashboard", "--project", "designs"]) == 2
    assert "pip install 'qtarget[dashboard]'" in capsys.readouterr().err
