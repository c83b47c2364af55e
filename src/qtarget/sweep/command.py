"""`qtarget sweep FILE`: a W&B sweep file without W&B, every point a job in a slot.

The way of a sweep through this package:

    file.py       the sweep file → SweepFile: parameters, method, metric, early stopping
    space.py      what one key may be: a distribution, as its quantile function
    points.py     points (key → value) of a grid or a random search; JobFactory makes a checked Job of a point
    bayes.py      points that follow from results
    scheduler.py  runs the jobs in slots, asks some to stop (early_stopping.py), notes what came of each point

What it leaves:

    output_dir/<name>/<hash>/     a job's record, as `qtarget train` writes it
    output_dir/<name>/sweep.json  the points, their values and states
    output_dir/<name>/study.db    what Bayesian search knows
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtarget import checks
from qtarget.compare.formats import Table, terminal
from qtarget.compare.selection import choice_hint
from qtarget.compare.sweeps import SWEEP_MANIFEST
from qtarget.errors import QTargetError
from qtarget.files import locked, write_atomically
from qtarget.launch.slots import Job, make_slots
from qtarget.record.record import make_folder
from qtarget.sweep.file import SweepFile, read_sweep
from qtarget.sweep.points import JobFactory, Values, changes_points, corners, grid_points, random_points
from qtarget.sweep.scheduler import Measured, SweepPoint, SweepScheduler

if TYPE_CHECKING:
    from qtarget.sweep.bayes import Bayes

STUDY = "study.db"
MOST_LISTED = 10
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
    factory = JobFactory(file, tuple(overrides), dry=is_dry(overrides))
    factory.check_overrides()
    if left_out := factory.tracker_arguments:
        print(f"left out, as this is without W&B: {' '.join(left_out)}; behind the file it counts", file=sys.stderr)
    slots = [] if factory.dry else make_slots(slot_count, devices)
    print(f"{file.name}: checking every configuration before the first one runs", file=sys.stderr)
    checked = [(values, factory.make_job(values)) for values in _checked_points(file, max_points, seed)]
    folder = checked[0][1].folder.parent
    _say_what_is_written(factory, checked, _total(file, max_points) if file.method == "bayes" else None)
    _say_what_a_choice_lacks(factory, checked)
    if factory.dry:
        show(factory, checked, max_points)
        return 0
    make_folder(folder)
    busy = f"another qtarget sweep is at work in {folder}: wait for it, or stop it"
    with locked(folder / ".sweep.lock", busy, wait=0):
        _record_sweep(folder, file, overrides, seed)
        if file.method == "bayes":
            scheduler = _bayes_scheduler(factory, folder, max_points, seed)
        else:
            scheduler = _list_scheduler(file, folder, checked)
        try:
            scheduler.run(slots, retry)
        finally:
            scheduler.save_ended()
    return _summary(scheduler, folder)


def _say_what_is_written(factory: JobFactory, checked: Sequence[tuple[Values, Job]], searched: int | None) -> None:
    """By the jobs that are to run. searched: of a Bayesian search how many, each taken for the largest it may be."""
    from qtarget.run.disk import total_in_words

    jobs = {job.identity: job for _, job in checked if searched is not None or not job.finished}
    uses = [factory.disk[identity] for identity in jobs if identity in factory.disk]
    if searched is not None and uses:
        uses = [max(uses, key=lambda use: use.kept)] * searched
    if uses:
        print(f"{factory.file.name}: {total_in_words(uses, checked[0][1].folder.parent)}", file=sys.stderr)


def _say_what_a_choice_lacks(factory: JobFactory, checked: Sequence[tuple[Values, Job]]) -> None:
    """Of a grid, whose jobs `qtarget compare --best-of` can choose among."""
    config = factory.configs[checked[0][1].identity]
    points = [{key: str(value) for key, value in values.items()} for values, _ in checked]
    hint = choice_hint(points, config.eval.test_on, config.trainer.eval_every)
    if hint and factory.file.method == "grid":
        print(f"{factory.file.name}: {hint}", file=sys.stderr)


def _checked_points(file: SweepFile, max_points: int | None, seed: int) -> Iterator[dict[str, Any]]:
    """All points of a grid or a random search; of a Bayesian one, which has none yet, the corners of its space."""
    if max_points is not None:
        checks.whole("--count", max_points, 1)
    if file.method == "bayes":
        _total(file, max_points)
        return iter(corners(file.parameters))
    if file.method == "grid":
        return islice(grid_points(file.parameters), max_points or file.run_cap)
    return islice(random_points(file.parameters, seed), _total(file, max_points))


def _total(file: SweepFile, max_points: int | None) -> int:
    """How many points a search has that would never end by itself."""
    total = max_points or file.run_cap
    if total is None:
        raise QTargetError(f"{file.path}: method {file.method} has no end: set run_cap in the file, or give --count N")
    return total


def _list_scheduler(file: SweepFile, folder: Path, checked: Sequence[tuple[Values, Job]]) -> SweepScheduler:
    """Of points that are all known; those of one configuration are one."""
    by_identity: dict[str, tuple[Values, Job]] = {}
    for values, job in checked:
        by_identity.setdefault(job.identity, (values, job))
    points = [SweepPoint(number, values, job) for number, (values, job) in enumerate(by_identity.values())]
    return SweepScheduler(file, iter(points), points, len(points), partial(_save_points, folder, file, points))


def _bayes_scheduler(factory: JobFactory, folder: Path, max_points: int | None, seed: int) -> SweepScheduler:
    """Of points that follow from results: `_proposed` appends each to `points` when the scheduler asks for it."""
    from qtarget.sweep.bayes import Bayes

    file, points = factory.file, list[SweepPoint]()
    assert file.metric is not None
    search, total = Bayes(folder / STUDY, file.parameters, file.metric, seed), _total(file, max_points)

    def report_result(point: SweepPoint) -> None:
        search.tell(point.number, point.value)

    proposals = _proposed(search, factory, points, total)
    return SweepScheduler(file, proposals, points, total, partial(_save_points, folder, file, points), report_result)


def _proposed(search: Bayes, factory: JobFactory, points: list[SweepPoint], total: int) -> Iterator[SweepPoint]:
    """First what was proposed before, whatever came of it, then new points; each is appended to `points`."""
    new_points = (search.ask() for _ in count())
    for number, values in islice(chain(search.earlier(), new_points), total):
        try:
            job = factory.make_job(values)
        except QTargetError as error:  # values that each are legal, but not together
            print(f"left out: {error}", file=sys.stderr, flush=True)
            search.tell(number, None)
            continue
        points.append(SweepPoint(number, values, job))
        yield points[-1]


# trainer=dry


def is_dry(overrides: Sequence[str]) -> bool:
    """Whether the sweep is only to be shown."""
    return any(word.lower() in ("trainer=dry", "trainer.dry=true") for word in overrides)


def show(factory: JobFactory, checked: Sequence[tuple[Values, Job]], max_points: int | None) -> None:
    """What the sweep would run, and what its first job would do and take. Nothing is written."""
    from qtarget.run.estimate import dry_run  # torch and transformers come in here

    file, jobs = factory.file, list({job.identity: job for _, job in checked}.values())
    search = file.method == "bayes"
    count = _total(file, max_points) if search else len(jobs)
    done = "" if search else f", {sum(job.finished for job in jobs)} of them finished"
    print(f"{file.name}: {count} jobs{done}, {file.method} over {', '.join(file.parameters)}")
    for job in [] if search else jobs[:MOST_LISTED]:
        print(f"  {job.label}")
    if not search and count > MOST_LISTED:
        print(f"  … and {count - MOST_LISTED} more")
    dry_run(factory.configs[jobs[0].identity], f"the job of {jobs[0].label}")


# sweep.json


def _record_sweep(folder: Path, file: SweepFile, overrides: Sequence[str], seed: int) -> None:
    """Write down which sweep this folder holds. Raises QTargetError where it holds another."""
    sweep = {
        "method": file.method,
        "parameters": file.raw_parameters,
        "arguments": [word for word in (*file.before, file.prefix, *file.after) if changes_points(word)],
        "overrides": [word for word in overrides if changes_points(word)],
        "seed": seed,
    }
    manifest = _read_manifest(folder)
    recorded = manifest.get("sweep", sweep)
    differing = [key for key, value in sweep.items() if json.loads(json.dumps(value)) != recorded.get(key)]
    if manifest and differing:
        raise QTargetError(
            f"{folder} holds another sweep, of {manifest.get('file')} (other {', '.join(differing)}). To go on with "
            "that one give its file and arguments again; for this one choose another folder: `name: …` in the file, or "
            "experiment_name=NAME behind it"
        )
    _update_manifest(folder, sweep=sweep, file=str(file.path))


def _save_points(folder: Path, file: SweepFile, points: Sequence[SweepPoint]) -> None:
    metric = {"name": file.metric.name, "maximize": file.metric.maximize} if file.metric else None
    _update_manifest(folder, metric=metric, points=[point.to_dict() for point in points])


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / SWEEP_MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _update_manifest(folder: Path, **facts: Any) -> None:
    text = json.dumps(_read_manifest(folder) | facts, indent=1, ensure_ascii=False)
    write_atomically(folder / SWEEP_MANIFEST, text)


# The end


def _summary(scheduler: SweepScheduler, folder: Path) -> int:
    """The best points, where results are, what to do next."""
    _print_best(scheduler)
    states = [point.state for point in scheduler.points]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    failed = [point for point in scheduler.points if point.state == "failed"]
    for point in failed:
        print(f"FAILED    {point.job.label}  →  {point.job.folder}\n          {point.error}", file=sys.stderr)
    for point in scheduler.without_value() if scheduler.metric else ():
        reason = _why_unranked(scheduler, point)
        print(f"NO VALUE  {point.job.label}  →  {point.job.folder}\n          {reason}", file=sys.stderr)
    print(f"{len(states)} points: {counts}; results in {folder}, listed in {folder / SWEEP_MANIFEST}")
    if failed:
        print("the same command runs the failed ones again", file=sys.stderr)
    print(f"next: {shlex.join(['qtarget', 'compare', str(folder)])}")
    return 1 if failed else 0


def _why_unranked(scheduler: SweepScheduler, point: SweepPoint) -> str:
    """Why a settled point isn't among the ranked ones."""
    assert scheduler.metric is not None
    measured = Measured.of(point.job.folder, scheduler.metric.name)
    if measured.history or scheduler.metric.name in measured.names:
        return f"{scheduler.metric.name} was never a finite number: it has diverged, and takes no part in the search"
    return f"{scheduler.metric.name} was not measured"


def _print_best(scheduler: SweepScheduler) -> None:
    ranked = scheduler.ranked()
    if scheduler.metric is None or not ranked:
        return
    lines = [
        [*map(_cell, point.values.values()), f"{point.value:.5g}", point.state, point.job.folder.name]
        for point in ranked[:MOST_LISTED]
    ]
    titles = [*scheduler.file.parameters, scheduler.metric.name, "state", "job"]
    table = Table(titles, lines, title=f"{scheduler.file.name}: the best points")
    terminal(width=120).print(table.rich(padding=(0, 1)))


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
