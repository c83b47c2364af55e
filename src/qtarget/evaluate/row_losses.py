"""What every held-out row costs a policy, in nats: kept beside the record, so that runs are compared row by row.

No model is needed to read it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtarget.data.example import Demonstration, Example
from qtarget.errors import QTargetError
from qtarget.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "heldout_nll.jsonl"
SIZES = {"nll": "tokens", "bits_per_byte": "bytes"}
"""A metric that is a sum over rows divided by another → what it is divided by."""
CONTEXT = 16
"""Tokens decoded in front of a reply: some tokenizers decode a first token otherwise, as the ▁ of Llama 2."""
Row = tuple[str, int]
"""The id of a row, and how many rows before it had the same."""


@dataclass(frozen=True)
class RowLoss:
    """One held-out row under one policy.

    id: 16 hex digits of what the row says and how many stretches of it are supervised; it depends on no tokenizer, so
    that runs which read the same row have it in common. row: its number in its source. nll: Σ −log p(y) in nats over
    the `tokens` that are supervised. bytes: of the text that they stand for, see `supervised_bytes`.
    """

    id: str
    row: int
    nll: float
    tokens: int
    bytes: int


@dataclass(frozen=True)
class RowText:
    """What is known of a row without a policy: all of RowLoss but its nll."""

    id: str
    row: int
    tokens: int
    bytes: int


def described_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Demonstration], examples: Sequence[Example], of: Sequence[int]
) -> list[RowText]:
    """Each row as it is supervised. of: the place among `rows` of each example, rising; a row may be several."""
    grouped: list[list[Example]] = [[] for _ in rows]
    for example, place in zip(examples, of, strict=True):
        grouped[place].append(example)
    return [_described(tokenizer, row, group) for row, group in zip(rows, grouped, strict=True)]


def _described(tokenizer: PreTrainedTokenizerBase, row: Demonstration, group: Sequence[Example]) -> RowText:
    stretches = [stretch for example in group for stretch in _stretches(example.supervised)]
    said = [row.messages, row.tools, row.weight, row.weights, len(stretches)]
    name = sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]
    tokens = sum(example.labels for example in group)
    return RowText(name, row.row, tokens, sum(supervised_bytes(tokenizer, example) for example in group))


def supervised_bytes(tokenizer: PreTrainedTokenizerBase, example: Example) -> int:
    """UTF-8 bytes of the text that the supervised tokens of an example decode to.

    Special tokens, such as the end of a turn, are tokens without bytes: what they cost counts, and every tokenizer
    divides it by the bytes of the same reply.
    """
    return sum(_decoded_bytes(tokenizer, example, *stretch) for stretch in _stretches(example.supervised))


def _decoded_bytes(tokenizer: PreTrainedTokenizerBase, example: Example, start: int, stop: int) -> int:
    first = max(0, start - CONTEXT)
    before, both = (list(example.input_ids[first:end]) for end in (start, stop))
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    sizes = [len(str(tokenizer.decode(ids, **options)).encode()) for ids in (before, both)]
    return sizes[1] - sizes[0]


def _stretches(supervised: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """[start, stop) of every stretch of supervised tokens; the first token of a row is nobody's label."""
    start = None
    for place, kept in enumerate([False, *supervised[1:], False]):
        if kept and start is None:
            start = place
        elif not kept and start is not None:
            yield start, place
            start = None


# What they say


def row_metrics(losses: Sequence[RowLoss]) -> dict[str, float]:
    """bits_per_byte = Σ nll / (ln 2 · Σ bytes): the nll of a text in bits, divided by its UTF-8 bytes.

    nll per token depends on how many tokens a tokenizer makes of a text; bits per byte can be compared between
    tokenizers (Gao et al., arXiv 2101.00027, section 3.1, and lm-evaluation-harness call it so). Empty where the
    supervised tokens have no bytes.
    """
    nats, size = (sum(getattr(loss, name) for loss in losses) for name in ("nll", "bytes"))
    return {"bits_per_byte": nats / (math.log(2) * size)} if size else {}


def by_row(losses: Sequence[RowLoss], metric: str) -> dict[Row, tuple[float, float]]:
    """Row → (total, size): the metric, of `SIZES`, is Σ totals / Σ sizes. nll: nats and tokens; bits_per_byte: bits
    and bytes.
    """
    seen: Counter[str] = Counter()
    found: dict[Row, tuple[float, float]] = {}
    unit = math.log(2) if metric == "bits_per_byte" else 1.0
    for loss in losses:
        found[(loss.id, seen[loss.id])] = (loss.nll / unit, float(getattr(loss, SIZES[metric])))
        seen[loss.id] += 1
    return found


# Files


def save_row_losses(folder: Path, losses: Sequence[RowLoss]) -> None:
    """A JSON object a line in heldout_nll.jsonl, with null for an nll that is not finite; no file without rows."""
    if losses:
        lines = [asdict(loss) | {"nll": loss.nll if math.isfinite(loss.nll) else None} for loss in losses]
        write_atomically(folder / FILE, "".join(f"{json.dumps(line)}\n" for line in lines))


def read_row_losses(path: Path) -> list[RowLoss]:
    """What `save_row_losses` wrote. Raises QTargetError for anything else."""
    try:
        return [_row_loss(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QTargetError(f"{path} holds no nll of rows that an evaluation wrote: {error!r}") from error


def _row_loss(line: Mapping[str, Any]) -> RowLoss:
    known = {field.name: line[field.name] for field in fields(RowLoss)}
    return RowLoss(**known | {"nll": math.nan if known["nll"] is None else float(known["nll"])})
