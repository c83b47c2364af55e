"""Stopping runs early, by the rule that W&B publishes as its hyperband (github.com/wandb/sweeps, after 1603.06560).

A run's k-th value of the metric is its iteration k. Of a `val/…` metric the first is the untrained model's, and the
second stands at step trainer.eval_every. Some iterations are bands, each η times the one before. A run that reaches a
band goes on if its value is among the best 1/η of all runs that have reached it, finished and stopped ones included. A
run that is alone at a band goes on. Nothing is random, and nothing is remembered: the rule reads the histories.

Not a pruner of Optuna 5.0. Of 480 simulated runs its SuccessiveHalvingPruner ends 28 % at another iteration, and its
HyperbandPruner half; what `early_terminate` means must not depend on where a sweep runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qtarget import checks
from qtarget.config.composing import nearest
from qtarget.errors import QTargetError

FIELDS = ("type", "min_iter", "max_iter", "s", "eta", "strict")
MOST_BANDS = 100


@dataclass(frozen=True)
class Hyperband:
    """bands: iterations, ascending. strict: a run is judged by its value at the band, else by its best so far."""

    bands: tuple[int, ...]
    eta: float
    strict: bool

    def threshold(self, band: int, histories: Iterable[Sequence[float]]) -> float:
        """The worst value to go on with; lower is better."""
        reached = sorted(map(_worst_if_no_number, (history[band - 1] for history in histories if len(history) >= band)))
        return reached[int(len(reached) / self.eta)] if reached else math.inf

    def stop_reason(self, running: str, histories: Mapping[str, Sequence[float]]) -> str | None:
        """Why the run of this name has to stop, if it has. histories: every run's values so far, lower is better.

        From the first band on a run whose last value is NaN or infinite has diverged and stops, alone or not. The
        published rule compares with NaN, which is always false, and lets it go on.
        """
        mine = histories[running]
        passed = [band for band in self.bands if band <= len(mine)]
        if not passed:
            return None
        if not math.isfinite(mine[-1]):
            return f"its value at iteration {len(mine)} is no finite number: it has diverged"
        band = passed[-1]
        value = _worst_if_no_number(mine[band - 1]) if self.strict else min(map(_worst_if_no_number, mine))
        threshold = self.threshold(band, histories.values())
        if value <= threshold:
            return None
        judged = "value" if self.strict else "best value by then"
        return f"its {judged} at iteration {band} is not among the best 1/{self.eta:g} of the runs so far"


def _worst_if_no_number(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def hyperband(fields: Any) -> Hyperband:
    """From `early_terminate` of a sweep file."""
    if not isinstance(fields, Mapping) or fields.get("type") != "hyperband":
        raise QTargetError(f"early_terminate needs `type: hyperband`, the only rule there is, got {fields!r}")
    for field in fields:
        if field not in FIELDS:
            raise QTargetError(f"early_terminate has no {field!r}{nearest(str(field), FIELDS)}")
    eta, strict = fields.get("eta", 3), fields.get("strict", True)
    checks.number("early_terminate.eta", eta, 1.0)
    if eta == 1:
        raise QTargetError("early_terminate.eta must be above 1: the best 1/eta of the runs go on")
    checks.choice("early_terminate.strict", strict, (True, False))
    return Hyperband(_bands(fields, eta), eta, strict)


def _bands(fields: Mapping[str, Any], eta: float) -> tuple[int, ...]:
    """min_iter·ηⁿ, n = 0, 1, …; or max_iter/ηⁿ for n = 1 … s."""
    if ("min_iter" in fields) == ("max_iter" in fields):
        raise QTargetError("early_terminate needs one of min_iter and max_iter, the latter with s")
    if "min_iter" in fields:
        checks.whole("early_terminate.min_iter", fields["min_iter"], 1)
        return tuple(int(fields["min_iter"] * eta**power) for power in range(MOST_BANDS))
    for field in ("max_iter", "s"):
        checks.whole(f"early_terminate.{field}", fields.get(field), 1)
    iterations = (int(fields["max_iter"] / eta**power) for power in range(fields["s"], 0, -1))
    bands = tuple(band for band in iterations if band >= 1)
    if not bands:
        raise QTargetError(f"early_terminate: max_iter={fields['max_iter']} leaves no iteration to stop at; raise it")
    return bands
