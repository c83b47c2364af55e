"""What is measured of every supervised token: names, titles, units and better ends, in one place.

A measure is one entry of MEASURES. The log, the evaluation, the table, the dashboard and the lens take from it what
they write and how they call it. Nothing here imports torch: `qtarget compare` reads names and titles alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from qtarget.math.scoring import ChunkTokens


@dataclass(frozen=True)
class Measure:
    """One number a token.

    name: an attribute of `LossOutput`, or a key of its `others`.
    title: in tables and in the lens. unit: "" where there is none. about: what it is, in one line.
    better: "min", "max", or None where neither end is.
    read: returns [n], detached. It must not look at a value: it goes through torch.compile.
    logged: the metric of its mean in the log; None: it isn't logged.
    apart: the log has its means over clean and over wrong tokens too.
    evaluated: its mean over held-out rows is val/NAME and test/NAME, and test/NAME is a column of the table.
    in_lens: the lens and the table of trust show it of single tokens.
    needs_prior: where no prior is held in full it is NaN, and left out of means.
    """

    name: str
    title: str
    unit: str
    better: str | None
    about: str
    read: Callable[[ChunkTokens], Tensor]
    logged: str | None = None
    apart: bool = False
    evaluated: bool = False
    in_lens: bool = False
    needs_prior: bool = False


MEASURES: tuple[Measure, ...] = (
    Measure(
        "loss",
        "objective",
        "nats",
        None,
        "the design's objective; w·CE(Q, p) unless it is an Induced one",
        lambda scored: scored.target.value(scored.view),
        logged="train/loss",
    ),
    Measure(
        "nll",
        "nll",
        "nats",
        "min",
        "−log p(y): comparable between designs, as the objective is not",
        lambda scored: -scored.view.label_logp,
        logged="train/nll",
        apart=True,
        evaluated=True,
    ),
    Measure(
        "trust",
        "trust",
        "",
        None,
        "w·(Q_y − m·p_y)/(1 − p_y): pull on the label relative to plain SFT",
        lambda scored: scored.target.trust(scored.view),
        logged="target/trust",
        apart=True,
        in_lens=True,
    ),
    Measure(
        "reliance",
        "γ",
        "",
        None,
        "reliance: how far the label is trusted",
        lambda scored: scored.target.label_mass,
        logged="target/reliance",
        apart=True,
        in_lens=True,
    ),
    Measure(
        "weight",
        "w",
        "",
        None,
        "the step size of a token",
        lambda scored: scored.target.weight,
        logged="target/weight",
        in_lens=True,
    ),
    Measure(
        "gap",
        "gap",
        "",
        None,
        "½‖m·p − Q‖₁: total variation between policy and target, step size aside",
        lambda scored: scored.gap,
        logged="target/gap",
    ),
    Measure(
        "kl_prior",
        "KL to prior",
        "nats",
        None,
        "KL(p‖π_0): how far the policy has gone from the model training started from",
        lambda scored: scored.drift,
        logged="target/kl_prior",
        evaluated=True,
        needs_prior=True,
    ),
    Measure(
        "entropy",
        "entropy",
        "nats",
        None,
        "H(p)",
        lambda scored: scored.view.policy.entropy,
        logged="train/entropy",
    ),
    Measure(
        "mass",
        "mass",
        "",
        None,
        "w·(positive masses of Q): what normalize=weight_sum adds up",
        lambda scored: scored.target.mass,
    ),
    Measure(
        "kl_to_target",
        "KL to target",
        "nats",
        None,
        "KL(Q‖p); NaN where Q has negative entries",
        lambda scored: scored.kl_to_target,
    ),
    Measure(
        "prior_nll",
        "nll of the prior",
        "nats",
        None,
        "−log π_0(y)",
        lambda scored: scored.prior_nll,
        needs_prior=True,
    ),
)
"""Of every loss; means are logged in this order."""

DIRECTIONS = {
    **{measure.name: measure.better for measure in MEASURES if measure.better},
    **dict.fromkeys(("perplexity", "ece", "bits_per_byte"), "min"),
    **dict.fromkeys(("accuracy", "score", "avg", "pass", "maj"), "max"),
}
"""The better end of a metric, by what stands between its slash and its @."""


def direction(metric: str) -> str | None:
    """The better end of a metric, None where neither is.

    >>> direction("test/accuracy"), direction("math500/avg@16"), direction("val/nll"), direction("train/loss")
    ('max', 'max', 'min', None)
    """
    return DIRECTIONS.get(metric.rpartition("/")[2].partition("@")[0])


def validation_direction(metric: str) -> str | None:
    """The same of a validation metric, `val/…`; None of any other."""
    return direction(metric) if metric.startswith("val/") else None


CONFIDENCE = Measure(
    "confidence",
    "confidence",
    "",
    None,
    "max_v p(v)",
    lambda scored: scored.view.logp.amax(-1).exp(),
)
HIT = Measure(
    "hit",
    "hit",
    "",
    "max",
    "1 where the label is the likeliest token, else 0",
    lambda scored: (scored.view.logp.argmax(-1) == scored.view.labels).to(scored.view.logp.dtype),
)
