"""The points of a sweep: which values they have, and the overrides that make a job of each.

Not samplers of Optuna 5.0: a seeded RandomSampler repeats its draws on resuming, and GridSampler shuffles the grid.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

PLACES = ("experiment_name", "output_dir", "tracker", "hydra")
REPEATS = 1000
"""Draws in a row that bring nothing new before a random search takes its space for used up."""
RARE = 1e-3
"""The share of draws beyond what is looked at of a distribution without bounds, on either side."""

Values = Mapping[str, Any]


def grid_points(space: Mapping[str, SweptValues]) -> Iterator[dict[str, Any]]:
    """Every combination, the last key fastest."""
    for chosen in itertools.product(*(one.listed or () for one in space.values())):
        yield dict(zip(space, chosen, strict=True))


def random_point(space: Mapping[str, SweptValues], seed: int, number: int) -> dict[str, Any]:
    """The point of this number: a function of nothing but seed, number and key."""
    return {key: one.at(random.Random(f"{seed}/{number}/{key}").random()) for key, one in space.items()}


def random_points(space: Mapping[str, SweptValues], seed: int) -> Iterator[dict[str, Any]]:
    """Points in order of their number, each once; ends where a thousand in a row bring nothing new."""
    seen: set[str] = set()
    fresh = 0
    for number in itertools.count():
        values = random_point(space, seed, number)
        if (told := repr(values)) not in seen:
            seen.add(told)
            fresh = number
            yield values
        elif number - fresh >= REPEATS:
            return


@dataclass(frozen=True)
class JobFactory:
    """Makes a job of a point. overrides: the command line's, behind those of the file."""

    file: SweepFile
    overrides: tuple[str, ...]

    def arguments(self, values: Values) -> list[str]:
        """The overrides of `qtarget train` for a point; of two with one key the later counts."""
        name = f"experiment_name={quoted(self.file.name)}"
        told = [name, *self._of_file({**self.file.constants, **values}), *self.overrides]
        return list({_key(argument): argument for argument in told}.values())

    def _of_file(self, values: Values) -> list[str]:
        """What the file's command would have, but for the tracker: this is a sweep without W&B."""
        swept = [self._override(key, value) for key, value in values.items()]
        return [one for one in (*self.file.before, *swept, *self.file.after) if not _tracks(one)]

    def _override(self, key: str, value: Any) -> str:
        try:
            return override(f"{self.file.prefix}{key}", value)
        except QTargetError as error:
            raise QTargetError(f"{self.file.path}: {error}") from error

    @property
    def left_out(self) -> list[str]:
        """The file's own words on the tracker."""
        constants = [self._override(key, value) for key, value in self.file.constants.items()]
        return [one for one in (*self.file.before, *constants, *self.file.after) if _tracks(one)]

    def label(self, values: Values) -> str:
        return " ".join(f"{key}={quoted(value)}" for key, value in values.items())

    def checked(self, values: Values) -> Job:
        """The job of a point; raises QTargetError, before anything runs, where its configuration is wrong."""
        from qtarget.config.composing import instantiate_design  # seconds
        from qtarget.config.run_config import RunConfig

        arguments = self.arguments(values)
        try:
            cfg = RunConfig.compose(arguments)
            if cfg.trainer.dry:
                raise QTargetError("trainer=dry leaves no results to search by")
            instantiate_design(cfg.target)
        except QTargetError as error:
            raise QTargetError(f"{self.file.path}: {self.label(values)}: {error}") from error
        return self._job(cfg, arguments, values)

    def _job(self, cfg: RunConfig, arguments: Sequence[str], values: Values) -> Job:
        return Job(
            Path(cfg.output_dir, str(cfg.experiment_name), cfg.hash), cfg.hash, tuple(arguments), self.label(values)
        )

    def check_fixed(self) -> None:
        """No override may stand beside the values of a swept key, and no key may be swept that places results."""
        for key in self.file.parameters:
            if key.partition(".")[0] in PLACES:
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
    return not any(key == one or key.startswith(f"{one}.") for one in NOT_IDENTITY)


def _tracks(argument: str) -> bool:
    return _key(argument).partition(".")[0] == "tracker"


def corners(space: Mapping[str, SweptValues]) -> Iterable[dict[str, Any]]:
    """A middle point, and each value of each key beside it; of a range its ends. What a search may meet."""
    middle = {key: one.at(0.5) for key, one in space.items()}
    yield middle
    for key, one in space.items():
        for value in _ends(one):
            yield {**middle, key: value}


def _ends(one: Any) -> tuple[Any, ...]:
    if isinstance(one, ListedOptions):
        return one.options
    edge = 0.0 if math.isfinite(one.low) else RARE
    return one.at(edge), one.at(1 - edge)
