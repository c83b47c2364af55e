"""Changes to the words of a demonstration; all that is known of its characters moves along."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from qtarget.data.example import Demonstration, Span, WeightedSpan

WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Runs of letters and digits, case folded."""
    return WORD.findall(text.casefold())


@dataclass(frozen=True)
class Edit:
    """Characters [start, stop) of a completion give way to `text`, of which the span `wrong` (None: all) is noise's."""

    start: int
    stop: int
    text: str
    wrong: Span | None = None

    @property
    def marked(self) -> Span:
        """What is wrong of the changed completion."""
        low, high = self.wrong or (0, len(self.text))
        return self.start + low, self.start + high


def edited(row: Demonstration, edits: Iterable[Edit]) -> Demonstration:
    """The row with its completion changed; positions are those of the completion as it was, and no two edits share one.

    Spans that were known before, of `wrong` and of every column, stay with their characters: one that an edit cuts
    into covers the new text too, and one that has no character left is gone.
    """
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        row = _applied(row, edit)
    return row


def _applied(row: Demonstration, edit: Edit) -> Demonstration:
    content = row.completion[: edit.start] + edit.text + row.completion[edit.stop :]
    return replace(
        row,
        messages=[*row.prompt, {**row.messages[-1], "content": content}],
        wrong=tuple(sorted(_with_length([*_moved(row.wrong, edit), edit.marked]))),
        spans={name: _with_length(_moved(spans, edit)) for name, spans in row.spans.items()},
        weights=_weights_moved(row.weights, edit),
    )


def _weights_moved(weights: Sequence[WeightedSpan], edit: Edit) -> tuple[WeightedSpan, ...]:
    moved = _moved([(start, stop) for start, stop, _ in weights], edit)
    paired = zip(moved, weights, strict=True)
    return tuple((start, stop, weight) for (start, stop), (_, _, weight) in paired if start < stop)


def _moved(spans: Sequence[Span], edit: Edit) -> list[Span]:
    """What is put in before a span or behind it is no part of it."""
    grown = len(edit.text) - (edit.stop - edit.start)

    def first(position: int) -> int:
        return position + grown if position >= edit.stop else min(position, edit.start)

    def last(position: int) -> int:
        return position if position <= edit.start else max(position, edit.stop) + grown

    return [(first(start), last(stop)) for start, stop in spans]


def _with_length(spans: Iterable[Span]) -> tuple[Span, ...]:
    return tuple((start, stop) for start, stop in spans if start < stop)
