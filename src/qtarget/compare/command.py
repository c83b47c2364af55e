"""`qtarget compare`: runs side by side in the terminal, as a page, as a picture; or two prompt by prompt.

record/runs.py   folders on disk → Run
columns.py       the columns of the table of runs, and the sentences around it; decimals.py: how many digits they have
next_step.py     the commands that follow
pairs.py         --paired: two runs, prompt by prompt or row by row
groups.py        --group-by: runs over their seeds → rows with intervals; selection.py: each group at its --best-of
group_table.py   the table of those rows
sweeps.py        what was swept, and the plots of the metric over it
formats.py       a table for a terminal, in Markdown, CSV and LaTeX (latex.py)
report.py        report.html
power.py         `qtarget power`, by pilot.py (variances of finished runs) and detectable.py (what is detected)
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from qtarget.compare.columns import (
    TableColumn,
    columns_of,
    judged,
    reading_note,
    subject,
    unfinished_in_words,
)
from qtarget.compare.formats import Table, markdown_text, terminal
from qtarget.compare.group_table import Grouped, Grouping, grouped_rows
from qtarget.compare.groups import GroupRow
from qtarget.compare.next_step import next_command
from qtarget.compare.selection import usual_validation
from qtarget.compare.sweeps import Swept, read_swept, usual_metric
from qtarget.config.versions import outdated
from qtarget.errors import QTargetError
from qtarget.evaluate.row_losses import FILE as ROWS_FILE
from qtarget.record.runs import Run, differing_keys, finished, read_runs, unfinished, without_own_files

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

FORMATS = ("rich", "md", "csv", "tex")
TABLE_TITLES = {"result": "Result", "loss": "What the loss trusted, and what it cost"}


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, as `compare` says it."""

    group_by: Sequence[str] = ()
    failed: bool = False
    metric: str | None = None
    against: Sequence[str] = ()
    best_of: Sequence[str] = ()
    by: str | None = None

    @property
    def words(self) -> list[str]:
        """As they are typed."""
        joined = {"--group-by": ",".join(self.group_by), "--best-of": ",".join(self.best_of)}
        named = {**joined, "--by": self.by, "--metric": self.metric}
        words = [word for option, value in named.items() if value for word in (option, value)]
        words += [word for text in self.against for word in ("--against", text)]
        return [*words, *["--failed"] * self.failed]


def compared(
    paths: Sequence[str | Path], options: CompareOptions
) -> tuple[Sequence[Run], Grouped | None, Swept | None]:
    """The runs under `paths`, in table order; their groups, where they are grouped; else what was swept."""
    runs = [_with_changes(run) for run in read_runs(paths)]
    runs = [replace(run, only_listed=run.status == "failed" and not options.failed) for run in runs]
    if options.best_of and not options.group_by:
        raise QTargetError("--best-of chooses within groups: add --group-by, such as --group-by target")
    if not options.group_by or not finished(runs):
        return runs, None, read_swept(runs, options.metric)
    metric, by = options.metric or usual_metric(runs), options.by or usual_validation(runs)
    return runs, grouped_rows(runs, Grouping(options.group_by, metric, options.against, options.best_of, by)), None


def compare(
    paths: Sequence[str | Path],
    out: Path | None = None,
    format: str = "rich",
    *,
    group_by: Sequence[str] = (),
    metric: str | None = None,
    against: Sequence[str] = (),
    best_of: Sequence[str] = (),
    by: str | None = None,
    failed: bool = False,
) -> int:
    """Print the table of the runs under `paths`; write report.html and comparison.png into `out` (default: first path).

    format: with md, csv or tex only the table goes to stdout, the rest to stderr.
    metric: by default accuracy, or nll where nothing was answered; in the plots of a sweep the sweep's own.
    group_by: keys. Runs that agree in them are taken together over their seeds, and the table shows `metric` with
    intervals. against: KEY=VALUE texts that name a baseline; the table shows paired differences to it.
    best_of: keys, such as optim.lr. Each group is shown at its best of them by the validation metric `by` (None:
    val/accuracy, or val/nll where nothing was answered). failed: runs that failed are drawn as far as they came, and
    stand in a csv; else they are listed below the table alone.
    Returns 0, or 1 where no run has finished.
    """
    if format not in FORMATS:
        raise QTargetError(f"format={format} is not known; choose one of {', '.join(FORMATS)}.")
    options = CompareOptions(group_by, failed, metric, against, best_of, by)
    runs, grouped, swept = compared(paths, options)
    if grouped:
        print_groups(grouped, format, unfinished_lines(runs))
    elif format == "rich":
        print_tables(runs)
    else:
        print({"md": markdown, "csv": unrounded, "tex": latex}[format](runs), end="")
    first = Path(paths[0])
    folder = Path(out) if out else first.parent if first.is_file() else first
    page, picture = write_files(runs, folder, grouped, swept)
    aside = terminal(stderr=format != "rich")
    aside.print(f"\nreport   {near(page)}\npicture  {near(picture)}", markup=False, highlight=False, soft_wrap=True)
    placed = [*(["--out", str(out)] if out else []), *(["--format", format] if format != "rich" else [])]
    again = shlex.join(["qtarget", "compare", *map(str, without_own_files(paths)), *options.words, *placed])
    aside.print(f"next     {next_command(runs)}\n         {again}", markup=False, highlight=False, soft_wrap=True)
    for more in filter(None, (_pair_command(runs), _power_command(paths, options, grouped))):
        aside.print(f"         {more}", markup=False, highlight=False, soft_wrap=True)
    return 0 if finished(runs) else 1


def _pair_command(runs: Sequence[Run]) -> str | None:
    """Of two runs that nobody judged, row by row."""
    done = finished(runs)
    if len(done) != 2 or judged(done) or not all((run.folder / ROWS_FILE).is_file() for run in done):
        return None
    return shlex.join(["qtarget", "compare", *(near(run.folder) for run in done), "--paired", "nll"])


def _power_command(paths: Sequence[str | Path], options: CompareOptions, grouped: Grouped | None) -> str | None:
    """What more seeds and rows would detect, of groups whose differences are paired by row over seeds."""
    if not grouped or options.best_of or not any(map(_varies, grouped.rows)):
        return None
    words = replace(options, failed=False, by=None).words
    return shlex.join(
        ["qtarget", "power", *map(str, without_own_files(paths)), *words, "--designs", str(grouped.comparisons + 1)]
    )


def _varies(row: GroupRow) -> bool:
    """Whether `qtarget power` can take a variance from the difference of a group: p is 1 where no row differs."""
    return row.p_value is not None and row.p_value < 1 and len(row.group.runs) > 1


def _with_changes(run: Run) -> Run:
    """With what has changed since, where an earlier build made the run and its numbers are concerned."""
    try:
        config = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
        recorded = json.loads((run.folder / "result.json").read_text(encoding="utf-8")).get("mends") or {}
        return replace(run, outdated=tuple(outdated(config, recorded)))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        return run  # a record that can't be read says so elsewhere


def write_files(
    runs: Sequence[Run], folder: Path, grouped: Grouped | None = None, swept: Swept | None = None
) -> tuple[Path, Path]:
    """report.html and comparison.png in `folder`."""
    from qtarget.compare.report import picture_plots, write_report
    from qtarget.plot.drawing import draw_png  # plots and templates only where they are made

    folder.mkdir(parents=True, exist_ok=True)
    page, picture = folder / "report.html", folder / "comparison.png"
    write_report(runs, page, grouped, swept)
    draw_png(picture_plots(runs, grouped), picture)
    return page, picture


def print_tables(runs: Sequence[Run], console: Console | None = None) -> None:
    """Two compact tables, the note on how to read them, and what is not in them."""
    console = console or terminal()
    console.print(subject(runs), markup=False, highlight=False)
    for group in TABLE_TITLES if finished(runs) else ():
        console.print(rich_table(runs, group))
    for line in [_note(runs), *unfinished_lines(runs)]:
        console.print(line, markup=False, highlight=False, soft_wrap=False)


def print_groups(grouped: Grouped, format: str, left_out: Sequence[str]) -> None:
    """One line per group of runs, what its intervals cover, and which runs are in no group."""
    if format == "rich":
        console = terminal()
        console.print(grouped.table.rich())
        for line in (grouped.note, *left_out):
            console.print(line, markup=False, highlight=False)
        return
    written = {"md": grouped.table.markdown, "csv": grouped.unrounded.csv, "tex": grouped.table.latex}
    print(written[format](), end="")
    for line in left_out:
        terminal(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def rich_table(runs: Sequence[Run], group: str) -> RichTable:
    """The columns of one group, the design's name in front."""
    columns = [column for column in columns_of(runs) if column.group == group or column.key == "name"]
    # numbers are narrow, so their titles stand in two lines
    table = _table(runs, columns, [column.title.replace(" ", "\n", 1) for column in columns], title=TABLE_TITLES[group])
    return table.rich([None if column.numeric else 26 if column.key == "name" else 18 for column in columns])


def _table(runs: Sequence[Run], columns: Sequence[TableColumn], titles: Sequence[str], **words: str) -> Table:
    """The finished runs; words: `note` and `title`."""
    lines = [[column.text(run) for column in columns] for run in finished(runs)]
    return Table(titles, lines, [column.numeric for column in columns], **words)


def unfinished_lines(runs: Sequence[Run]) -> list[str]:
    """How many runs have not finished, and of each which and why; nothing where all have."""
    lines = [
        f"{run.status_text}: {run.label} ({run.short_path})" + (f": {run.reason}" if run.error else "")
        for run in unfinished(runs)
    ]
    return [f"{unfinished_in_words(runs)}:", *lines] if lines else []


def markdown(runs: Sequence[Run]) -> str:
    """One GitHub table with every column, the note and the list of unfinished runs under it."""
    head, *lines = unfinished_lines(runs) or [""]
    listed = [markdown_text(head), "\n".join(f"- {markdown_text(line)}" for line in lines)] * bool(lines)
    note = "\n\n".join([_note(runs), *listed])
    columns = columns_of(runs)
    return _table(runs, columns, [column.title for column in columns], note=note).markdown()


def latex(runs: Sequence[Run]) -> str:
    """One booktabs table of the columns that say something."""
    columns = columns_of(runs)
    note = "\n".join([_note(runs), *unfinished_lines(runs)])
    return _table(runs, columns, [column.title for column in columns], note=note).latex()


def _note(runs: Sequence[Run]) -> str:
    return reading_note(runs) if finished(runs) else "No run has finished yet."


def unrounded(runs: Sequence[Run]) -> str:
    """Every run, unfinished ones too, with unrounded numbers and each config key that differs between the runs.

    Runs that are only listed are left out.
    """
    runs = [run for run in runs if not run.only_listed]
    metrics = sorted({key for run in runs for key in run.metrics})
    keys = differing_keys(runs)
    plain = ("name", "role", "status", "experiment", "seed", "folder", "reliance", "residual", "weight")
    lines = []
    for run in runs:
        design = [run.design.get(part, "") for part in ("reliance", "residual", "weight")]
        seed = "" if run.seed is None else run.seed
        row: list[object] = [run.label, run.role, run.status, run.experiment, seed, run.short_path, *design]
        row += [run.metrics.get(key, "") for key in metrics]
        row += [run.rows.get(key, "") for key in ("train", "noisy", "heldout")]
        lines.append(list(map(str, row + [run.config.get(key, "") for key in keys])))
    return Table([*plain, *metrics, "train_rows", "noisy_rows", "heldout_rows", *keys], lines).csv()


def near(path: Path) -> str:
    """`path` as a person standing in the working folder would write it."""
    resolved = path.resolve()
    return str(resolved.relative_to(Path.cwd())) if resolved.is_relative_to(Path.cwd()) else str(resolved)
