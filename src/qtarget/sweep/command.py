"""`qtarget sweep FILE`: a W&B sweep file without W&B, every point a job in a slot.

output_dir/<name>/<hash>/     a job's record, as `qtarget train` writes it
output_dir/<name>/sweep.json  the points, their values and states
output_dir/<name>/study.db    what Bayesian search knows
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtarget import checks
from qtarget.compare.formats import Table, terminal
from qtarget.compare.sweeps import SWEEP_MANIFEST
from qtarget.errors import QTargetError
from qtarget.files import locked, write_atomically
from qtarget.launch.slots import Job, slots
from qtarget.record.record import make_folder
from qtarget.sweep.file import SweepFile, read_sweep
from qtarget.sweep.points import JobFactory, Values, changes_points, corners, grid_points, random_points
from qtarget.sweep.scheduler import Measured, SweepPoint, SweepScheduler

if TYPE_CHECKING:
    from qtarget.sweep.bayes import Bayes

STUDY = "study.db"
SHOWN = 10
"""Points of the closing table."""


def sweep(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    slot_count: int | None = None,
    devices: Sequence[int] | None = None,
    max_points: int | None = None,
    seed: int = 0,
    retry: int = 0,
) -> int:
    """Run what is left of a sweep, `slot_count` jobs at once. Returns 0, or 1 where a point has failed.

    max_points: points in all, in place of the file's run_cap. seed: of random and Bayesian search. retry: how often a
    job that crashed is started again.
    """
    if slot_count is not None:
        checks.whole("--slots", slot_count, 1)
    checks.whole("--seed", seed, 0)
    checks.whole("--retry", retry, 0)
    file = read_sweep(path)
    jobs = JobFactory(file, tuple(overrides))
    jobs.check_fixed()
    if jobs.left_out:
        print(
            f"left out, as this is without W&B: {' '.join(jobs.left_out)}; behind the file it counts", file=sys.stderr
        )
    places = slots(slot_count, devices)
    print(f"{file.name}: checking every configuration before the first one runs", file=sys.stderr)
    checked = [(values, jobs.checked(values)) for values in _checked(file, max_points, seed)]
    folder = checked[0][1].folder.parent
    make_folder(folder)
    busy = f"another qtarget sweep is at work in {folder}: wait for it, or stop it"
    with locked(folder / ".sweep.lock", busy, wait=0):
        _claim(folder, file, overrides, seed)
        going = _planned(jobs, folder, checked, max_points, seed)
        try:
            going.run(places, retry)
        finally:
            going.leave()
    return _summary(going, folder)


def _checked(file: SweepFile, cap: int | None, seed: int) -> Iterator[dict[str, Any]]:
    """All points of a grid or a random search; of a Bayesian one, which has none yet, the corners of its space."""
    if cap is not None:
        checks.whole("--count", cap, 1)
    if file.method == "bayes":
        _cap(file, cap)
        return iter(corners(file.parameters))
    if file.method == "grid":
        return islice(grid_points(file.parameters), cap or file.run_cap)
    return islice(random_points(file.parameters, seed), _cap(file, cap))


def _cap(file: SweepFile, cap: int | None) -> int:
    found = cap or file.run_cap
    if found is None:
        raise QTargetError(f"{file.path}: method {file.method} has no end: set run_cap in the file, or give --count N")
    return found


def _planned(
    jobs: JobFactory, folder: Path, checked: Sequence[tuple[Values, Job]], cap: int | None, seed: int
) -> SweepScheduler:
    """checked: the points themselves, but for a Bayesian search."""
    file = jobs.file
    points: list[SweepPoint] = []

    def save() -> None:
        metric = {"name": file.metric.name, "maximize": file.metric.maximize} if file.metric else None
        _write_book(folder, metric=metric, points=[point.to_dict() for point in points])

    if file.method != "bayes":
        unlike: dict[str, tuple[Values, Job]] = {}
        for values, job in checked:
            unlike.setdefault(job.identity, (values, job))
        points += [SweepPoint(number, values, job) for number, (values, job) in enumerate(unlike.values())]
        return SweepScheduler(file, iter(points), points, lambda point: None, len(points), save)

    from qtarget.sweep.bayes import Bayes

    assert file.metric is not None
    search, total = Bayes(folder / STUDY, file.parameters, file.metric, seed), _cap(file, cap)
    proposals = _proposed(search, jobs, points, total)
    return SweepScheduler(file, proposals, points, lambda point: search.tell(point.number, point.value), total, save)


def _proposed(search: Bayes, jobs: JobFactory, points: list[SweepPoint], total: int) -> Iterator[SweepPoint]:
    """First what was proposed before, whatever came of it, then new points; noted in `points`."""
    for number, values in islice(chain(search.earlier(), iter(search.ask, None)), total):
        try:
            job = jobs.checked(values)
        except QTargetError as error:  # values that each are legal, but not together
            print(f"left out: {error}", file=sys.stderr, flush=True)
            search.tell(number, None)
            continue
        points.append(SweepPoint(number, values, job))
        yield points[-1]


def _claim(folder: Path, file: SweepFile, overrides: Sequence[str], seed: int) -> None:
    """Write down which sweep this folder holds; refuse one that holds another."""
    mine = {
        "method": file.method,
        "parameters": file.raw_parameters,
        "arguments": [one for one in (*file.before, file.prefix, *file.after) if changes_points(one)],
        "overrides": [one for one in overrides if changes_points(one)],
        "seed": seed,
    }
    book = _book(folder)
    other = book.get("sweep", mine)
    differing = [key for key, value in mine.items() if json.loads(json.dumps(value)) != other.get(key)]
    if book and differing:
        raise QTargetError(
            f"{folder} holds another sweep, of {book.get('file')} (other {', '.join(differing)}). To go on with that "
            "one give its file and arguments again; for this one choose another folder: `name: …` in the file, or "
            "experiment_name=NAME behind it"
        )
    _write_book(folder, sweep=mine, file=str(file.path))


def _book(folder: Path) -> dict[str, Any]:
    path = folder / SWEEP_MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write_book(folder: Path, **facts: Any) -> None:
    write_atomically(folder / SWEEP_MANIFEST, json.dumps(_book(folder) | facts, indent=1, ensure_ascii=False))


# The end


def _summary(going: SweepScheduler, folder: Path) -> int:
    """The best points, where results are, what to do next."""
    _print_best(going)
    states = [point.state for point in going.points]
    told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    failed = [point for point in going.points if point.state == "failed"]
    for point in failed:
        print(f"FAILED    {point.job.label}  →  {point.job.folder}\n          {point.error}", file=sys.stderr)
    for point in going.without_value() if going.metric else ():
        print(f"NO VALUE  {point.job.label}  →  {point.job.folder}\n          {_why(going, point)}", file=sys.stderr)
    print(f"{len(states)} points: {told}; results in {folder}, listed in {folder / SWEEP_MANIFEST}")
    if failed:
        print("the same command runs the failed ones again", file=sys.stderr)
    print(f"next: {shlex.join(['qtarget', 'compare', str(folder)])}")
    return 1 if failed else 0


def _why(going: SweepScheduler, point: SweepPoint) -> str:
    """Why a settled point isn't among the ranked ones."""
    assert going.metric is not None
    measured = Measured.of(point.job.folder, going.metric.name)
    if measured.history or going.metric.name in measured.names:
        return f"{going.metric.name} was never a finite number: it has diverged, and takes no part in the search"
    return f"{going.metric.name} was not measured"


def _print_best(going: SweepScheduler) -> None:
    ranked = going.ranked()
    if going.metric is None or not ranked:
        return
    lines = [[*_cells(one.values), f"{one.value:.5g}", one.state, one.job.folder.name] for one in ranked[:SHOWN]]
    titles = [*going.file.parameters, going.metric.name, "state", "job"]
    table = Table(titles, lines, title=f"{going.file.name}: the best points")
    terminal(width=120).print(table.rich(overflow="fold", padding=(0, 1)))


def _cells(values: Mapping[str, Any]) -> list[str]:
    return [f"{value:.5g}" if isinstance(value, float) else str(value) for value in values.values()]
