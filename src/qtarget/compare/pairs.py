"""`qtarget compare A B --paired METRIC`: two runs, prompt by prompt or held-out row by row."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from qtarget.compare.command import near
from qtarget.compare.decimals import bracketed, decimals_of_intervals, fixed
from qtarget.compare.groups import HELDOUT_METRICS
from qtarget.errors import QTargetError
from qtarget.evaluate.ratios import Ratios, ratio_difference
from qtarget.evaluate.row_losses import FILE as ROWS_FILE
from qtarget.evaluate.row_losses import SIZES, by_row, read_row_losses
from qtarget.evaluate.samples import FILE, Paired, Sample, paired, read_samples
from qtarget.evaluate.scores import holm
from qtarget.measures import direction
from qtarget.record.runs import read_run, with_labels, without_own_files

MOST_NAMED = 8
"""Runs in a message."""
BETTER = {"min": " (below 0: B is better)", "max": " (above 0: B is better)", None: ""}
"""How a difference reads, by the better end of its metric."""


def compare_paired(paths: Sequence[str | Path], metric: str) -> int:
    """Print the two means and their difference: of answers, for each source of problems that both have; of nll and
    bits_per_byte, over the held-out rows that both have. metric: with its prefix test/ or without.
    """
    name = metric.removeprefix(f"{HELDOUT_METRICS}/")
    folders = _two(without_own_files(paths), ROWS_FILE if name in SIZES else FILE, metric)
    (_print_rows if name in SIZES else _print_answers)(folders, name)
    print(f"next: {shlex.join(['qtarget', 'compare', *map(str, without_own_files(paths))])}")
    return 0


def _two(paths: Sequence[str | Path], name: str, metric: str) -> tuple[Path, Path]:
    """The two runs that are named, or that the only folder named holds. name: of the file that they keep."""
    runs = [Path(path) for path in paths]
    if len(runs) == 1 and runs[0].is_dir() and not (runs[0] / name).is_file():
        runs = sorted(file.parent for file in runs[0].glob(f"*/{name}"))
        if not runs:
            kept_file(Path(paths[0]), name)  # which says what is missing
    if len(runs) != 2:
        named = f": {', '.join(map(str, runs[:MOST_NAMED]))}{', …' * (len(runs) > MOST_NAMED)}" * bool(runs)
        raise QTargetError(
            f"--paired compares two runs, got {len(runs)}{named}. Name two: qtarget compare A B --paired {metric}"
        )
    return runs[0], runs[1]


def _print_answers(paths: tuple[Path, Path], metric: str) -> None:
    files = [kept_file(path, FILE) for path in paths]
    a, b = (read_samples(file) for file in files)
    sources = [source for source in _sources(a) if source in _sources(b)]
    if not sources:
        raise QTargetError(f"no source of problems in common: {', '.join(_sources(a))} and {', '.join(_sources(b))}")
    _print_head(files, metric)
    pairs = [paired(_of(a, source), _of(b, source), metric) for source in sources]
    corrected = holm([pair.difference.p_value for pair in pairs])
    for source, pair, p_value in zip(sources, pairs, corrected, strict=True):
        print(f"  {source:<14}{_line(pair, 'prompts', p_value, len(pairs))}")


def _print_rows(paths: tuple[Path, Path], metric: str) -> None:
    files = [kept_file(path, ROWS_FILE) for path in paths]
    pair = _paired_rows(files, metric)
    _print_head(files, metric)
    print(f"  {'held-out rows':<14}{_line(pair, 'rows', pair.difference.p_value, 1)}")


def _paired_rows(files: Sequence[Path], metric: str) -> Paired:
    """Rows are the same where they say the same. Raises QTargetError where fewer than two are."""
    sides = [by_row(read_row_losses(file), metric) for file in files]
    for file, side in zip(files, sides, strict=True):
        if strange := sum(not math.isfinite(total) for total, _ in side.values()):
            raise QTargetError(f"{file}: the nll of {strange} of {len(side)} rows is not finite: that run has diverged")
    shared = [row for row in sides[0] if row in sides[1] and sides[0][row][1] and sides[1][row][1]]
    a, b = (Ratios(*np.array([side[row] for row in shared]).reshape(-1, 2).T[:, None]) for side in sides)
    difference = ratio_difference(b, a)
    if difference is None:
        raise QTargetError(
            f"the runs share {len(shared)} held-out rows, of {len(sides[0])} and {len(sides[1])}: evaluate both on "
            "the same rows, with the same turns supervised"
        )
    apart = len(sides[0]) - len(shared), len(sides[1]) - len(shared)
    return Paired(float(a.each[0]), float(b.each[0]), len(shared), *apart, difference)


def kept_file(path: Path, name: str) -> Path:
    """A file of an evaluation: itself, in the folder of a run or an evaluation, or in the only one below a folder."""
    if path.is_file():
        return path
    files = [path / name] if (path / name).is_file() else sorted(path.glob(f"*/{name}"))
    if len(files) == 1:
        return files[0]
    if not files and name == FILE:
        raise QTargetError(
            f"{path} has no {FILE}: name a run whose answers were judged, which takes rows with data.source.verifier. "
            "Runs without judged answers are paired row by row: qtarget compare A B --paired nll"
        )
    if not files:
        raise QTargetError(f"{path} has no {name}: name a finished run, or an evaluation, with held-out rows")
    folders = ", ".join(str(file.parent) for file in files)
    raise QTargetError(f"{path} holds {len(files)} evaluations; name one: {folders}")


def _sources(samples: Sequence[Sample]) -> list[str]:
    return list(dict.fromkeys(sample.source for sample in samples))


def _of(samples: Sequence[Sample], source: str) -> list[Sample]:
    return [sample for sample in samples if sample.source == source]


def _print_head(files: Sequence[Path], metric: str) -> None:
    runs = with_labels([read_run(file.parent, datetime.now(UTC)) for file in files])
    for side, run, file in zip("AB", runs, files, strict=True):
        print(f"{side}  {run.label}  {near(file)}")
    print(f"{metric}, with the 95 % interval of B − A{BETTER[direction(metric)]}:")


def _line(pair: Paired, unit: str, p_value: float, comparisons: int) -> str:
    """unit: what the runs are paired by. p_value: corrected for so many comparisons."""
    score, unshared = pair.difference.score, pair.only_a + pair.only_b
    others = f", {unshared} others left out" if unshared else ""
    how = f"sign flips, Holm over {comparisons} sources" if comparisons > 1 else "sign flips"
    decimals = decimals_of_intervals([score], 3)
    return (
        f"A {fixed(pair.a, decimals)}  B {fixed(pair.b, decimals)}  B − A {bracketed(score, decimals, '+')}  "
        f"p = {p_value:.2g} ({how}), {pair.shared} shared {unit}{others}"
    )
