"""The comparison table: its columns, what is said around it, and texts of a configuration as numbers."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from qtarget.measures import MEASURES, Measure
from qtarget.record.runs import Run, finished, unfinished


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


def accuracy_text(run: Run) -> str:
    """Held-out accuracy in percent with its 95 % interval: `41.2 [36.5, 46.1]`."""
    values = [run.metrics.get(f"test/accuracy{end}") for end in ("", "_low", "_high")]
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
    def text(run: Run) -> str:
        return f"{run.metrics[key]:,.{digits}f}" if key in run.metrics else MISSING

    return TableColumn(key, title, about, group, text, lambda run: _finite(run.metrics.get(key)))


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
        "test/accuracy",
        "accuracy % [95\u00a0%]",
        "held-out problems solved, with the 95 % interval",
        "result",
        accuracy_text,
        lambda run: _finite(run.metrics.get("test/accuracy")),
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

PER_BYTE = "test/bits_per_byte"
BITS_PER_BYTE = _measured(
    PER_BYTE, "bits/byte", "nll in bits per UTF-8 byte of the held-out replies: for unlike tokenizers", "result", 3
)


def columns_of(runs: Sequence[Run]) -> tuple[TableColumn, ...]:
    """COLUMNS, with bits per byte behind the nll where the runs' tokenizers differ."""
    beside = [BITS_PER_BYTE] * differing_tokenizers(finished(runs))
    return tuple(one for column in COLUMNS for one in (column, *beside * (column.key == "test/nll")))


def differing_tokenizers(runs: Iterable[Run]) -> bool:
    """Whether runs make unlike numbers of tokens of a byte, so that their nll per token can't be compared.

    tokens / bytes = ln 2 · bits_per_byte / nll, of the same held-out rows.
    """
    both = [(run.metrics.get(PER_BYTE), run.metrics.get("test/nll")) for run in runs]
    counts = [bits / nll for bits, nll in both if bits and nll]
    return bool(counts) and max(counts) > (1 + SAME) * min(counts)


# Words about a set of runs


def reading_note(runs: Iterable[Run]) -> str:
    """The line under the table: what the intervals cover and what they don't."""
    done = finished(runs)
    counts = sorted({count for run in done if (count := run.rows.get("test") or run.rows.get("heldout"))})
    problems = " or ".join(f"{count:,}" for count in counts)
    scored = f" on {problems} held-out problems" if problems else ""
    seeds = sorted({run.seed for run in done if run.seed is not None})
    trained = "with one seed" if len(seeds) <= 1 else "with one of the seeds " + ", ".join(map(str, seeds))
    return (
        f"Each row is a single run {trained}, scored{scored}. The intervals cover the luck of the problems drawn, "
        "not that of the seed: a gap that fits inside them is not a finding."
    ) + _outdated_note(done)


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


def next_command(runs: Sequence[Run]) -> str:
    """What to try next: a seed of the configuration that has the fewest; with nothing finished, the first run again.

    Of equals it is the one that stands first, and of seeds the first that another configuration has.
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
    overrides = [override for override in fewest.overrides if not override.startswith("seed=")]
    return shlex.join(["qtarget", "train", *overrides, f"seed={seed}"])


def _configuration(run: Run) -> str:
    """What seeds of one configuration have in common."""
    return f"{run.name} {run.but_seed}"
