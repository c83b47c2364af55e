"""What a configuration makes of its data, before anything is trained: rows, lengths, and what is supervised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from qtarget.config.composing import instantiate
from qtarget.config.run_config import RunConfig
from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration, Example
from qtarget.data.hints import check_lengths, with_hints
from qtarget.data.module import DataConfig, Prepared, check_heldout, prepare
from qtarget.data.sources.source import read
from qtarget.errors import QTargetError
from qtarget.model import provide
from qtarget.run import scripts
from qtarget.run.row_checks import chat_tokenizer

UNLIMITED = 1 << 62
"""Tokens: no row is too long to be measured."""
QUANTILES = {"shortest": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}


@dataclass(frozen=True)
class Piece:
    """A part of a row's text. kind: "context", "supervised", or "wrong", which noise has made so."""

    text: str
    kind: str


@dataclass(frozen=True)
class DataReport:
    """Rows as they are before any is left out for its length or as contaminated.

    source: the training rows as text, before noise. limit: tokens that an example may have. contaminated: training rows
    that answer a held-out prompt. hinted: role of a reference that reads rows with a hint → the training examples as
    it reads them. unhinted: why training would refuse such rows.
    """

    config: DataConfig
    prepared: Prepared
    source: Sequence[Demonstration]
    tokenizer: PreTrainedTokenizerBase
    limit: int
    contaminated: int
    hinted: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    unhinted: Sequence[str] = ()

    def rows(self) -> list[tuple[str, int, int | str]]:
        """(what, of the training rows, of the held-out rows)."""
        counts = self.prepared.counts
        train, heldout = map(self._too_long, self._examples)
        untaught = ("nothing in them has a weight above 0", counts["dropped_untaught"], counts["heldout_untaught"])
        left_out = [(f"left out by the source: {name}", count, "") for name, count in self._left_out]
        lines: list[tuple[str, int, int | str]] = [
            ("read", counts["asked"], counts["heldout_asked"]),
            *left_out,
            untaught,
            ("answer a held-out prompt", self.contaminated, ""),
            (f"longer than {self.limit} tokens", train, heldout),
            ("made wrong by noise", counts["noisy"], ""),
            *self._several_examples,
        ]
        return [lines[0], *(line for line in lines[1:] if line[1] or line[2])]

    @property
    def _several_examples(self) -> list[tuple[str, int, int | str]]:
        """Of rows some of which are several examples, turn by turn: how many there are of these."""
        counts = [(len(examples), len({example.row for example in examples})) for examples in self._examples]
        several = any(examples > rows for examples, rows in counts)
        return [("examples that they are, turn by turn", counts[0][0], counts[1][0])] if several else []

    @property
    def _left_out(self) -> Iterator[tuple[str, int]]:
        """What the source left out, by reason."""
        known = {"source_read", "source_other_split"}
        for name, count in self.prepared.counts.items():
            if name.startswith("source_") and name not in known and count:
                yield name.removeprefix("source_"), count

    @property
    def _examples(self) -> tuple[Sequence[Example], Sequence[Example]]:
        return self.prepared.train, self.prepared.heldout

    def _too_long(self, examples: Sequence[Example]) -> int:
        return len({example.row for example in examples if len(example) > self.limit})

    def lengths(self) -> list[tuple[str, list[int]]]:
        """(of what, QUANTILES of it) in tokens an example; of examples that aren't there nothing."""
        supervised = [example.labels for example in self.prepared.train]
        named = {
            "training examples": [len(example) for example in self.prepared.train],
            "of these supervised": supervised,
            "held-out examples": [len(example) for example in self.prepared.heldout],
        }
        return [(name, _quantiles(lengths)) for name, lengths in named.items() if lengths]

    def notes(self) -> list[str]:
        """What becomes of rows that aren't read whole or as they stand, and what is odd about the template's end."""
        said = [*self.prepared.dropped_in_words.split("; "), self.prepared.few_in_words.removeprefix("; ")]
        return [note for note in (*said, ChatFormat(self.tokenizer).end_in_words) if note]

    def scripts(self) -> list[tuple[str, int, str]]:
        """(role, its training messages, in which scripts most of their letters are)."""
        held = scripts.by_role(self.source)
        return [(role, sum(counts.values()), _listed(counts)) for role, counts in held.items()]

    def problems(self) -> list[str]:
        """Why training would refuse these rows, each with a way on."""
        problems = [*self.unhinted]
        if self.config.truncation == "error" and (count := sum(map(self._too_long, self._examples))):
            problems.append(
                f"{count} rows are longer than {self.limit} tokens: set data.truncation=drop or =cut, or raise "
                "data.max_length up to the model's context"
            )
        if self.config.contamination == "error" and self.contaminated:
            problems.append(
                f"{self.contaminated} training rows have the prompt of a held-out row: set data.contamination=drop to "
                "leave them out of training, or =allow"
            )
        try:
            check_heldout(self.config, self.prepared)
        except QTargetError as error:
            problems.append(str(error))
        return problems

    def pieces(self, example: Example) -> list[Piece]:
        """The text of an example as the model reads it."""
        kinds = [
            ("wrong" if wrong else "supervised") if supervised else "context"
            for supervised, wrong in zip(example.supervised, example.wrong, strict=True)
        ]
        pieces = []
        for kind, members in groupby(zip(kinds, example.input_ids, strict=True), key=lambda member: member[0]):
            ids = [token for _, token in members]
            text: Any = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            pieces.append(Piece(text, kind))
        return pieces


def data_report(cfg: RunConfig) -> DataReport:
    """Reads and tokenises the rows of a configuration. Raises QTargetError for rows that can't be read."""
    config = instantiate(cfg.data)
    assert isinstance(config, DataConfig)
    model = provide.resolve(cfg.model.name)
    tokenizer = chat_tokenizer(model, cfg.model.chat_template)
    context = provide.context_length(provide.load_config(model))
    whole = replace(config, max_length=None, packing=None)
    drops = replace(whole, contamination="drop")
    dropped = prepare(drops, tokenizer, UNLIMITED)
    contaminated = dropped.counts["dropped_contaminated"]
    keeps = config.contamination != "drop" and contaminated > 0
    prepared = prepare(replace(whole, contamination="allow"), tokenizer, UNLIMITED) if keeps else dropped
    of_share = config.heldout_rows if config.heldout_source is None else 0
    source, _ = read(config.source, "train", config.rows, of_share)
    limit = min(config.max_length or context, context)
    hinted, unhinted = _hinted(cfg, prepared, tokenizer, limit)
    return DataReport(config, prepared, source, tokenizer, limit, contaminated, hinted, unhinted)


def _hinted(
    cfg: RunConfig, prepared: Prepared, tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[dict[str, list[Example]], list[str]]:
    """By role the training examples with a hint in front; and what is wrong with those that training would read."""
    hinted: dict[str, list[Example]] = {}
    problems = []
    for role, node in cfg.references.items():
        template, name = node.hint_template, cfg.reference_name(role)
        if not template or not name:
            continue
        try:
            plain, chat = prepared.train, ChatFormat(tokenizer)
            hinted[role] = with_hints(template, prepared.train_rows, prepared.train_of, plain, chat)
            read = [index for index, example in enumerate(plain) if len(example) <= limit]
            rows, without = ([examples[index] for index in read] for examples in (hinted[role], plain))
            context = provide.context_length(provide.load_config(provide.resolve(name)))
            check_lengths(f"{node.node_key}.hint", rows, without, context, cfg.data.get("max_length"))
        except QTargetError as error:
            problems.append(str(error))
    return hinted, problems


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(name if len(counts) == 1 else f"{name} {count:,}" for name, count in counts.items())


def _quantiles(lengths: Sequence[int]) -> list[int]:
    ordered = sorted(lengths)
    return [ordered[round(share * (len(ordered) - 1))] for share in QUANTILES.values()]
