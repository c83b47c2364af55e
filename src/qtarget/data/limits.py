"""Which examples of rows are kept under a limit of tokens, in their order, each told where its labels stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from qtarget.data.encoding import EncodedRows
from qtarget.data.example import Demonstration, Example, lengths
from qtarget.errors import QTargetError


@dataclass
class KeptRows:
    """Rows of which no example is longer than `limit`: as they were, or cut to it.

    kept: their indices. dropped, cut: how many rows were too long. noisy, noisy_tokens: rows and tokens that noise made
    wrong, known once the examples were gone through.
    """

    encoded: EncodedRows
    kept: Sequence[int]
    limit: int
    dropped: int = 0
    cut: int = 0
    noisy: int = field(default=0, init=False)
    noisy_tokens: int = field(default=0, init=False)

    @property
    def rows(self) -> list[Demonstration]:
        return [self.encoded.rows[index] for index in self.kept]

    def examples(self) -> Iterator[tuple[Example, int]]:
        """Each with its first_label, and which of the rows that are kept it is of; counts what is wrong meanwhile."""
        first_label = 0
        for of, index in enumerate(self.kept):
            group = self.encoded.group(index)
            wrong = 0
            for example in _cut_row(group, self.limit) if self.cut else group:
                yield replace(example, first_label=first_label), of
                first_label += example.labels
                wrong += sum(example.wrong)
            self.noisy += wrong > 0
            self.noisy_tokens += wrong


def limited(encoded: EncodedRows, limit: int, truncation: str) -> KeptRows:
    """What `truncation` makes of rows with an example longer than `limit`: "error", "drop" or "cut".

    A row of several examples fits as a whole. One that a cut leaves no token of a reply is dropped.
    """
    tokens, starts = lengths(encoded.examples), encoded.starts
    longest = [max(tokens[starts[index] : starts[index + 1]]) for index in range(len(encoded.rows))]
    too_long = sum(length > limit for length in longest)
    if too_long and truncation == "error":
        worst = longest.index(max(longest))
        raise QTargetError(
            f"{too_long} of {len(longest)} rows are longer than {limit} tokens (the longest, row "
            f"{encoded.group(worst)[0].row}, has {longest[worst]}): set data.truncation=drop or =cut, or raise "
            "data.max_length up to the model's context"
        )
    fitting = [
        index
        for index, length in enumerate(longest)
        if length <= limit or (truncation == "cut" and any(_teaches(one, limit) for one in encoded.group(index)))
    ]
    dropped = len(longest) - len(fitting)
    return KeptRows(encoded, fitting, limit, dropped=dropped, cut=too_long - dropped)


def _cut_row(group: Sequence[Example], limit: int) -> list[Example]:
    """Of a row's examples those that a cut leaves something of a reply to learn, cut."""
    return [cut_to(example, limit) for example in group if _teaches(example, limit)]


def _teaches(example: Example, limit: int) -> bool:
    """Whether a cut leaves a token of a reply to learn."""
    return any(example.supervised[example.first_reply : limit])


def cut_to(example: Example, limit: int) -> Example:
    """Its first `limit` tokens."""
    if len(example) <= limit:
        return example
    return replace(
        example,
        input_ids=example.input_ids[:limit],
        supervised=example.supervised[:limit],
        columns={name: column[:limit] for name, column in example.columns.items()},
        weights=None if example.weights is None else example.weights[:limit],
    )
