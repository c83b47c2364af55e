"""What W&B shows of a project: one plan of panels, saved as a workspace and as a report.

How our config keys are written. A run's config is sent flat, so that W&B stores {"optim.lr": {"value": 1e-4}}: the
whole dotted name is one key, and the value stands under it. wandb-workspaces takes the dots of `Config("optim.lr")`
for nesting and writes optim.value.lr, where a flat config has nothing. A key that ends in .value is passed on as it is
where panels and run sets are grouped; axes have no such way, so `FlatScatter` and `FlatColumn` write theirs.

Colours. Each run has the colour of its design, as on the page, in the picture and in the lens. wandb-workspaces 0.4.13
names colours by runs' ids, by "RUN:METRIC" and by the groups of a run set; a panel that groups its lines or bars by
itself, as ours do by design, has no name for a group's colour, and W&B picks it. Runs that come later have W&B's
colours until the dashboard is made again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from qtarget.errors import QTargetError
from qtarget.measures import MEASURES
from qtarget.plot.looks import GREY, looks
from qtarget.record.runs import differing
from qtarget.record.wandb_sweep import CONNECT

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # wandb-workspaces 0.4 still speaks pydantic's old language
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

MOST_RUNS = 500
"""Runs that are asked for what differs between them."""
MOST_AXES = 8
DESIGN = "target"
BASE = "base"
"""The job type of a model before training, whose design says nothing."""
RATE = "data.noise.rate"
BEST = "test/accuracy"
USUAL = (DESIGN, "optim.lr", "seed")
"""Axes where no two runs differ."""
CHOSEN_ONLY = ("experiment", "hydra")
"""Group choices that say where values came from, not what they are."""
ACROSS = 24
"""Units of a report's width."""
HOW_TO_FILL = (
    "`qtarget train tracker=wandb tracker.mode=online tracker.project=NAME …` makes some, `wandb sync` uploads those "
    "that were recorded offline"
)


@dataclass(frozen=True)
class DashboardSection:
    """A section of the dashboard: its name, how to read it, and its panels. by: what a report groups its runs by."""

    name: str
    about: str
    panels: Sequence[Any]
    by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Project:
    """A project at W&B, the config keys in which its runs differ, and the colour of each run by its id."""

    entity: str
    name: str
    keys: tuple[str, ...]
    colours: Mapping[str, str]

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.name}"


class FlatScatter(wr.ScatterPlot):
    """A scatter plot over a config key of ours; see the top of the file."""

    def _to_model(self) -> Any:
        assert isinstance(self.x, wr.Config)
        model = super()._to_model()
        model.config.x_axis = accessor(self.x.name)
        return model


class FlatColumn(wr.ParallelCoordinatesPlotColumn):
    """An axis of a parallel coordinates plot that is a config key of ours; see the top of the file."""

    def _to_model(self) -> Any:
        assert isinstance(self.metric, wr.Config)
        model = super()._to_model()
        model.accessor = accessor(self.metric.name)
        return model


def stored(key: str) -> str:
    """Where a flat key's value stands in W&B's config."""
    return f"{key}.value"


def accessor(key: str) -> str:
    """A flat config key as axes and columns name it."""
    return f"config:{stored(key)}"


def find_project(path: str) -> Project:
    """Ask the server for ENTITY/PROJECT, or PROJECT of the default entity.

    Raises QTargetError without a key, a server that answers, such a project, or runs in it.
    """
    import wandb  # slow to import

    try:
        api = wandb.Api()
        owner, _, name = path.rpartition("/")
        entity = owner or str(api.default_entity)
        runs = list(islice(api.runs(f"{entity}/{name}", lazy=False), MOST_RUNS))
    except (wandb.Error, ValueError) as error:
        raise _not_found(path, error) from error
    if not runs:
        raise QTargetError(f"the W&B project {entity}/{name} has no runs: {HOW_TO_FILL}")
    return Project(entity, name, axes([run.config for run in runs]), colours(runs))


def colours(runs: Sequence[Any]) -> dict[str, str]:
    """Run → the colour of its design; a model before training is grey. runs: as W&B's client has them."""
    designs = {str(run.id): str(run.config[DESIGN]) for run in runs if DESIGN in run.config}
    untrained = {str(run.id) for run in runs if run.job_type == BASE}
    look_of = looks(sorted(set(designs.values())))
    return {run: GREY if run in untrained else look_of[design][0] for run, design in designs.items()}


def _not_found(path: str, error: Exception) -> QTargetError:
    if isinstance(getattr(error, "exc", error), ValueError):
        return QTargetError(f"no W&B project {path}: {error}. {HOW_TO_FILL}")
    return QTargetError(
        f"W&B can't be asked for the project {path}: {error}. A dashboard needs a W&B account or server: {CONNECT}. "
        "Without one, `qtarget compare DIR` makes a page of the runs"
    )


def save(view: Any, project: Project) -> str:
    """The address at which W&B shows it. Raises QTargetError where W&B doesn't take it."""
    import wandb

    try:
        return str(view.save().url)
    except (wandb.Error, ValueError) as error:
        raise QTargetError(
            f"W&B doesn't save it in {project.path}: {error}. It takes an account that may write there"
        ) from error


def axes(configs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The keys in which runs differ and that most of them have: groups' choices first, then values."""
    common = [key for key in differing(configs) if 2 * sum(key in config for config in configs) > len(configs)]
    usable = [key for key in common if key not in CHOSEN_ONLY]
    first = sorted(usable, key=lambda key: (key != DESIGN, key not in (*USUAL, RATE), "." in key, key))
    return tuple(first[:MOST_AXES]) or USUAL


# The panels


def parts(keys: Sequence[str]) -> list[DashboardSection]:
    """The sections; keys: the axes of the sweeps."""
    return [side_by_side(), over_training(), objectives(), trust(), noise(), sweeps(keys), tables()]


def bars(metric: str, title: str) -> Any:
    """One bar a design: the mean over its runs, and their range."""
    return wr.BarPlot(title=title, metrics=[metric], **_by_design())


def lines(title: str, *metrics: str) -> Any:
    """One line a design over optimizer steps: the mean over its runs, and their range."""
    return wr.LinePlot(title=title, x="step", y=list(metrics), **_by_design())


def _by_design() -> dict[str, Any]:
    return {"groupby": stored(DESIGN), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}


def side_by_side() -> DashboardSection:
    shown = {
        "test/accuracy": "accuracy",
        "test/nll": "nll",
        "test/kl_prior": "drift from the prior, nats",
        "test/ece": "calibration error",
        "train/tokens_per_second": "tokens a second",
        "train/peak_memory_gb": "peak memory, GB",
    }
    about = "A bar is a target design: the mean over its runs, with the range from the smallest to the largest of them."
    return DashboardSection("Designs side by side", about, [bars(metric, title) for metric, title in shown.items()])


def over_training() -> DashboardSection:
    about = "A line is the mean over the runs of a design, on the same held-out problems; the band is their range."
    shown = ("val/accuracy", "val/nll", "val/kl_prior", "val/ece")
    return DashboardSection("While training", about, [lines(name, name) for name in shown])


def objectives() -> DashboardSection:
    about = (
        "What a design minimizes is not comparable between designs: DFT's loss is small by construction. The nll of "
        "the same tokens is, and stands beside it."
    )
    scatter = wr.ScatterPlot(title="objective and held-out nll", x="train/loss", y="test/nll")
    return DashboardSection(
        "Objective and nll", about, [lines("objective", "train/loss"), lines("nll", "train/nll"), scatter]
    )


def trust() -> DashboardSection:
    about = (
        "γ is how far the observed label is relied on; trust is how hard it is pulled relative to plain SFT, where it "
        "is 1. Apart for tokens that are clean and those that noise made wrong, where the run knows which. A run's own "
        "page has histograms of γ, w and p(y)."
    )
    apart = [lines(f"{word} on clean and wrong tokens", *_apart(f"target/{word}")) for word in ("reliance", "trust")]
    logged = [measure.logged for measure in MEASURES if measure.logged and measure.name != "trust"]
    whole = [lines(name, name) for name in logged if name.startswith("target/")]
    return DashboardSection("Reliance, weight, trust", about, [*apart, *whole])


def _apart(name: str) -> tuple[str, str]:
    return f"{name}_clean", f"{name}_noisy"


def noise() -> DashboardSection:
    about = (
        "How a design holds up where labels are wrong: accuracy against their rate, and how well low trust tells wrong "
        "tokens from clean ones (0.5 is guessing)."
    )
    scatter = FlatScatter(title="accuracy against the rate of noise", x=wr.Config(RATE), y=BEST)
    shown = {
        "detection/auroc": "wrong tokens told apart (AUROC)",
        "detection/average_precision": "wrong tokens told apart (average precision)",
        "detection/gradient_share": "share of the gradient that wrong tokens have",
    }
    panels = [bars(metric, title) for metric, title in shown.items()]
    return DashboardSection(
        "Noise",
        about,
        [scatter, *panels, lines("nll of clean and wrong tokens", *_apart("train/nll"))],
        (DESIGN, RATE),
    )


def sweeps(keys: Sequence[str]) -> DashboardSection:
    columns = [FlatColumn(metric=wr.Config(key), display_name=key) for key in keys]
    result = wr.ParallelCoordinatesPlotColumn(metric=BEST)
    about = "A line is a run: the values in which runs of this project differ, and where it ended."
    importance = [wr.ParameterImportancePlot(with_respect_to=metric) for metric in (BEST, "test/nll")]
    panels = [wr.ParallelCoordinatesPlot(title="runs", columns=[*columns, result]), *importance]
    return DashboardSection("Sweeps", about, panels)


def tables() -> DashboardSection:
    about = (
        "samples: held-out problems, answers, verdicts. trust: the tokens that the trained model relies on least and "
        "most, in their context. calibration: the bins of the reliability curve."
    )
    names = ("samples", "trust", "calibration")
    return DashboardSection("Answers and tokens", about, [wr.WeavePanelSummaryTable(table_name=name) for name in names])


# What is saved


def workspace(project: Project, name: str) -> Any:
    """A view of the project's runs, where they can be picked and filtered."""
    return ws.Workspace(
        entity=project.entity,
        project=project.name,
        name=name,
        sections=[_section(part) for part in parts(project.keys)],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=100),
        runset_settings=ws.RunsetSettings(
            order=[ws.Ordering(ws.Summary(BEST), ascending=False)],
            run_settings={run: ws.RunSettings(color=colour) for run, colour in project.colours.items()},
            pinned_columns=[accessor(DESIGN), accessor("seed"), f"summary:{BEST}", "summary:test/nll"],
        ),
    )


def _section(part: DashboardSection) -> Any:
    layout = ws.SectionLayoutSettings(columns=3, rows=2)
    return ws.Section(name=part.name, panels=list(part.panels), is_open=True, layout_settings=layout)


def report(project: Project, name: str) -> Any:
    """The same panels on a page with words between them."""
    blocks: list[Any] = [wr.TableOfContents()]
    for part in parts(project.keys):
        runs = wr.Runset(
            entity=project.entity,
            project=project.name,
            groupby=[f"config.{stored(key)}" for key in part.by],
            run_settings={run: wr.RunSettings(color=colour) for run, colour in project.colours.items()},
        )
        blocks += [wr.H2(part.name), wr.P(part.about), wr.PanelGrid(runsets=[runs], panels=_placed(part.panels))]
    return wr.Report(
        entity=project.entity,
        project=project.name,
        title=name,
        description="Target designs compared: what each learns, what it trusts, what it costs.",
        blocks=blocks,
        width="fluid",
    )


def _placed(panels: Iterable[Any], wide: int = ACROSS // 3, high: int = 8) -> list[Any]:
    """Panels three to a row."""
    placed = list(panels)
    for index, panel in enumerate(placed):
        panel.layout = wr.Layout(x=index % 3 * wide, y=index // 3 * high, w=wide, h=high)
    return placed


KINDS = {"workspace": workspace, "report": report}
