"""How strongly a row, a message or a part of it is taught: factors of a token's loss."""

from __future__ import annotations

from collections.abc import Sequence

from qtarget.data.example import Demonstration, Span, WeightedSpan


def message_weight(row: Demonstration, turn: int) -> float:
    """Row weight × message weight of an assistant message; 0: it is context and not taught."""
    return row.weight * float(row.messages[turn].get("weight", 1.0))


def is_taught(row: Demonstration, supervise: str) -> bool:
    """Whether a row has a reply of a weight above 0; supervise: "all" count, or the "last" alone."""
    replies = [turn for turn, message in enumerate(row.messages) if message["role"] == "assistant"]
    return any(message_weight(row, turn) > 0 for turn in (replies if supervise == "all" else replies[-1:]))


def token_weights(offsets: Sequence[Span], spans: Sequence[WeightedSpan], weight: float) -> list[float]:
    """[T]: weight × that of the spans, for tokens at these character offsets of a reply; 1 where no span is touched.

    A token that shares a character with a span has its weight; where several touch one token, the largest counts.
    """
    return [weight * _factor(start, stop, spans) for start, stop in offsets]


def _factor(start: int, stop: int, spans: Sequence[WeightedSpan]) -> float:
    return max((factor for low, high, factor in spans if low < stop and start < high), default=1.0)
