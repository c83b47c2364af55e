"""lens.jsonl of a run, read: what its design made of the same tokens from step to step, as page data and in order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtarget.errors import QTargetError
from qtarget.lens.token_table import LENS_MEASURES, DesignReading, Pull, Token, TokenRow, quoted, visible
from qtarget.plot.looks import Mark, looks
from qtarget.record.record import LENS, stored_result
from qtarget.record.runs import without_absolute_paths

NOT_RECORDED, WRONG = 0, 2  # kinds of tokens in the file
MOST_NAMES = 8  # other tokens of one token whose bars the page shows: those that are largest at any step


@dataclass(frozen=True)
class OverTraining:
    """A run's record. rows: as its first line has them; steps: its other lines, in order."""

    run: str
    design: str
    rows: tuple[Mapping[str, Any], ...]
    steps: tuple[Mapping[str, Any], ...]

    @property
    def numbers(self) -> list[int]:
        return [int(step["step"]) for step in self.steps]

    @property
    def mark(self) -> Mark:
        return Mark(0, self.design, *looks([self.design])[self.design])


def read_run(folder: Path) -> OverTraining:
    """Raises QTargetError where the folder is no run's, or the run has recorded nothing for the lens."""
    result = stored_result(folder)
    if result is None:
        raise QTargetError(f"{folder} is no run: a run's folder holds result.json, such as outputs/runs/HASH")
    path = folder / LENS
    lines = list(_lines(path)) if path.is_file() else []
    if not lines:
        raise QTargetError(_missing(folder, result))
    if len(lines) == 1:
        raise QTargetError(f"{path} holds no step yet: look again once training has begun")
    first, *steps = lines
    _check(path, first, steps)
    design = str(result.get("choices", {}).get("target") or result.get("name") or "the design")
    return OverTraining(without_absolute_paths(str(folder)), design, tuple(first["rows"]), tuple(steps))


def _missing(folder: Path, result: Mapping[str, Any]) -> str:
    finished = result.get("status") == "finished"
    again = ", with another output_dir=FOLDER, as a finished run isn't trained again" if finished else ""
    return (
        f"{folder} has no {LENS}: a run records what its design teaches over training where lens.every is set. Train "
        f"it with lens.every=10{again}; or look at its model: qtarget lens target=NAME checkpoint={folder}"
    )


def _check(path: Path, first: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> None:
    """Raises QTargetError for lines that hold something else than training writes."""
    try:
        counts = [sum(kind != NOT_RECORDED for _, kind in row["tokens"]) for row in first["rows"]]
        keys = {"p", "q", "top", *LENS_MEASURES}
        for number, step in enumerate(steps, 2):
            whole = all(keys <= token.keys() for row in step["rows"] for token in row)
            if [len(row) for row in step["rows"]] != counts or not whole or not {"step", "texts"} <= step.keys():
                raise ValueError(f"line {number}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise QTargetError(f"{path} isn't as training wrote it ({error}): train the run again") from error


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """All lines but one that is still being written."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise QTargetError(
                f"{path}, line {number} is no JSON ({error}): it isn't as training wrote it; train the run again"
            ) from error


# What the page shows


def page_data(shown: OverTraining) -> dict[str, Any]:
    """steps: their numbers; rows: of each recorded token its values at every step, and its bars."""
    return {
        "steps": shown.numbers,
        "measures": list(LENS_MEASURES),
        "rows": [
            [_token_data(shown, row, place) for place in range(len(shown.steps[0]["rows"][row]))]
            for row in range(len(shown.rows))
        ],
    }


def _token_data(shown: OverTraining, row: int, place: int) -> dict[str, Any]:
    at_steps = [step["rows"][row][place] for step in shown.steps]
    text, kind = [token for token in shown.rows[row]["tokens"] if token[1] != NOT_RECORDED][place]
    return {
        "text": quoted(text),
        "wrong": kind == WRONG,
        **{key: [token[key] for token in at_steps] for key in ("p", "q", *LENS_MEASURES)},
        "others": _others(at_steps, [step["texts"] for step in shown.steps]),
    }


def _others(at_steps: Sequence[Mapping[str, Any]], texts: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Other tokens with p and Q at every step, null where a token was not among the largest."""
    found = [{token: (p, q) for token, p, q in at_step["top"]} for at_step in at_steps]
    names = {token: names[str(token)] for step, names in zip(found, texts, strict=True) for token in step}
    size = {token: max(max(map(abs, step[token])) for step in found if token in step) for token in names}
    chosen = sorted(names, key=lambda token: -size[token])[:MOST_NAMES]
    return [
        {"text": quoted(names[token]), **{key: _series(found, token, place) for place, key in enumerate("pq")}}
        for token in chosen
    ]


def _series(found: Sequence[Mapping[int, tuple[float, float]]], token: int, place: int) -> list[float | None]:
    return [step[token][place] if token in step else None for step in found]


def spans(row: Mapping[str, Any]) -> Iterator[tuple[str, bool, int | None]]:
    """(text, made wrong, place among the recorded tokens, or None) from the first recorded token of a row on."""
    tokens = row["tokens"][1:] if row["tokens"][0][1] == NOT_RECORDED else row["tokens"]
    place = 0
    for text, kind in tokens:
        if kind == NOT_RECORDED:
            yield text, False, None
        else:
            yield visible(text), kind == WRONG, place
            place += 1


def prompt(row: Mapping[str, Any]) -> str:
    """The text before the first recorded token."""
    text, kind = row["tokens"][0]
    return str(text) if kind == NOT_RECORDED else ""


# What the picture shows


def as_rows(shown: OverTraining, most: int) -> tuple[TokenRow, ...]:
    """The rows, read once at each of at most `most` steps, the first and the last among them."""
    chosen = evenly(len(shown.steps), most)
    return tuple(_token_row(shown, row, chosen) for row in range(len(shown.rows)))


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of so many places, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def _token_row(shown: OverTraining, row: int, chosen: Sequence[int]) -> TokenRow:
    tokens = tuple(Token(text, kind != NOT_RECORDED, kind == WRONG) for text, kind in shown.rows[row]["tokens"])
    readings = tuple(_reading(shown, row, place) for place in chosen)
    return TokenRow(shown.rows[row]["row"], tokens, readings)


def _reading(shown: OverTraining, row: int, place: int) -> DesignReading:
    step, mark = shown.steps[place], shown.mark
    pulls = tuple(Pull(tuple(float(token[name] or 0) for name in LENS_MEASURES)) for token in step["rows"][row])
    return DesignReading(Mark(place, f"step {step['step']}", mark.colour, mark.symbol), pulls)
