"""Judged answers, and what is made of them: metrics, a file, and pairs of two runs. No model is needed for it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from qtarget.errors import QTargetError
from qtarget.evaluate import scores
from qtarget.evaluate.scores import PairedDifference, Values
from qtarget.files import write_atomically

FILE = "samples.jsonl"
HELDOUT = "heldout"
"""The source of a run's own held-out rows; benchmarks have their names."""
Problem = tuple[str, str, int]
"""Source, prompt, and how many rows before it had the same prompt."""


@dataclass(frozen=True)
class Sample:
    """One answer to one problem, and the verdict.

    source and row: where the problem comes from. sample: which of the prompt's answers, from 0. prompt: its messages,
    one below the other. answer: as written; final: what of it the verifier compares, spelled alike where equal. score:
    in [0, 1], where a verifier knows of parts. tokens: of the answer; ended: whether it came to its end by itself.
    """

    source: str
    row: int
    sample: int
    prompt: str
    expected: str
    answer: str
    final: str
    correct: bool
    score: float
    tokens: int
    ended: bool


# Metrics


def by_prompt(samples: Iterable[Sample]) -> list[list[Sample]]:
    """The samples of each row of a source, in the order of the rows."""
    groups: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.source, sample.row), []).append(sample)
    return list(groups.values())


def values_of(prompts: Sequence[Sequence[Sample]]) -> dict[str, Values]:
    """Metric → its value for each prompt, shares in [0, 1]; every prompt has the same number k of samples.

    accuracy: the share of right samples (avg@k). score: their mean score, where some verdict knows parts. With k > 1
    also pass@j for j = 2, 4, … and k, and maj@k where some verifier names answers.
    """
    correct = np.array([[sample.correct for sample in group] for group in prompts], dtype=float)
    score = np.array([[sample.score for sample in group] for group in prompts])
    metrics: dict[str, Values] = {"accuracy": correct.mean(1), "score": score.mean(1)}
    count = correct.shape[1]
    if count > 1:
        sizes = sorted({2**power for power in range(1, count.bit_length())} | {count})
        right = correct.sum(1).astype(int).tolist()
        metrics[f"avg@{count}"] = metrics["accuracy"]
        metrics |= {f"pass@{k}": scores.pass_at_k(right, count, k) for k in sizes}
    if count > 1 and _named(prompts):
        metrics[f"maj@{count}"] = np.array([scores.majority(*_votes(group)) for group in prompts])
    return metrics


def _named(prompts: Sequence[Sequence[Sample]]) -> bool:
    """Whether any verdict names an answer: where none does, answers can't be counted."""
    return any(sample.final for group in prompts for sample in group)


def _votes(group: Sequence[Sample]) -> tuple[list[str], list[bool]]:
    return [sample.final for sample in group], [sample.correct for sample in group]


def answer_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Means of `values_of` with the ends NAME_low and NAME_high of their 95 % intervals, and how answers look:

    length: tokens of an answer; cut_off: the share that the limit cut off; with k > 1 samples distinct@k, different
    answers to a prompt.
    """
    if not samples:
        return {}
    prompts = by_prompt(samples)
    metrics: dict[str, float] = {}
    for name, values in values_of(prompts).items():
        score = scores.interval(values)
        metrics |= {name: score.mean, f"{name}_low": score.low, f"{name}_high": score.high}
    count = len(prompts[0])
    if count > 1 and _named(prompts):
        metrics[f"distinct@{count}"] = _mean([scores.distinct(_votes(group)[0]) for group in prompts])
    lengths, ended = [sample.tokens for sample in samples], [sample.ended for sample in samples]
    return metrics | {"length": _mean(lengths), "cut_off": 1 - _mean(ended)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# Pairs


@dataclass(frozen=True)
class Paired:
    """The means a and b of a metric over the prompts that two runs share, and b − a prompt by prompt.

    only_a, only_b: prompts that one of them has and the other hasn't.
    """

    a: float
    b: float
    shared: int
    only_a: int
    only_b: int
    difference: PairedDifference


def paired(samples_a: Sequence[Sample], samples_b: Sequence[Sample], metric: str = "accuracy") -> Paired:
    """Two runs on the same prompts: their difference without the luck of which problems were drawn.

    Prompts are the same where their texts are. Raises QTargetError where none is shared, or for a metric that one of
    the two hasn't: see `values_of`; accuracy is always there, however many samples a run has.
    """
    a, b = (by_problem(samples, metric) for samples in (samples_a, samples_b))
    shared = [prompt for prompt in a if prompt in b]
    if not shared:
        raise QTargetError(
            f"the runs share no prompt ({len(a)} and {len(b)} of their own): evaluate both on the same rows"
        )
    mine, theirs = (np.array([values[prompt] for prompt in shared]) for values in (a, b))
    apart = len(a) - len(shared), len(b) - len(shared)
    return Paired(float(mine.mean()), float(theirs.mean()), len(shared), *apart, scores.difference(mine, theirs))


def by_problem(samples: Sequence[Sample], metric: str) -> dict[Problem, float]:
    """(source, prompt, how many rows before it had the same) → the metric's value.

    Raises QTargetError for a metric that `values_of` doesn't know.
    """
    prompts = by_prompt(samples)
    known = values_of(prompts)
    if metric not in known:
        raise QTargetError(f"these samples have no metric {metric!r}: they have {', '.join(known)}")
    seen: Counter[tuple[str, str]] = Counter()
    by_key = {}
    for group, value in zip(prompts, known[metric], strict=True):
        text = (group[0].source, group[0].prompt)
        by_key[(*text, seen[text])] = float(value)
        seen[text] += 1
    return by_key


# Files


def save_samples(folder: Path, samples: Sequence[Sample]) -> None:
    """A JSON object a line in samples.jsonl; no file where nothing was asked."""
    if samples:
        lines = (json.dumps(asdict(sample), ensure_ascii=False) for sample in samples)
        write_atomically(folder / FILE, "\n".join(lines) + "\n")


def read_samples(path: Path) -> list[Sample]:
    """What `save_samples` wrote. Raises QTargetError for anything else."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # an answer may hold other ends of lines, such as U+2028
        return [_sample(json.loads(line)) for line in lines if line]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QTargetError(f"{path} holds no samples that an evaluation wrote: {error!r}") from error


def _sample(line: Mapping[str, Any]) -> Sample:
    return Sample(**{field.name: line[field.name] for field in fields(Sample)})
