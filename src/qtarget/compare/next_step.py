"""What to do after a comparison: the command lines below the table."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from math import prod

from qtarget.record.runs import Run, finished


def next_command(runs: Sequence[Run]) -> str:
    """A seed of the configuration that has the fewest; where all have the same seeds, another one of them all.

    Of equals it is the one that stands first, and of seeds the first that another configuration has. With nothing
    finished it is the first run again.
    """
    designs = [run for run in finished(runs) if run.role == "design" and run.task == "train"]
    if not designs:
        return runs[0].command
    seeds: dict[str, set[int]] = {}
    for run in designs:
        seeds.setdefault(_configuration(run), set()).update(() if run.seed is None else (run.seed,))
    fewest = min(designs, key=lambda run: len(seeds[_configuration(run)]))
    own, of_all = seeds[_configuration(fewest)], set().union(*seeds.values())
    seed = min(of_all - own, default=max(of_all, default=0) + 1)
    grid = _grid([_but_seed(run) for run in designs]) if own == of_all else None
    words = ["-m", *grid] if grid else _but_seed(fewest)
    return shlex.join(["qtarget", "train", *words, f"seed={seed}"])


def _but_seed(run: Run) -> list[str]:
    return [override for override in run.overrides if not override.startswith("seed=")]


def _grid(runs: Sequence[Sequence[str]]) -> list[str] | None:
    """The overrides of a multirun that has these as its jobs; None where there is none, or a single one."""
    jobs = list(dict.fromkeys(map(tuple, runs)))
    keys = [override.partition("=")[0] for override in jobs[0]]
    is_plain = not any("," in override for job in jobs for override in job)
    if len(jobs) < 2 or not is_plain or any([one.partition("=")[0] for one in job] != keys for job in jobs):
        return None
    values = [
        list(dict.fromkeys(override.partition("=")[2] for override in column)) for column in zip(*jobs, strict=True)
    ]
    if prod(map(len, values)) != len(jobs):
        return None
    return [f"{key}={','.join(options)}" for key, options in zip(keys, values, strict=True)]


def _configuration(run: Run) -> str:
    """What seeds of one configuration have in common."""
    return f"{run.name} {run.but_seed}"
