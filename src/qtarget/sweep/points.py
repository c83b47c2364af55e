"""The points of a sweep: which values they have, and the overrides that make a job of each.

Not samplers of Optuna 5.0: a seeded RandomSampler repeats its draws on resuming, and GridSampler shuffles the grid.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.types import RunMode

from qtarget.config.composing import compose_config
from qtarget.config.identity import NOT_IDENTITY
from qtarget.config.overrides import override, quoted
from qtarget.errors import QTargetError
from qtarget.launch.slots import Job
from qtarget.sweep.file import SweepFile
from qtarget.sweep.space import ListedOptions, SweptValues

if TYPE_CHECKING:
    from qtarget.config.run_config import RunConfig
    from qtarget.run.disk import DiskUse

NOT_SWEPT = ("experiment_name", "output_dir", "tracker", "hydra")
"""Keys that say where results go."""
REPEATS = 1000
"""Draws in a row that bring nothing new before a random search takes its space for used up."""
RARE = 1e-3
"""The share of draws beyond what is looked at of a distribution without bounds, on either side."""

Values = Mapping[str, Any]


def grid_points(space: Mapping[str, SweptValues]) -> Iterator[dict[str, Any]]:
    """Every combination, the last key fastest."""
    for chosen in itertools.product(*(swept.listed or () for swept in space.values())):
        yield dict(zip(space, chosen, strict=True))


def random_point(space: Mapping[str, SweptValues], seed: int, number: int) -> dict[str, Any]:
    """The point of this number: a function of nothing but seed, number and key."""
    return {key: swept.quantile(random.Random(f"{seed}/{number}/{key}").random()) for key, swept in space.items()}


def random_points(space: Mapping[str, SweptValues], seed: int) -> Iterator[dict[str, Any]]:
    """Points in order of their number, each once; ends where a thousand in a row bring nothing new."""
    seen: set[str] = set()
    last_new = 0
    for number in itertools.count():
        values = random_point(space, seed, number)
        if (text := repr(values)) not in seen:
            seen.add(text)
            last_new = number
            yield values
        elif number - last_new >= REPEATS:
            return


@dataclass(frozen=True)
class JobFactory:
    """Makes a job of a point. overrides: the command line's, behind those of the file. dry: no job will run. disk: of
    each job made, by its identity, what it writes. configs: of each job made.
    """

    file: SweepFile
    overrides: tuple[str, ...]
    dry: bool = False
    configs: dict[str, RunConfig] = field(default_factory=dict)
    disk: dict[str, DiskUse] = field(default_factory=dict)

    def arguments(self, values: Values) -> list[str]:
        """The overrides of `qtarget train` for a point; of two with one key the later counts."""
        name = f"experiment_name={quoted(self.file.name)}"
        command = self._command({**self.file.constants, **values})
        arguments = [name, *(word for word in command if not _sets_tracker(word)), *self.overrides]
        return list({_key(argument): argument for argument in arguments}.values())

    def _command(self, values: Values) -> list[str]:
        """The arguments of the file's command."""
        swept = [self._override(key, value) for key, value in values.items()]
        return [*self.file.before, *swept, *self.file.after]

    def _override(self, key: str, value: Any) -> str:
        try:
            return override(f"{self.file.prefix}{key}", value)
        except QTargetError as error:
            raise QTargetError(f"{self.file.path}: {error}") from error

    @property
    def tracker_arguments(self) -> list[str]:
        """Those of the file that set the tracker. They are left out: this is a sweep without W&B."""
        return [word for word in self._command(self.file.constants) if _sets_tracker(word)]

    def label(self, values: Values) -> str:
        return " ".join(f"{key}={quoted(value)}" for key, value in values.items())

    def make_job(self, values: Values) -> Job:
        """The job of a point; raises QTargetError, before anything runs, where its configuration is wrong."""
        from qtarget.config.composing import instantiate_design  # seconds
        from qtarget.config.run_config import RunConfig
        from qtarget.run.disk import disk_use

        arguments = self.arguments(values)
        try:
            cfg = RunConfig.compose(arguments)
            if cfg.trainer.dry and not self.dry:
                raise QTargetError("trainer=dry leaves no results to search by; behind the file it shows the sweep")
            design = instantiate_design(cfg.target)
        except QTargetError as error:
            raise QTargetError(f"{self.file.path}: {self.label(values)}: {error}") from error
        with suppress(QTargetError):  # a model that this machine lacks: the job itself will tell
            self.disk.setdefault(cfg.hash, disk_use(cfg, design))
        self.configs.setdefault(cfg.hash, cfg)
        folder = Path(cfg.output_dir, str(cfg.experiment_name), cfg.hash)
        return Job(folder, cfg.hash, tuple(arguments), self.label(values))

    def check_overrides(self) -> None:
        """No override may stand beside the values of a swept key, and no key may be swept that places results."""
        for key in self.file.parameters:
            if key.partition(".")[0] in NOT_SWEPT:
                raise QTargetError(f"{self.file.path} sweeps {key}, which says where results go and changes none")
        fixed = [*self.file.before, *self.file.after, *self.overrides]
        for key in map(_key, fixed):
            if key.partition("/")[0].partition(".")[0] == "hydra":
                raise QTargetError(f"{key} can't be set in a sweep, which starts the jobs itself: leave it out")
            if key in self.file.parameters:
                raise QTargetError(f"{self.file.path} sweeps {key}: change it there, it can't be fixed beside it")
        if compose_config("train", self.arguments({}), with_hydra=True).hydra.mode == RunMode.MULTIRUN:
            raise QTargetError(
                f"{self.file.path} names an experiment that is a multirun, of which a sweep would run one job: take an "
                "experiment of one run, and let the sweep say what varies"
            )


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")


def changes_points(argument: str) -> bool:
    """Whether an override is part of what runs are, not of where they go or in how many attempts they come about."""
    key = _key(argument)
    return not any(key == other or key.startswith(f"{other}.") for other in NOT_IDENTITY)


def _sets_tracker(argument: str) -> bool:
    return _key(argument).partition(".")[0] == "tracker"


def corners(space: Mapping[str, SweptValues]) -> Iterable[dict[str, Any]]:
    """A middle point, and each value of each key beside it; of a range its ends. What a search may meet."""
    middle = {key: swept.quantile(0.5) for key, swept in space.items()}
    yield middle
    for key, swept in space.items():
        for value in _extremes(swept):
            yield {**middle, key: value}


def _extremes(swept: Any) -> tuple[Any, ...]:
    if isinstance(swept, ListedOptions):
        return swept.options
    edge = 0.0 if math.isfinite(swept.low) else RARE
    return swept.quantile(edge), swept.quantile(1 - edge)
