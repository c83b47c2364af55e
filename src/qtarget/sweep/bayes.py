"""Bayesian search by Optuna's TPE over the quantiles of each key, its study in SQLite beside the jobs.

Not W&B's own sampler, a Gaussian process: the same search space, other points. Quantiles change none of Optuna's own:
the three Bayesian sweeps that are shipped have the same points by its uniform and logarithmic distributions.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtarget.errors import QTargetError
from qtarget.sweep.file import Metric
from qtarget.sweep.space import ListedOptions, SweptValues


def optuna() -> Any:
    """The package; raises QTargetError where it isn't installed."""
    try:
        import optuna as package
    except ImportError as error:
        raise QTargetError("`method: bayes` needs Optuna: pip install 'qtarget[search]'") from error
    package.logging.set_verbosity(package.logging.WARNING)
    return package


class Bayes:
    """Points that follow from the results so far. Those without a result, of a start before, are proposed first."""

    def __init__(self, storage: Path, space: Mapping[str, SweptValues], metric: Metric, seed: int) -> None:
        self.space, self.seed, self.optuna = space, seed, optuna()
        goal = "maximize" if metric.maximize else "minimize"
        self.study = self.optuna.create_study(
            storage=f"sqlite:///{storage}",
            study_name=f"{metric.name}, {goal}, seed {seed}",
            direction=goal,
            load_if_exists=True,
        )
        self._distributions = {key: self._distribution(swept) for key, swept in space.items()}

    def _distribution(self, swept: SweptValues) -> Any:
        """Options by their index, everything else by its quantile."""
        if isinstance(swept, ListedOptions) and swept.weights is None:
            return self.optuna.distributions.CategoricalDistribution(range(len(swept.options)))
        return self.optuna.distributions.FloatDistribution(0.0, 1.0)

    def earlier(self) -> list[tuple[int, dict[str, Any]]]:
        """(number, values) of all points proposed before, in order; not of one whose proposal was cut short."""
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if trial.params.keys() == self.space.keys()]
        return [(trial.number, self._values(trial.params)) for trial in trials]

    def ask(self) -> tuple[int, dict[str, Any]]:
        """(number, values) of a new point."""
        number = len(self.study.get_trials(deepcopy=False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)  # constant_liar
            # A sampler of its own for every point: one that is seeded anew on resuming would repeat its first draws.
            seed = random.Random(f"{self.seed}/{number}").getrandbits(31)
            self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        trial = self.study.ask(self._distributions)
        return trial.number, self._values(trial.params)

    def tell(self, number: int, value: float | None) -> None:
        """The result of a point: the best value of its run, None where it has none. A second one changes nothing."""
        states = self.optuna.trial.TrialState
        state = states.FAIL if value is None else states.COMPLETE
        self.study.tell(number, value, state=state, skip_if_finished=True)

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {key: self._value(swept, params[key]) for key, swept in self.space.items()}

    @staticmethod
    def _value(swept: SweptValues, param: Any) -> Any:
        """The inverse of `_distribution`: param is an index, or a quantile."""
        by_index = isinstance(swept, ListedOptions) and swept.weights is None
        return swept.options[param] if by_index else swept.quantile(param)  # type: ignore[attr-defined]
