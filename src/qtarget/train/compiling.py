"""Whether the loss of a run is compiled: as configured, or by what compiling took and saved on this machine.

It is never another objective, and always recorded. What is timed is what a design makes of logits: the matrix products
are the same either way.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass

from qtarget.errors import QTargetError
from qtarget.units import in_time

SHORT = 10**9
"""Scored tokens × vocabulary below which `auto` is eager without a look: no processor spends half a minute on them."""
LEAST_SAVED = 0.2
"""Of the eager time, what compiling saves at least where it saves anything: sft 0.24, dft 0.31, target_sft 0.41 and
label_smoothing 0.55 on an Intel Xeon with AMX. It only decides whether a trial is worth its time.
"""
FIRST_COMPILE = 30.0
"""Seconds that a trial is thought to take where no loss was compiled on this machine before."""


@dataclass(frozen=True)
class Figures:
    """What a trial has timed, in seconds: compiling, and one scored token, eager and compiled."""

    compiling: float
    eager: float
    compiled: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) and value > 0 for value in (self.compiling, self.eager, self.compiled)):
            raise ValueError(f"figures are seconds above 0, got {self}")

    def saved(self, tokens: float) -> float:
        """Seconds that compiled passes over so many tokens save; negative where they cost some."""
        return tokens * (self.eager - self.compiled)

    def __str__(self) -> str:
        return f"{1e6 * self.eager:.3g} µs a token eager, {1e6 * self.compiled:.3g} compiled"


@dataclass(frozen=True)
class Engine:
    """Whether the loss is compiled, None: a trial at the first step says so; and how to describe that to a user."""

    compiled: bool | None
    description: str


BY_TRIAL = Engine(None, "eager or compiled, which a trial at the first step decides")
TOO_SHORT = Engine(False, "eager: too short for compiling to pay")


def choose(setting: str, kept: Figures | None, *, on_gpu: bool, tokens: float, vocabulary: int) -> Engine:
    """The engine for `loss.compile`. kept: what an earlier trial has timed. tokens: supervised ones of the whole run.

    Raises QTargetError where compilation is asked for and there is no C++ compiler.
    """
    missing = not on_gpu and compiler() is None
    if setting == "on" and missing:
        raise QTargetError(
            "loss.compile=on needs a C++ compiler (g++, clang++ or CXX=…) and there is none: install one"
        )
    if setting != "auto":
        return Engine(setting == "on", "compiled" if setting == "on" else "eager")
    if missing:
        return Engine(False, "eager: no C++ compiler")
    if tokens * vocabulary < SHORT:
        return TOO_SHORT
    return BY_TRIAL if kept is None else by_figures(kept, tokens)


def by_figures(figures: Figures, tokens: float) -> Engine:
    """Compiled where that saves more seconds on so many scored tokens than compiling takes."""
    saved = figures.saved(tokens)
    saves = f"saves {in_time(saved)}" if saved > 0 else "saves nothing"
    facts = f"compiling {saves} and takes {in_time(figures.compiling)} (by a trial here: {figures})"
    compiled = saved > figures.compiling
    return Engine(compiled, f"{'compiled' if compiled else 'eager'}: {facts}")


def without_trial(eager: float, tokens: float, compiling: float | None) -> Engine | None:
    """Eager where a trial may cost more than the run gains by it; None where it is worth its time.

    eager: seconds a token takes. compiling: the longest that compiling another loss took here, None: none was compiled.
    """
    gain, cost = LEAST_SAVED * eager * tokens, FIRST_COMPILE if compiling is None else compiling
    if gain > cost:
        return None
    takes = f"its passes take {in_time(eager * tokens)}, and compiling may take {in_time(cost)}"
    return Engine(False, f"eager: too short for a trial ({takes})")


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use on a CPU."""
    compilers = (shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
    return next(filter(None, compilers), None)
