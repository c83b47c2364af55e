"""Training rows that are read while training goes on: nothing is kept of them but the place that was come to.

The rows of a source are taken in its order, or in groups of `buffer` rows, each shuffled by the seed, the epoch and
where the group begins. So the order depends on nothing else, and a place is a few numbers: of a group that was begun,
the rows are read again. Behind its last row the source begins again: every optimizer step has all its rows.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration, Example
from qtarget.data.limits import limited
from qtarget.data.module import UNREAD, DataConfig, Prepared, prepare
from qtarget.data.overlap import answered, prompt_text
from qtarget.data.sources.data_files import Files
from qtarget.data.sources.file_rows import Place
from qtarget.data.sources.streamed import StreamedRow, StreamedRows
from qtarget.data.storage import InMemory
from qtarget.data.tokenise import is_taught
from qtarget.errors import QTargetError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOOKED_AT = 64
"""Examples that are read before training, by which it is checked and estimated."""


@dataclass(frozen=True)
class StreamPlace:
    """Between two examples of a stream; plain data.

    epoch: passes that are over. group: where in the source the rows begin that are shuffled together (None: at its
    first one), row: how many of its rows stand before these. taken: of these, in the order of training. examples: of
    the row that follows. counts: of rows since the first pass, by what became of them, named as in `Prepared`.
    """

    epoch: int = 0
    group: Place | None = None
    row: int = 0
    taken: int = 0
    examples: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stream:
    """Examples of a source's rows, as `prepare` makes them.

    start: behind the rows that are held out. asked: prompts that no training row may answer. limit: tokens that an
    example may have; truncation of longer ones: "drop" or "cut". buffer: rows that are shuffled together; 0: none.
    """

    rows: StreamedRows
    chat: ChatFormat
    limit: int
    truncation: str
    start: StreamPlace = field(default_factory=StreamPlace)
    asked: frozenset[str] = frozenset()
    buffer: int = 0
    seed: int = 0

    def examples(self, place: StreamPlace | None = None) -> Iterator[tuple[Example, StreamPlace]]:
        """Without an end, from a place on (None: the start), each with the place behind it.

        Raises QTargetError for a row that can't be taught, and where a whole pass has nothing to teach.
        """
        place = place or self.start
        while True:
            is_whole, is_empty = (place.group, place.taken, place.examples) == (self.start.group, 0, 0), True
            for made, after in self._rows(place):
                is_empty = is_empty and not made
                for number, example in enumerate(made[place.examples :], place.examples + 1):
                    yield example, after if number == len(made) else replace(place, examples=number)
                place = after
            if is_whole and is_empty:
                raise self._nothing(place)
            place = replace(self.start, epoch=place.epoch + 1, counts=place.counts)

    def _rows(self, place: StreamPlace) -> Iterator[tuple[list[Example], StreamPlace]]:
        """Row by row its examples, which may be none, and the place behind it; to the end of the pass."""
        rows = self.rows.behind(place.group, place.row)
        while group := list(islice(rows, max(1, self.buffer))):
            for at in self._order(len(group), place)[place.taken :]:
                made, became = self._made(group[at])
                counts = Counter(place.counts) + Counter(became)
                place = replace(place, taken=place.taken + 1, examples=0, counts=dict(counts))
                if place.taken == len(group):
                    place = replace(place, group=group[-1].behind, row=place.row + len(group), taken=0)
                yield made, place
            group.clear()  # before the next one is read

    def _order(self, count: int, place: StreamPlace) -> list[int]:
        order = list(range(count))
        if self.buffer:
            random.Random(f"stream {self.seed} {place.epoch} {place.row}").shuffle(order)
        return order

    def _made(self, streamed: StreamedRow) -> tuple[list[Example], list[str]]:
        """The examples of a row, and what became of it, by names of counts."""
        row = self.rows.reader(streamed.row, streamed.index)
        if isinstance(row, str):
            return [], [f"source_{row}"]
        read = ["asked", *(f"{UNREAD}{key}" for key in row.unread)]
        if not is_taught(row, self.chat.supervise):
            return [], [*read, "dropped_untaught"]
        if not self.asked.isdisjoint(answered(row)):
            return [], [*read, "dropped_contaminated"]
        try:
            kept = limited(InMemory().encode([row], self.chat), self.limit, self.truncation)
            made = [example for example, _ in kept.examples()]
        except QTargetError as error:
            reason = str(error).removeprefix(f"row {row.row}: ")
            raise QTargetError(f"{self.rows.reader.place(streamed.row, streamed.index)}: {reason}") from error
        return made, [*read, "train" if made else "dropped_too_long", *["cut"] * kept.cut]

    def _nothing(self, place: StreamPlace) -> QTargetError:
        left_out = "".join(f", {count} {name}" for name, count in place.counts.items() if name != "asked")
        return QTargetError(
            f"no training row is left of {self.rows.reader.source.called}{left_out}: give data that has some, hold out "
            "fewer rows, or raise data.max_length up to the model's context"
        )


def prepare_stream(config: DataConfig, tokenizer: PreTrainedTokenizerBase, context: int, seed: int) -> Prepared:
    """Held-out rows as `prepare` has them, and the training rows as a stream, of which the first few are read.

    Raises QTargetError for what can be seen of them.
    """
    heldout = prepare(replace(config, rows=0), tokenizer, context)
    source = config.source
    assert isinstance(source, Files)
    rows = source.streamed()
    sets_aside = config.heldout_source is None and not source.heldout and config.heldout_rows
    stream = Stream(
        rows,
        ChatFormat(tokenizer, config.supervise, config.prompt_weight),
        config.limit(context),
        config.truncation,
        start=_behind(rows, config.heldout_rows or 0) if sets_aside else StreamPlace(),
        asked=_asked(heldout.heldout_rows) if config.contamination == "drop" else frozenset(),
        buffer=source.shuffle_buffer,
        seed=seed,
    )
    first_pass = takewhile(lambda pair: pair[1].epoch == 0, replace(stream, buffer=0).examples())
    some = [example for example, _ in islice(first_pass, LOOKED_AT)]
    return replace(heldout, train=some, rows=some, stream=stream, described=source.described)


def _behind(rows: StreamedRows, count: int) -> StreamPlace:
    """Behind the first so many demonstrations, which are held out."""
    for one in rows.behind(None, 0):
        count -= not isinstance(rows.reader(one.row, one.index), str)
        if not count:
            return StreamPlace(group=one.behind, row=one.index + 1)
    raise AssertionError("as many were read before")


def _asked(heldout: Sequence[Demonstration]) -> frozenset[str]:
    return frozenset(prompt_text(row.prompt) for row in heldout)
