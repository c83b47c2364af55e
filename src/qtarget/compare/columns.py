"""The comparison table: its columns, what is said around it, and texts of a configuration as numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qtarget.compare.decimals import bracketed, decimals_of_intervals, decimals_of_values, fixed
from qtarget.compare.groups import kept_interval
from qtarget.evaluate.scores import Score
from qtarget.measures import MEASURES, Measure
from qtarget.record.runs import Run, differing, finished, unfinished


def number(text: str) -> float | None:
    """The finite number that a text is, or None.

    >>> number("3e-05"), number("sft"), number("inf")
    (3e-05, None, None)
    """
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def numeric(values: Sequence[str]) -> bool:
    """Several numbers, and nothing else."""
    numbers = {number(value) for value in values}
    return len(numbers) > 1 and None not in numbers


MISSING = "–"
ACCURACY, NLL, PER_BYTE = "test/accuracy", "test/nll", "test/bits_per_byte"
OWN_HELDOUT = re.compile(r"data\.heldout_source(\..*)?|data\.source\.heldout")
"""Keys that name held-out rows of their own, whatever is trained on; data.source.heldout_share names none."""
UNSET = ("", "None", "null", None)
OF_TRAINING = ("train", "weight", "hint", "columns", "malformed", "unknown", "trust_scorer")
"""How keys of a source end that leave its held-out rows as they are."""
SAME = 1e-3
"""Tokens of a byte that are closer than this share are those of one tokenizer: sums of fp32 are not exact."""


@dataclass(frozen=True)
class TableColumn:
    """One column of the table: its text for people, its value for sorting (None sorts last)."""

    key: str
    title: str
    about: str
    group: str  # "result" or "loss": a terminal shows them as two tables
    text: Callable[[Run], str]
    value: Callable[[Run], float | str | None]
    numeric: bool = True
    least: int | None = None  # decimals; more where the values of a column need them. None: the text is always the same


def accuracy_text(run: Run) -> str:
    """Held-out accuracy in percent with its 95 % interval: `41.2 [36.5, 46.1]`."""
    values = [run.metrics.get(f"{ACCURACY}{end}") for end in ("", "_low", "_high")]
    if values[0] is None:
        return MISSING
    shown = [f"{100 * value:.1f}" for value in values if value is not None]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if len(shown) == 3 else shown[0]


def _rows_text(run: Run) -> str:
    train = 0 if run.role == "base" else run.rows.get("train", 0)
    return f"{train:,} ({run.rows.get('noisy', 0):,})" if train else MISSING


def _named(key: str, title: str, about: str, read: Callable[[Run], str]) -> TableColumn:
    return TableColumn(key, title, about, "result", read, lambda run: read(run) or None, numeric=False)


def _designed(key: str, title: str, about: str) -> TableColumn:
    return _named(key, title, about, lambda run: MISSING if run.role == "base" else run.design.get(key) or MISSING)


def _measured(key: str, title: str, about: str, group: str, digits: int) -> TableColumn:
    text = _with_decimals(key, digits)
    return TableColumn(key, title, about, group, text, lambda run: _finite(run.metrics.get(key)), least=digits)


def _with_decimals(key: str, decimals: int) -> Callable[[Run], str]:
    return lambda run: fixed(run.metrics[key], decimals) if key in run.metrics else MISSING


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _evaluated(measure: Measure) -> TableColumn:
    """A mean over held-out demonstrations."""
    unit = f", {measure.unit} per token" if measure.unit else ""
    about = f"{measure.about}{unit}, on held-out demonstrations"
    return _measured(f"test/{measure.name}", measure.title, about, "result", 3)


def _apart(name: str) -> Iterator[TableColumn]:
    """A measure's means on clean and on wrong tokens."""
    (measure,) = (measure for measure in MEASURES if measure.name == name)
    for kind, word in (("clean", "clean"), ("noisy", "wrong")):
        about = f"{measure.about}, {word} tokens"
        yield _measured(f"{measure.logged}_{kind}", f"{measure.title} {word}", about, "loss", 2)


COLUMNS: tuple[TableColumn, ...] = (
    _named("name", "design", "name of the run", lambda run: run.display_name),
    _designed("reliance", "reliance γ", "how far the label is trusted"),
    _designed("residual", "residual", "where the rest of the target's mass goes"),
    _designed("weight", "weight w", "the step size of a token"),
    TableColumn(
        ACCURACY,
        "accuracy % [95\u00a0%]",
        "held-out problems solved, with the 95 % interval",
        "result",
        accuracy_text,
        lambda run: _finite(run.metrics.get(ACCURACY)),
    ),
    *(_evaluated(measure) for measure in MEASURES if measure.evaluated),
    *_apart("trust"),
    _measured(
        "detection/auroc",
        "AUROC wrong",
        "how well low trust tells wrong tokens from clean ones; 0.5 is guessing",
        "loss",
        2,
    ),
    *_apart("reliance"),
    TableColumn(
        "rows/train",
        "rows (wrong)",
        "training rows, and how many of them carry a wrong label",
        "loss",
        _rows_text,
        lambda run: run.rows.get("train") or None,
    ),
    _measured("train/tokens_per_second", "tokens/s", "tokens per second while training", "loss", 0),
    _measured("train/peak_memory_gb", "peak GB", "peak memory while training, in GB", "loss", 2),
)

BITS_PER_BYTE = _measured(
    PER_BYTE, "bits/byte", "nll in bits per UTF-8 byte of the held-out replies: for unlike tokenizers", "result", 3
)


def columns_of(runs: Sequence[Run]) -> tuple[TableColumn, ...]:
    """COLUMNS as finished runs fill them: without those that are empty, each with the decimals that its values need.

    The nll has its interval where no answer was judged; bits per byte stand behind it where tokenizers differ.
    """
    done = finished(runs)
    beside = [BITS_PER_BYTE] * differing_tokenizers(done)
    columns = [one for column in COLUMNS for one in (column, *beside * (column.key == NLL))]
    if not done:
        return tuple(columns)
    filled = [column for column in columns if any(column.text(run) != MISSING for run in done)]
    fitted = [_fitted(column, done) for column in filled]
    return tuple(fitted if judged(done) else [_with_interval(column, done) for column in fitted])


def judged(runs: Iterable[Run]) -> bool:
    """Whether answers to held-out problems were."""
    return any(ACCURACY in run.metrics for run in runs)


def _fitted(column: TableColumn, runs: Sequence[Run]) -> TableColumn:
    if column.least is None:
        return column
    values = [run.metrics[column.key] for run in runs if column.key in run.metrics]
    return replace(column, text=_with_decimals(column.key, decimals_of_values(values, column.least)))


def _with_interval(column: TableColumn, runs: Sequence[Run]) -> TableColumn:
    """The nll with its 95 % interval over held-out rows, of the runs that have kept those."""
    kept = nll_intervals(runs) if column.key == NLL else {}
    if not kept:
        return column
    decimals = decimals_of_intervals(list(kept.values()), 3)
    plain = _with_decimals(column.key, decimals)

    def text(run: Run) -> str:
        return bracketed(kept[run.folder], decimals) if run.folder in kept else plain(run)

    about = f"{column.about}, with the 95 % interval over rows"
    return replace(column, title=f"{column.title} [95\u00a0%]", about=about, text=text)


def nll_intervals(runs: Iterable[Run]) -> dict[Path, Score]:
    """By the folders of the runs that have kept the nll of their held-out rows."""
    kept = {run.folder: kept_interval(run.folder, NLL) for run in runs if NLL in run.metrics}
    return {folder: interval for folder, interval in kept.items() if interval}


def differing_tokenizers(runs: Iterable[Run]) -> bool:
    """Whether runs make unlike numbers of tokens of a byte, so that their nll per token can't be compared.

    tokens / bytes = ln 2 · bits_per_byte / nll, of the same held-out rows.
    """
    both = [(run.metrics.get(PER_BYTE), run.metrics.get(NLL)) for run in runs]
    counts = [bits / nll for bits, nll in both if bits and nll]
    return bool(counts) and max(counts) > (1 + SAME) * min(counts)


# Words about a set of runs


def reading_note(runs: Iterable[Run]) -> str:
    """The line under the table: what the intervals cover and what they don't."""
    done = finished(runs)
    unit = "problem" if judged(done) else "row"
    counts = sorted({count for run in done if (count := run.rows.get("test") or run.rows.get("heldout"))})
    measured = "scored" if unit == "problem" else "measured"
    scored = f", {measured} on {' or '.join(f'{count:,}' for count in counts)} held-out {unit}s" if counts else ""
    seeds = sorted({run.seed for run in done if run.seed is not None})
    trained = "with one seed" if len(seeds) <= 1 else "with one of the seeds " + ", ".join(map(str, seeds))
    return (
        f"Each row is a single run {trained}{scored}. {_of_intervals(done, unit)}"
        + _other_rows_note(done)
        + _outdated_note(done)
    )


def _of_intervals(runs: Sequence[Run], unit: str) -> str:
    has_intervals = any(f"{ACCURACY}_low" in run.metrics for run in runs) if unit == "problem" else nll_intervals(runs)
    if not has_intervals:
        return "No interval is known: a small gap is not a finding."
    return (
        f"The intervals cover the luck of the {unit}s drawn, not that of the seed: a gap that fits inside them is not "
        "a finding."
    )


def _other_rows_note(runs: Sequence[Run]) -> str:
    """By which keys the held-out rows of these runs differ, since the table ranks them all the same."""
    keys = differing([_of_heldout_rows(run.config) for run in runs])
    if not keys:
        return ""
    return f" Not all were measured on the same held-out rows ({', '.join(sorted(keys))}): compare those that were."


def _of_heldout_rows(config: Mapping[str, str]) -> dict[str, str]:
    """The part of a run's configuration that says which rows are held out."""
    given = {key: config[key] for key in config if OWN_HELDOUT.fullmatch(key) and config[key] not in UNSET}
    if given:
        return given
    source = [key for key in config if key.startswith("data.source.") and not key.endswith(OF_TRAINING)]
    return {key: config[key] for key in ("data.heldout_rows", *source) if key in config}


def means_note(runs: Iterable[Run]) -> str:
    """What the numbers of tokens are, on the page."""
    wrong = "; “wrong” tokens are the labels that were made wrong"
    return "γ, trust and nll are means over tokens" + wrong * any(run.rows.get("noisy") for run in runs) + "."


def _outdated_note(runs: Sequence[Run]) -> str:
    """Which runs an earlier build made whose numbers this one would compute in another way."""
    old = [run for run in runs if run.outdated]
    if not old:
        return ""
    changes = "; ".join(sorted({change for run in old for change in run.outdated}))
    return (
        f" Of an earlier build, which computed some numbers in another way ({changes}): "
        f"{', '.join(run.label for run in old)}. The same command makes a new run of each."
    )


def subject(runs: Sequence[Run]) -> str:
    """One sentence: how many runs of which model on which data, and how much of it was made wrong."""
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    model, data = (_choices(runs, group) for group in ("model", "data"))
    shares = sorted(
        {round(100 * run.rows.get("noisy", 0) / run.rows["train"]) for run in runs if run.rows.get("train")}
    )
    noise = " or ".join(f"{share} %" for share in shares)
    parts = [count, f"of {model}" if model else "", f"on {data}" if data else ""]
    wrong = f", with {noise} of the training rows made wrong" if any(shares) else ""
    return " ".join(part for part in parts if part) + wrong + "."


def _choices(runs: Iterable[Run], group: str) -> str:
    return " and ".join(sorted({run.choices[group] for run in runs if group in run.choices}))


def unfinished_in_words(runs: Iterable[Run]) -> str:
    """Not in the table: 2 failed, 1 interrupted."""
    statuses = [run.status for run in unfinished(runs)]
    return f"Not in the table: {', '.join(f'{statuses.count(one)} {one}' for one in dict.fromkeys(statuses))}"
