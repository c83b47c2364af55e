"""The tokens that a design trusts least and most once the policy is trained, in their context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from qtarget.data.batch import Batch
from qtarget.math.loss import IGNORE, LossOutput
from qtarget.measures import MEASURES
from qtarget.model.policy import evaluating
from qtarget.train.lightning_module import QTargetModule

Decode = Callable[[list[int]], Any]
"""Token ids → their text."""
EACH = 10
BEFORE, AFTER = 16, 8  # tokens of context


@torch.no_grad()
def trust_table(module: QTargetModule, batches: Iterable[Batch], decode: Decode) -> list[dict[str, Any]]:
    """The EACH least trusted tokens of some training rows, then the EACH most trusted ones, the extremes first.

    A part with step scope takes each batch for a step.
    """
    with evaluating(module.policy):
        rows = [row for batch in batches for row in _rows(module, batch.to(module.policy.lm.device), decode)]
    rows.sort(key=lambda row: float(row["trust"]))
    each = min(EACH, len(rows) // 2)
    least, most = rows[:each], rows[::-1][:each]
    return [{"trusted": "least", **row} for row in least] + [{"trusted": "most", **row} for row in most]


def _rows(module: QTargetModule, batch: Batch, decode: Decode) -> Iterator[dict[str, Any]]:
    """The extremes of one batch; those of all batches are among them."""
    out = module.token_loss(batch, compiled=False)  # compiled it would be compiled once more, for these few tokens
    supervised = batch.labels != IGNORE
    spots, wrong = supervised.nonzero().tolist(), batch.columns["wrong"][supervised].tolist()
    order = out.trust.argsort(stable=True).tolist()
    for token in sorted({*order[:EACH], *order[-EACH:]}):
        yield {**_in_context(batch, spots[token], decode), "wrong": wrong[token], **_measures_of(out, token)}


def _in_context(batch: Batch, spot: tuple[int, int], decode: Decode) -> dict[str, str]:
    """The label at a position, and the text on either side, up to the last label of its row."""
    row, column = spot
    ids, end = batch.input_ids[row], int((batch.labels[row] != IGNORE).nonzero()[-1]) + 2
    return {
        "before": decode(ids[max(0, column + 1 - BEFORE) : column + 1].tolist()),
        "token": decode([int(batch.labels[row, column])]),
        "after": decode(ids[column + 2 : min(end, column + 2 + AFTER)].tolist()),
    }


def _measures_of(out: LossOutput, token: int) -> dict[str, float]:
    """A token's measures that the lens shows, and p, the policy's probability of it."""
    values = {measure.name: float(out.of(measure.name)[token]) for measure in MEASURES if measure.in_lens}
    return {**values, "p": float((-out.nll[token]).exp())}
