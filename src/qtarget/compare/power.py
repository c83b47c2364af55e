"""`qtarget power`: what difference of two designs a planned experiment tells apart, by the variance of a pilot."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qtarget.checks import number, whole
from qtarget.compare.decimals import bracketed, decimals_of_intervals, fixed
from qtarget.compare.detectable import MeanSquares, PlannedExperiment, Variances, fewest, power, smallest_difference
from qtarget.compare.formats import Table, terminal
from qtarget.compare.groups import is_of_rows
from qtarget.compare.next_step import next_command
from qtarget.compare.pilot import Pair, Pilot, read_pilot
from qtarget.errors import QTargetError
from qtarget.evaluate.scores import CONFIDENCE, RESAMPLES, Score, Values
from qtarget.record.runs import without_own_files

LEAST_ROWS = 10
"""Fewer have too few signs to flip."""
MOST_SEEDS, MOST_ROWS = 100, 10_000_000
"""That are searched for what suffices."""
USUAL_SEEDS = (3, 5, 10)
MOST_PAIRS = 8
"""Named one by one."""
ENDS = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]


@dataclass(frozen=True)
class PowerOptions:
    """What is asked, as `qtarget power` says it. difference: in the unit of the table, percent of a share."""

    metric: str | None = None
    group_by: Sequence[str] = ()
    against: Sequence[str] = ()
    rows: Sequence[int] = ()
    seeds: Sequence[int] = ()
    power: float = 0.8
    alpha: float = 0.05
    designs: int = 2
    difference: float | None = None
    accuracy: float | None = None
    discordant: float | None = None
    format: str = "rich"


@dataclass(frozen=True)
class Reckoning:
    """plan: of the columns and rows of the table all but seeds and rows. bound: seeds' own luck is not known."""

    metric: str
    squares: MeanSquares
    plan: PlannedExperiment
    options: PowerOptions
    bound: bool

    @property
    def scale(self) -> float:
        return 1.0 if self.plan.ratio else 100.0

    @property
    def unit(self) -> str:
        return self.metric if self.plan.ratio else f"{self.metric} %"

    @property
    def seeds(self) -> Sequence[int]:
        usual = (1,) if self.bound else sorted({self.squares.seeds, *USUAL_SEEDS})
        return self.options.seeds or usual

    @property
    def rows(self) -> Sequence[int]:
        if self.options.rows:
            return self.options.rows
        here = max(LEAST_ROWS, round(self.squares.rows))
        return here, 2 * here, 4 * here

    def at(self, seeds: int, rows: int) -> PlannedExperiment:
        return replace(self.plan, seeds=seeds, rows=rows)

    def power(self, components: Variances, seeds: int, rows: int) -> Values:
        return power(components, self.at(seeds, rows), (self.options.difference or 0.0) / self.scale)

    def suffices(self, seeds: int, rows: int) -> bool:
        return bool(self.power(self.squares.estimate, seeds, rows)[0] >= self.options.power)


def power_command(paths: Sequence[str], options: PowerOptions) -> int:
    """Print what a planned experiment tells apart. Returns 0."""
    _check(options)
    if options.accuracy is not None:
        _print(_without_pilot(options), _assumed(options), [], options.format)
        return 0
    paths = [str(path) for path in without_own_files(paths)]
    pilot = read_pilot(paths, options.metric, options.group_by, options.against)
    plan = PlannedExperiment(1, LEAST_ROWS, options.alpha, options.designs - 1, is_of_rows(pilot.metric), pilot.step)
    reckoning = Reckoning(pilot.metric, pilot.squares, plan, options, pilot.squares.seeds == 1)
    _print(reckoning, _of_pilot(pilot, reckoning), _next(paths, pilot, options), options.format)
    return 0


def _check(options: PowerOptions) -> None:
    number("--alpha", options.alpha, 1e-6, 0.5)
    whole("--designs", options.designs, 2)
    if not options.alpha < options.power < 1:
        raise QTargetError(f"--power must lie between --alpha {options.alpha:g} and 1, got {options.power:g}")
    for seeds in options.seeds:
        whole("--seeds", seeds, 1, MOST_SEEDS)
    for rows in options.rows:
        whole("--rows", rows, LEAST_ROWS, MOST_ROWS)
    if options.difference is not None and not 0 < abs(options.difference) < np.inf:
        raise QTargetError(f"--difference must be a number other than 0, got {options.difference:g}")
    least = 1 / (1 + RESAMPLES)
    if options.alpha / (options.designs - 1) <= least:
        raise QTargetError(
            f"--alpha {options.alpha:g} over {options.designs - 1} comparisons is below {least:.2g}, the smallest p "
            f"that {RESAMPLES} sign flips give: take fewer --designs or a larger --alpha"
        )


def _without_pilot(options: PowerOptions) -> Reckoning:
    """Rows alone, of answers that are right or wrong: the variance of their differences is the share that differs."""
    accuracy = options.accuracy or 0.0
    number("--accuracy", accuracy, 0.0, 1.0)
    share = _discordant(options)
    most = 2 * min(accuracy, 1 - accuracy) + abs(options.difference or 0.0) / 100
    number("--discordant (of designs with that --accuracy)", share, abs(options.difference or 0.0) / 100, most)
    if not share:
        raise QTargetError("--discordant 0: two designs that never disagree have no difference to be detected")
    if not options.rows:
        raise QTargetError("without a pilot --rows says how many rows are planned, such as --rows 200,400")
    of_rows = share - (abs(options.difference or 0.0) / 100) ** 2
    plan = PlannedExperiment(1, LEAST_ROWS, options.alpha, options.designs - 1, step=1.0)
    return Reckoning("test/accuracy", MeanSquares(1, np.inf, 0.0, of_rows, 0.0), plan, options, True)


def _discordant(options: PowerOptions) -> float:
    """By default that of designs which answer independently."""
    accuracy = options.accuracy or 0.0
    return 2 * accuracy * (1 - accuracy) if options.discordant is None else options.discordant


def _assumed(options: PowerOptions) -> list[str]:
    how = "two designs that answer independently" if options.discordant is None else "as --discordant says"
    share = f"{100 * _discordant(options):.3g} %"
    return [
        f"No pilot: accuracy {100 * (options.accuracy or 0):.3g} %, the designs disagree on {share} of rows ({how})."
    ]


# In words


def _of_pilot(pilot: Pilot, reckoning: Reckoning) -> list[str]:
    """Which runs were used, and how their variance was split."""
    most = len(pilot.pairs[0].seeds)
    lines = [_pair_line(pair, reckoning) for pair in pilot.pairs[:MOST_PAIRS]]
    more = len(pilot.pairs) - MOST_PAIRS
    lines += [f"  and {more} more"] * (more > 0)
    passed = [f"  {pair.label}: left out, {len(pair.seeds)} of the others' {most} seeds" for pair in pilot.passed]
    return [f"Pilot, {reckoning.unit}, paired by seed and row:", *lines, *passed, *_split_lines(reckoning)]


def _pair_line(pair: Pair, reckoning: Reckoning) -> str:
    seeds = f"seed{'s' * (len(pair.seeds) > 1)} {', '.join(map(str, pair.seeds))}"
    left_out = f" ({pair.left_out:,} that some run lacks left out)" * bool(pair.left_out)
    difference = reckoning.scale * pair.difference
    deviation = reckoning.scale * float(np.sqrt(pair.squares.estimate.seed[0]))
    spread = f", standard deviation between seeds {deviation:.3g}" * (len(pair.seeds) > 1)
    return f"  {pair.label}: {difference:+.3g}, {seeds}, {pair.rows:,} shared rows{left_out}{spread}"


def _split_lines(reckoning: Reckoning) -> list[str]:
    squares, components = reckoning.squares, reckoning.squares.estimate
    if reckoning.bound:
        deviation = reckoning.scale * float(np.sqrt(squares.of_rows))
        return [f"Standard deviation of the difference between rows, under one seed: {deviation:.3g}."]
    seeds, rows = squares.seeds, squares.rows
    parts = [components.seed / seeds, components.row / rows, components.both / seeds / rows]
    total = float(sum(parts)[0])  # type: ignore[index]
    names = ("between seeds", "between rows, the same under all seeds", "of rows, another under each seed")
    values = (components.seed, components.row, components.both)
    lines = [
        f"  {reckoning.scale * float(np.sqrt(value[0])):<8.3g}{100 * float(part[0]) / total:4.0f} %  {name} "
        f"({freedom:,.0f} degrees of freedom)"
        for value, part, name, freedom in zip(values, parts, names, squares.freedom, strict=True)
    ]
    return ["Standard deviations of the difference, and their shares in the variance of the pilot's mean:", *lines]


def _note(reckoning: Reckoning) -> str:
    plan, options = reckoning.plan, reckoning.options
    holm = f", Holm over {plan.comparisons} comparisons" if plan.comparisons > 1 else ""
    detected = (
        f"Detected: p by sign flips of rows is below {options.alpha:g}{holm}, and the 95 % interval over seeds and "
        "rows leaves out 0. These are the p and the interval of qtarget compare."
    )
    if reckoning.bound:
        return (
            f"{detected} The luck of seeds is not in these numbers: it can't be known from one seed. So they are "
            "bounds (≥, ≤) that it makes worse. For more seeds they take what differs by row to be new under each."
        )
    return (
        f"{detected} Brackets: 95 % interval of the estimate, which {reckoning.squares.seeds} seeds leave open. False "
        "alarms: how often equal designs are taken for different; far above 0.05, a detection says little of designs."
    )


def _sufficient(reckoning: Reckoning) -> list[str]:
    """The fewest seeds of each count of rows; two at least, since one shows no luck of seeds."""
    if reckoning.options.difference is None or reckoning.bound:
        return []
    texts = []
    for rows in reckoning.rows:
        count = next((seeds for seeds in range(2, MOST_SEEDS + 1) if reckoning.suffices(seeds, rows)), None)
        texts.append(f"{count or f'more than {MOST_SEEDS}'} with {rows:,} rows")
    return [f"Fewest seeds for power {reckoning.options.power:g}: {', '.join(texts)}."]


def _next(paths: Sequence[str], pilot: Pilot, options: PowerOptions) -> list[str]:
    keys = ",".join(options.group_by or ["target"])
    against = list(options.against) or [f"{key}={value}" for key, value in pilot.pairs[0].baseline.key.items()][:1]
    words = ["qtarget", "compare", *paths, "--group-by", keys, *(w for text in against for w in ("--against", text))]
    return [next_command(pilot.runs), shlex.join([*words, "--metric", pilot.metric])]


# The table


def _print(reckoning: Reckoning, head: Sequence[str], commands: Sequence[str], format: str) -> None:
    after = [*_sufficient(reckoning), _note(reckoning)]
    if format == "csv":
        print(_unrounded(reckoning).csv(), end="")
        return
    table = _table(reckoning, "\n".join([*head, *after]))
    if format != "rich":
        print({"md": table.markdown, "tex": table.latex}[format](), end="")
        return
    console = terminal()
    for line in (*head, "", _title(reckoning)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(table.rich())
    for line in after:
        console.print(line, markup=False, highlight=False)
    for word, command in zip(("next", ""), commands, strict=False):
        console.print(f"{word:<8} {command}", markup=False, highlight=False, soft_wrap=True)


def _title(reckoning: Reckoning) -> str:
    options = reckoning.options
    if options.difference is None:
        return f"Smallest difference in {reckoning.unit} that is detected with power {options.power:g}:"
    return f"Power for a difference of {abs(options.difference):g} in {reckoning.unit}:"


def _table(reckoning: Reckoning, note: str) -> Table:
    asked = reckoning.options.difference is not None
    scores = [[_cell(reckoning, seeds, rows) for rows in reckoning.rows] for seeds in reckoning.seeds]
    decimals = (
        2 if asked else decimals_of_intervals([one for line in scores for one in line], 1 + 2 * reckoning.plan.ratio)
    )
    beside = ["fewest rows"] * asked + ["false alarms"] * (not reckoning.bound)
    titles = ["seeds", *(f"{rows:,} rows" for rows in reckoning.rows), *beside]
    lines = [
        [str(seeds), *(_text(reckoning, one, decimals) for one in line), *_beside(reckoning, seeds, asked)]
        for seeds, line in zip(reckoning.seeds, scores, strict=True)
    ]
    return Table(titles, lines, [True] * len(titles), note)


def _cell(reckoning: Reckoning, seeds: int, rows: int) -> Score:
    mean = float(_values(reckoning, reckoning.squares.estimate, seeds, rows)[0])
    if reckoning.bound:
        return Score(mean, mean, mean)
    low, high = np.quantile(_values(reckoning, reckoning.squares.draws, seeds, rows), ENDS)
    return Score(mean, float(low), float(high))


def _values(reckoning: Reckoning, components: Variances, seeds: int, rows: int) -> Values:
    if reckoning.options.difference is not None:
        return reckoning.power(components, seeds, rows)
    return reckoning.scale * smallest_difference(components, reckoning.at(seeds, rows), reckoning.options.power)


def _text(reckoning: Reckoning, score: Score, decimals: int) -> str:
    if reckoning.bound:
        sign = "≥" if reckoning.options.difference is None else "≤"
        return f"{sign} {fixed(score.mean, decimals)}"
    return bracketed(score, decimals)


def _beside(reckoning: Reckoning, seeds: int, asked: bool) -> list[str]:
    alarms = max(_alarms(reckoning, seeds, rows) for rows in reckoning.rows)
    return [_fewest_rows(reckoning, seeds)] * asked + [f"{alarms:.2f}"] * (not reckoning.bound)


def _alarms(reckoning: Reckoning, seeds: int, rows: int) -> float:
    return float(power(reckoning.squares.estimate, reckoning.at(seeds, rows), 0.0)[0])


def _fewest_rows(reckoning: Reckoning, seeds: int) -> str:
    count = fewest(lambda rows: reckoning.suffices(seeds, rows), LEAST_ROWS, MOST_ROWS)
    if count is None:
        return "none suffice"
    return f"{'≥ ' * reckoning.bound}{count:,}"


def _unrounded(reckoning: Reckoning) -> Table:
    name = "difference" if reckoning.options.difference is None else "power"
    ends = [] if reckoning.bound else [f"{name}_low", f"{name}_high", "false_alarms"]
    lines = []
    for seeds in reckoning.seeds:
        for rows in reckoning.rows:
            score = _cell(reckoning, seeds, rows)
            beside = [] if reckoning.bound else [score.low, score.high, _alarms(reckoning, seeds, rows)]
            lines.append([str(value) for value in (seeds, rows, score.mean, *beside)])
    return Table(["seeds", "rows", f"{name}_bound" if reckoning.bound else name, *ends], lines)
